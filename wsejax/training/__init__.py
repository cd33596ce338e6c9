"""The runtime round a step: state, data, checkpoints, the folder of a run."""

from .bitflip import Flip, flip_bit, flip_word, held_by
from .checkpoint import CheckpointMismatchError, Checkpoints, CorruptCheckpointError, Restored
from .data import Corpus, load_corpus, train_batches, validation_batches
from .faults import Death, Event, LostWaferError, survive
from .preference import preference_loss, response_log_probability
from .rundir import MetricsLog, RunDirectory, RunDirectoryError, read_metrics
from .state import TrainState, abstract_like, init_train_state, make_train_step, next_token_loss, split_model

__all__ = [
    "CheckpointMismatchError",
    "Checkpoints",
    "Corpus",
    "CorruptCheckpointError",
    "Death",
    "Event",
    "Flip",
    "LostWaferError",
    "MetricsLog",
    "Restored",
    "RunDirectory",
    "RunDirectoryError",
    "TrainState",
    "abstract_like",
    "flip_bit",
    "flip_word",
    "held_by",
    "init_train_state",
    "load_corpus",
    "make_train_step",
    "next_token_loss",
    "preference_loss",
    "read_metrics",
    "response_log_probability",
    "split_model",
    "survive",
    "train_batches",
    "validation_batches",
]
