"""What `experiments.train` can be told, and the objects that the answers stand for. Settings hold plain values
only."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
import tyro

import wsejax as wse
from wsejax.cli.emulated import WaferSettings
from wsejax.hardware import MEMORYX
from wsejax.training.distributed import join
from wsejax.training.faults import Death
from wsejax.training.precision import Policy

from .features import DocumentSettings, LossScaleSettings, SparsitySettings, transformation
from .supervise import Supervision
from .task import FLOAT32, ModelSettings, identity_of


@dataclass(frozen=True)
class ClusterSettings:
    """Several wafers, and the memory outside them."""

    systems: int = 1
    """Wafers that share each batch. Sums over them change rounding, nothing else."""
    execution: Literal["auto", "resident", "streamed"] = "resident"
    """Where the training state lives: on the wafers, or in MemoryX, from which it streams in layer by layer; auto: on the
    wafers if they hold it. Never changes a result."""
    memoryx: Literal["1.5TB", "12TB", "1.2PB"] = "12TB"
    """Size of the MemoryX."""
    prefetch_layers: int = 1
    """Layers of weights on their way while one is worked on."""
    arity: int = 4
    """Wafers or nodes below a node of the tree that joins them (SwarmX)."""
    groups: int = 1
    """Groups of JAX devices that emulate the wafers, each of --wafer.devices; must divide the systems. Never changes a
    result."""
    instead_of: int | None = None
    """The run was begun with this many systems and goes on with fewer: the same batches and, up to rounding, the same
    losses. What --kill-pe and --kill-link name died with the wafer that is gone."""

    def build(self, wafer: wse.Wafer) -> wse.Wafer | wse.Cluster:
        """The machine. Raises ValueError for what cannot be built."""
        if self.systems == 1 and self.groups == 1 and self.execution == "resident" and self.instead_of is None:
            return wafer
        memoryx = dataclasses.replace(MEMORYX[self.memoryx], prefetch_layers=self.prefetch_layers)
        return wse.Cluster(wafer, self.systems, memoryx, wse.SwarmX(self.arity), groups=self.groups)

    def identity(self) -> dict[str, Any]:
        """What of it decides a run's numbers."""
        return {"systems": self.instead_of or self.systems, "arity": self.arity}


@dataclass(frozen=True)
class OptimiserSettings:
    """AdamW with warm-up, cosine decay and clipping of the gradient's global norm."""

    learning_rate: float = 4e-3
    """Peak learning rate, reached after the warm-up."""
    warmup_steps: int = 40
    """Steps over which the learning rate rises from zero."""
    final_fraction: float = 0.05
    """Learning rate of the last step, as a share of the peak."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment; short runs want less than the usual 0.999."""
    weight_decay: float = 0.1
    """Decoupled weight decay, on arrays of two or more axes (not on norms and biases)."""
    clip_norm: float | None = 1.0
    """Largest global norm of the gradient; None: no bound."""
    clip_value: float | None = None
    """Largest magnitude of each number of the gradient instead; then --optimiser.clip-norm must be None."""
    group: Annotated[
        tuple[tuple[str, float, float | None], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATTERN TIMES DECAY")
    ] = ()
    """Parameters whose path this regular expression matches learn at so many times the rate, with a weight decay of their own (None: the
    usual one). May be given several times; the first that matches counts."""
    ema_decay: float | None = None
    """Keep an average of the parameters in which a step counts by this much less than the next; it is what is validated and
    sampled. Checkpoints hold both, and what reads them takes the parameters."""

    def schedule(self, steps: int) -> optax.Schedule:
        """Learning rate over `steps` steps: linear from 0, then half a cosine. The fields may be traced, which optax's schedules refuse."""

        def rate(count: Any) -> Any:
            rise = jnp.clip(self.warmup_steps, 0, steps - 1)
            done = jnp.clip((count - rise) / (steps - rise), 0.0, 1.0)
            share = self.final_fraction + (1.0 - self.final_fraction) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))
            return self.learning_rate * jnp.where(count < rise, count / jnp.maximum(rise, 1), share)

        return rate

    def build(
        self, steps: int, *, model: tuple[Any, Any] = (None, None), policy: Policy = FLOAT32, loss_scale: LossScaleSettings | None = None,
        sparsity: SparsitySettings | None = None, seed: int = 0,
    ) -> optax.GradientTransformation:  # fmt: skip
        """The optimiser of a run of `steps` steps. model: (family, configuration), for those in muP. Raises ValueError for settings that do
        not fit together."""
        return transformation(
            self, steps, policy=policy, loss_scale=loss_scale or LossScaleSettings(), sparsity=sparsity or SparsitySettings(), seed=seed,
            model=model, decayed=_decayed,
        )  # fmt: skip

    def check(self) -> None:
        """Raises ValueError for a number that no run can have."""
        for name in ("learning_rate", "clip_norm", "clip_value"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"--optimiser.{name.replace('_', '-')} {value} must be above 0")


# "gate", "up" and "down" of experts, which are no layers of their own, "a" and "b" of adapters
_MATRICES = ("kernel", "embedding", "gate", "up", "down", "a", "b")


def _decayed(params: Any) -> Any:
    # biases and gains of stacked layers have a leading layers axis, so their rank does not tell; their names do
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in _MATRICES, params)


@dataclass(frozen=True)
class LoopSettings:
    """When to stop, and what to tell besides."""

    patience: int | None = None
    """Stop when the validation loss has not fallen for so many of its measurements. Left out: after the last step only."""
    least_fall: float = 0.0
    """A smaller fall of the validation loss is none, for --loop.patience."""
    tensorboard: bool = False
    """Write TensorBoard's event files too, in the folder tensorboard."""
    noise_scale: bool = False
    """Measure the gradient noise scale, from micro-batches (McCandlish et al. 2018)."""
    norms_every: int | None = None
    """Steps between rows with the norm of each parameter."""

    def check(self) -> None:
        """Raises ValueError for a number that no run can have."""
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"--loop.patience {self.patience} is too small; give at least 1")
        if self.norms_every is not None and self.norms_every < 1:
            raise ValueError(f"--loop.norms-every {self.norms_every} is too small; give at least 1")
        if not self.least_fall >= 0:
            raise ValueError(f"--loop.least-fall {self.least_fall} must be 0 or above")


@dataclass(frozen=True)
class DistributedSettings:
    """One run in several processes, on one host or many: the same command in each, but for --distributed.process."""

    coordinator: str | None = None
    """HOST:PORT of process 0, the same in every process."""
    processes: int | None = None
    """Processes in all. Each brings an equal part of the wafer's devices."""
    process: int | None = None
    """Which of them this is, from 0. Process 0 writes and prints; the others say only what goes wrong."""
    auto: bool = False
    """Take the three from the cluster's scheduler instead (Slurm, Open MPI, Kubernetes), as JAX finds them."""
    join_seconds: int = 300
    """Time to wait for all processes to come."""
    deadline_seconds: int = 300
    """Silence of a process, or time without a step done, after which the run ends in all processes. More than the longest step,
    validation or checkpoint takes."""

    @property
    def on(self) -> bool:
        """Whether there is anything to join."""
        return self.auto or (self.coordinator, self.processes, self.process) != (None, None, None)

    def join(self) -> None:
        """Meet the other processes, if there are any. Raises ValueError for flags that do not fit together."""
        for name in ("join_seconds", "deadline_seconds"):
            if getattr(self, name) < 1:
                raise ValueError(f"--distributed.{name.replace('_', '-')} {getattr(self, name)} is too small; give at least 1")
        if not self.on:
            return
        named = (self.coordinator, self.processes, self.process)
        if self.auto and named != (None, None, None):
            raise ValueError("--distributed.auto finds coordinator, processes and process itself; leave those three out")
        join(*named, timeout_seconds=self.join_seconds, deadline_seconds=self.deadline_seconds)


@dataclass(frozen=True)
class Settings:
    """Train a small language model on an emulated wafer with real defects."""

    out: Path = Path("runs/train")
    """Folder for everything that the run writes. The same command again goes on from its newest checkpoint."""
    data: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE|GLOB ...")] = ()
    """Text files or glob patterns; left out: the documentation and sources of Python's own library on this
    machine."""
    steps: int = 600
    """Training steps."""
    batch: int = 16
    """Sequences in a batch."""
    eval_every: int = 50
    """Steps between measurements of the validation loss (and one at the end)."""
    eval_batches: int = 8
    """Validation batches each time; always the same ones."""
    checkpoint_every: int = 50
    """Steps between checkpoints (and one at the end)."""
    keep: int = 3
    """Checkpoints to keep; at least 2."""
    seed: int = 0
    """Seed of the parameters, the order of the text, dropout and the sample."""
    sample_bytes: int = 600
    """Length of the text sample written at the end."""
    from_manifest: Annotated[Path | None, tyro.conf.arg(metavar="RUN/manifest.jsonl")] = None
    """Do the run again that this manifest tells of, in another --out: every flag as it was there. Only what changes no number
    may be given besides, such as --out, --keep, --wafer.devices, or --data where they lie now; data of other content are
    refused."""
    model: ModelSettings = field(default_factory=ModelSettings)
    precision: Literal["float32", "bfloat16", "float16", "cb16"] = "float32"
    """What the model computes in; its parameters and the optimiser are float32. cb16 is Cerebras' 1-6-9."""
    stochastic_rounding: bool = False
    """Keep the parameters in the 16 bits of --precision, too, and round what an update gives at random."""
    micro_batches: int = 1
    """Parts that a batch is worked on in, one after the other; must divide it. Up to rounding this changes no number, but
    for dropout, whose draws differ, and for a mixture's balance, which is that of each part."""
    loss_scale: LossScaleSettings = field(default_factory=LossScaleSettings)
    sparsity: SparsitySettings = field(default_factory=SparsitySettings)
    documents: DocumentSettings = field(default_factory=DocumentSettings)
    kill_pe: Annotated[tuple[tuple[int, int, int], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="STEP ROW COL")] = ()
    """The PE at this physical row and column dies after this step; the run goes on without it, with the very same
    losses."""
    kill_link: Annotated[
        tuple[tuple[int, int, int, int, int], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="STEP ROW COL ROW COL")
    ] = ()
    """The link between these two neighbouring PEs dies after this step."""
    wafer: WaferSettings = field(default_factory=WaferSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    loop: LoopSettings = field(default_factory=LoopSettings)
    distributed: DistributedSettings = field(default_factory=DistributedSettings)
    supervision: Annotated[Supervision, tyro.conf.arg(name="")] = field(default_factory=Supervision)

    def check(self) -> None:
        """Raises ValueError for a number that no run can have."""
        at_least = {
            "steps": 2,
            "batch": 1,
            "eval_every": 1,
            "eval_batches": 1,
            "checkpoint_every": 1,
            "keep": 2,
            "sample_bytes": 1,
            "micro_batches": 1,
        }
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} is too small; give at least {least}")
        if self.cluster.instead_of is not None and self.cluster.instead_of <= self.cluster.systems:
            raise ValueError(
                f"--cluster.instead-of {self.cluster.instead_of}: give the number it was begun with, above {self.cluster.systems}"
            )
        if self.cluster.systems > self.batch:
            raise ValueError(f"--cluster.systems {self.cluster.systems}: more wafers than the {self.batch} sequences of a batch (--batch)")
        if self.wafer.off and self.cluster != ClusterSettings():
            raise ValueError("--wafer.off with --cluster flags: plain JAX on one device has no cluster; leave one of them out")
        self.optimiser.check()
        if self.stochastic_rounding and self.precision == "float32":
            raise ValueError("--stochastic-rounding with --precision float32, which rounds nothing: give bfloat16, float16 or cb16")
        if self.batch % self.micro_batches:
            raise ValueError(f"--micro-batches {self.micro_batches}: must divide the {self.batch} sequences of a batch (--batch)")
        if self.loop.noise_scale and self.micro_batches == 1:
            raise ValueError("--loop.noise-scale compares the gradients of micro-batches: give --micro-batches 2 or more")
        self.loop.check()
        self.supervision.check(self.cluster.systems)

    def deaths(self, wafer: wse.Wafer | None) -> tuple[Death, ...]:
        """What the flags let die. Raises ValueError, with the flag and its values, for what cannot die on this wafer in this
        run."""
        pes = [("--kill-pe", values, Death(values[0], ((values[1], values[2]),))) for values in self.kill_pe]
        links = [
            ("--kill-link", values, Death(values[0], links=(((values[1], values[2]), (values[3], values[4])),)))
            for values in self.kill_link
        ]
        for flag, values, death in (*pes, *links):
            name = " ".join(map(str, (flag, *values)))
            if not 0 <= values[0] < self.steps:
                raise ValueError(f"{name}: there is no step to come after step {values[0]}; give a step from 0 to {self.steps - 1}")
            try:
                death.check(wafer)
            except ValueError as error:
                raise ValueError(f"{name}: {error}; give physical rows and columns of the wafer, or leave the flag out") from None
        return tuple(death for _, _, death in (*pes, *links))

    def identity(self) -> dict[str, Any]:
        """All that decides the run's numbers and files, as JSON values: two runs of equal identity are the same run.

        Where the folder lies, how many checkpoints it keeps, who watches and in how many processes it runs do not belong to it, nor what
        dies on the way: a death changes no number, and a run may learn of one at any time. The folder's events.jsonl says what has died.
        """
        values = dataclasses.asdict(self)
        for name in ("out", "keep", "kill_pe", "kill_link", "from_manifest", "distributed", "supervision"):
            del values[name]
        values["model"] = identity_of(self.model, self.precision)
        del values["loop"]["tensorboard"]
        values["wafer"]["defects_file"] = None if self.wafer.defects_file is None else str(self.wafer.defects_file)
        if self.wafer.off:
            values["wafer"] = {"off": True}
        if (cluster := self.cluster.identity()) == ClusterSettings().identity():
            del values["cluster"]
        else:
            values["cluster"] = cluster
        return values
