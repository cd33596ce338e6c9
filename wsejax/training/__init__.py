"""The runtime round a step: state, data, checkpoints, the folder of a run."""

from .accumulate import count_targets, value_and_grad
from .batch_size import TradeOff, fit_trade_off
from .bitflip import Flip, flip_bit, flip_word, held_by
from .callbacks import (
    Checkpointer,
    DivergedError,
    EarlyStop,
    Log,
    NaNGuard,
    Noise,
    Periodic,
    ProgressBar,
    Stopper,
    TensorBoard,
    Throughput,
)
from .checkpoint import CheckpointMismatchError, Checkpoints, CorruptCheckpointError, Restored
from .data import Corpus, load_corpus, train_batches, validation_batches
from .distil import distillation_loss, distilled
from .ema import ema_of, with_ema
from .faults import Death, Event, LostWaferError, survive
from .groups import Group, clipped, grouped
from .lossscale import GradientsNotFiniteError, check_gradients, loss_scale_of, loss_scaled, skipped_steps_of
from .noise import NoiseScale, squared_norms
from .packing import Documents, pack, packed_batches, packed_stream, packed_validation_batches, waste
from .precision import LEVELS, POLICIES, Policy, policy
from .preference import preference_loss, response_log_probability
from .rundir import MetricsLog, RunDirectory, RunDirectoryError, read_metrics
from .scaled import scale_by_tree
from .state import TrainState, abstract_like, init_train_state, make_train_step, next_token_loss, split_model
from .trainer import Callback, Trainer

__all__ = [
    "LEVELS", "POLICIES", "Callback", "CheckpointMismatchError", "Checkpointer", "Checkpoints", "Corpus", "CorruptCheckpointError",
    "Death", "DivergedError", "Documents", "EarlyStop", "Event", "Flip", "GradientsNotFiniteError", "Group", "Log", "LostWaferError",
    "MetricsLog", "NaNGuard", "Noise", "NoiseScale", "Periodic", "Policy", "ProgressBar", "Restored", "RunDirectory", "RunDirectoryError",
    "Stopper", "TensorBoard", "Throughput", "TradeOff", "TrainState", "Trainer", "abstract_like", "check_gradients", "clipped",
    "count_targets", "distillation_loss", "distilled", "ema_of", "fit_trade_off", "flip_bit", "flip_word", "grouped", "held_by",
    "init_train_state", "load_corpus", "loss_scale_of", "loss_scaled", "make_train_step", "next_token_loss", "pack", "packed_batches",
    "packed_stream", "packed_validation_batches", "policy", "preference_loss", "read_metrics", "response_log_probability",
    "scale_by_tree", "skipped_steps_of", "split_model", "squared_norms", "survive", "train_batches", "validation_batches",
    "value_and_grad", "waste", "with_ema",
]  # fmt: skip
