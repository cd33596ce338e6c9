"""Whether settings found on a narrow model hold for wide ones: muP beside the standard parametrisation, by two checks (Yang et al. 2022).

The coordinate check looks at the sizes of activations after a few steps, which must not depend on the width. The other one trains each
width at a grid of learning rates: under muP the best one stays where it is, else it falls. All rates of a width share one compiled program.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from models import mup
from models.family import resized
from wsejax.report import Sheet, plot_transfer
from wsejax.training.data import Batch, load_corpus, train_batches, validation_batches
from wsejax.training.scaled import scale_by_tree

from .entry import console as wide_console
from .entry import start
from .task import ModelSettings, Task, task_of

Kind = Literal["standard", "mup"]


@dataclass(frozen=True)
class Settings:
    """Train one model at several widths, in both parametrisations."""

    model: ModelSettings = field(default_factory=lambda: ModelSettings(layers=2, heads=4, context=64, set=("init_scale=0.1",)))
    """Its width is that of --base-width, and all else in proportion. 0.1 is about 1 / sqrt(64), what 64 terms want."""
    base_width: int = 64
    """Width at which both parametrisations are one."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """Widths to train, with as many heads as --model says."""
    parametrisations: tuple[Kind, ...] = get_args(Kind)
    """standard: initial variances by the number of terms of a sum or as --standard has it, one learning rate for all."""
    standard: Literal["by_terms", "fixed"] = "by_terms"
    """Initial values of the standard parametrisation: of a variance that falls with the width, as PyTorch's, or the same at every width,
    as GPT-2's. (T5's always fall.)"""
    zero_queries: bool = False
    """Begin with queries that are 0, so that attention is even; the paper's advice (appendix D.2)."""
    zero_head: bool = False
    """Begin with a head that is 0, which must not be tied; the same."""
    data: tuple[str, ...] = ()
    """Text files or glob patterns; left out: the documentation and sources of Python's own library."""
    steps: int = 64
    """Training steps of a run: the rate rises over the first tenth and then falls linearly to 0."""
    batch: int = 8
    """Sequences in a batch. All runs read the same batches."""
    log2_rates: tuple[float, ...] = (-11, -10, -9, -8, -7, -6, -5)
    """Peak learning rates, as powers of 2; none: no training."""
    coordinate_steps: int = 3
    """Steps of the coordinate check; 0: none."""
    coordinate_rate: float = 2.0**-7
    """Its learning rate."""
    seed: int = 0
    """Seed of the parameters and of the order of the text."""
    out: Path | None = None
    """Folder for mup.json and mup.png."""

    def check(self) -> None:
        """Raises ValueError for numbers that no study can have."""
        if not self.widths or not self.parametrisations:
            raise ValueError(f"widths={self.widths}, parametrisations={self.parametrisations}: give one at least of each")
        for name, least in {"steps": 2, "batch": 1, "coordinate_steps": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} is too small; give at least {least}")
        if not self.coordinate_steps and not self.log2_rates:
            raise ValueError("--coordinate-steps 0 without --log2-rates: nothing is asked for; give one of them")

    def check_model(self, task: Task) -> None:
        """Raises ValueError for what this model cannot do."""
        kind = task.family.kind
        if self.coordinate_steps and kind == "encoder-decoder":
            raise ValueError(f"--model {task.family.name}: the coordinate check knows decoders and encoders; give --coordinate-steps 0")
        if self.zero_head and (task.config.tied or kind == "encoder"):
            raise ValueError(
                f"--zero-head: the head of --model {task.family.name} is the table of tokens, too, or an encoder's; give --model.set "
                "tied=False for a decoder or T5"
            )


# ---- a model at a width --------------------------------------------------------------------------------------------------
def task_at(settings: Settings, width: int, kind: Kind) -> Task:
    """The model at this width, in muP or not. Raises ValueError for widths that do not fit."""
    given = settings.model
    if given.width not in (None, settings.base_width):
        raise ValueError(f"--model.width {given.width}: it is that of the base; give --base-width")
    base = task_of(dataclasses.replace(given, width=settings.base_width))
    config = resized(base.config, width=width)
    if kind == "mup":
        config = mup.parametrised(config, settings.base_width)
    elif settings.standard == "by_terms" and hasattr(config, "init_scale"):
        config = dataclasses.replace(config, init_scale=config.init_scale * (settings.base_width / width) ** 0.5)
    return dataclasses.replace(base, config=config)


def initial(settings: Settings, task: Task) -> Any:
    """Random parameters; queries and head 0 where asked for."""
    params = jax.jit(task.init, static_argnums=0)(settings.seed)

    def leaf(path: Any, value: jax.Array) -> jax.Array:
        keys = [step.key for step in path]
        zero = (settings.zero_queries and keys[-2:] == ["q", "kernel"]) or (settings.zero_head and keys == ["head", "kernel"])
        return jnp.zeros_like(value) if zero else value

    return jax.tree_util.tree_map_with_path(leaf, params)


def adam(task: Task) -> optax.GradientTransformation:
    """Adam's updates at a learning rate of 1, in muP's proportions."""
    return optax.chain(optax.scale_by_adam(b1=0.9, b2=0.95), scale_by_tree(mup.learning_rates(task.family, task.config)))


def stepper(task: Task, tx: optax.GradientTransformation) -> Callable[..., Any]:
    """step(params, moments, batch, rate) -> (params, moments, loss)."""

    def step(params: Any, moments: Any, batch: Any, rate: Any) -> tuple[Any, Any, jax.Array]:
        loss, gradients = jax.value_and_grad(task.training_loss)(params, batch)
        updates, moments = tx.update(gradients, moments, params)
        return jax.tree.map(lambda p, u: p - (rate * u).astype(p.dtype), params, updates), moments, loss

    return step


def stacked(batches: Iterable[Batch]) -> dict[str, jax.Array]:
    """Batches on a leading axis."""
    found = list(batches)
    return {name: jnp.asarray(np.stack([batch[name] for batch in found])) for name in found[0]}


# ---- the coordinate check ------------------------------------------------------------------------------------------------
class Tap(nnx.Module):
    """A module that tells the mean |x| of what it gives."""

    def __init__(self, inner: Any, tell: Callable[[Any], None]):
        self.inner, self.tell = inner, tell

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        out = self.inner(*arguments, **named)
        jax.debug.callback(self.tell, jnp.abs(out[0] if isinstance(out, tuple) else out).mean(), ordered=True)
        return out


def probe(task: Task) -> Callable[[Any, Any], dict[str, list[float]]]:
    """look(params, batch) -> mean |x| of "attention", "mlp" and "stream" in each layer, and of "logits", of a decoder or an encoder.
    Compiled once."""
    found: dict[str, list[float]] = {}

    @jax.jit
    def size_of_logits(params: Any, inputs: Any) -> jax.Array:
        tap = lambda inner, name: Tap(inner, lambda value: found.setdefault(name, []).append(float(value)))
        model = task.family.bound(task.config, params)
        blocks = model.blocks
        blocks.attention.out = tap(blocks.attention.out, "attention")
        name = "experts" if getattr(task.config, "experts", 0) else "mlp"
        setattr(blocks, name, tap(getattr(blocks, name), "mlp"))
        model.blocks = tap(blocks, "stream")
        return jnp.abs(model(*inputs)).mean()

    def look(params: Any, batch: Any) -> dict[str, list[float]]:
        found.clear()
        logits = float(size_of_logits(params, task.objective.inputs(batch)))
        jax.effects_barrier()
        return {name: list(values) for name, values in found.items()} | {"logits": [logits]}

    return look


def coordinates(settings: Settings, task: Task, params: Any, batch: Any) -> list[dict[str, list[float]]]:
    """Activations before the first step and after each, all on one batch."""
    tx = adam(task)
    step, look = jax.jit(stepper(task, tx)), probe(task)
    moments, rows = tx.init(params), []
    for at in range(settings.coordinate_steps + 1):
        rows.append(look(params, batch))
        if at < settings.coordinate_steps:
            params, moments, _ = step(params, moments, batch, settings.coordinate_rate)
    return rows


def slopes(widths: Sequence[int], rows: Sequence[dict[str, list[float]]]) -> dict[str, float]:
    """Of log mean |x|, averaged over layers, against log width: 0 does not depend on it, 1 grows with it."""
    of = lambda name: np.polyfit(np.log(widths), [np.mean(np.log(row[name])) for row in rows], 1)[0]
    return {name: float(of(name)) for name in rows[0]}


# ---- the best learning rate ----------------------------------------------------------------------------------------------
def program(settings: Settings, task: Task) -> Callable[..., Any]:
    """A jitted run(params, rate, batches, validation) -> validation loss, in nats; batches and validation are stacked."""
    tx = adam(task)
    step, rise = stepper(task, tx), max(1, settings.steps // 10)

    def run(params: Any, rate: Any, batches: Any, validation: Any) -> jax.Array:
        def body(carry: Any, scanned: Any) -> tuple[Any, None]:
            at, batch = scanned
            now = rate * jnp.minimum((at + 1) / rise, (settings.steps - at) / (settings.steps - rise))
            return step(*carry, batch, now)[:2], None

        (params, _), _ = jax.lax.scan(body, (params, tx.init(params)), (jnp.arange(settings.steps), batches))
        return jax.lax.map(lambda batch: task.loss(params, batch), validation).mean()

    return jax.jit(run)


def best_rate(log2_rates: Sequence[float], losses: Sequence[float]) -> tuple[float, bool]:
    """(log2 of the best rate, whether it lies inside the grid): the lowest point of the parabola through the logarithms of the least loss
    and its neighbours. What has diverged counts as the worst of the finite losses."""
    finite = np.isfinite(losses)
    if not finite.any():
        raise ValueError(f"log2_rates={list(log2_rates)}: every run has diverged; give lower rates")
    order = np.argsort(log2_rates)
    x = np.asarray(log2_rates, float)[order]
    y = np.log(np.where(finite, losses, np.max(np.asarray(losses)[finite])))[order]
    at = int(np.argmin(y))
    if at in (0, len(x) - 1):
        return float(x[at]), False
    a, b, _ = np.polyfit(x[at - 1 : at + 2] - x[at], y[at - 1 : at + 2], 2)
    return float(x[at] + (-b / (2 * a) if a > 0 else 0.0)), True


# ---- the study -----------------------------------------------------------------------------------------------------------
def study(settings: Settings, console: Console) -> dict[str, Any]:
    """What both checks found, as plain data."""
    settings.check()
    tasks = {(kind, width): task_at(settings, width, kind) for kind in settings.parametrisations for width in settings.widths}
    first = next(iter(tasks.values()))
    settings.check_model(first)
    corpus = load_corpus(settings.data, context=first.config.context)
    drawn = train_batches(corpus, batch_size=settings.batch, seed=settings.seed, maker=first.maker)
    batches = stacked(next(drawn) for _ in range(settings.steps))
    validation = stacked(validation_batches(corpus, batch_size=32, batches=8, maker=first.maker))
    looked, trained = [], []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        work = progress.add_task("", total=len(settings.log2_rates) * sum(width**2 for _, width in tasks))
        for (kind, width), task in tasks.items():
            progress.update(work, description=f"{kind}, width {width}")
            which = {"parametrisation": kind, "width": width}
            params = initial(settings, task)
            if settings.coordinate_steps:
                rows = coordinates(settings, task, params, {name: x[0] for name, x in batches.items()})
                looked += [{**which, "step": at, "activations": row} for at, row in enumerate(rows)]
            run, began = program(settings, task), time.perf_counter()
            for log2_rate in settings.log2_rates:
                loss = float(run(params, jnp.float32(2.0**log2_rate), batches, validation))
                trained.append({**which, "log2_rate": log2_rate, "loss": loss, "seconds": time.perf_counter() - began})
                began = time.perf_counter()
                progress.advance(work, width**2)
    return {"settings": dataclasses.asdict(settings) | {"out": str(settings.out)}, "coordinates": looked, "transfer": trained}


def coordinate_table(settings: Settings, looked: Sequence[dict[str, Any]]) -> Sheet:
    """Mean |x| after the last step, averaged over layers, by width, and slopes before the first step and after the last."""
    names, rows = list(looked[0]["activations"]), []
    for kind in settings.parametrisations:
        of = lambda step, kind=kind: [r["activations"] for r in looked if r["parametrisation"] == kind and r["step"] == step]
        before, after = of(0), of(settings.coordinate_steps)
        for name in names:
            sizes = [f"{np.mean(row[name]):.3g}" for row in after]
            said = [f"{slopes(settings.widths, some)[name]:+.2f}" if len(settings.widths) > 1 else "-" for some in (before, after)]
            rows.append((kind, name, *sizes, *said))
    steps = settings.coordinate_steps
    title = f"mean |x| after {steps} steps, and its slope over the width in logarithms"
    columns = ("", "", *(str(width) for width in settings.widths), "slope at first", f"after {steps} steps")
    return Sheet(columns, rows, title=title, drop=("slope at first",))


def transfer_table(settings: Settings, trained: Sequence[dict[str, Any]]) -> Sheet:
    """Validation losses by width and rate, the best rate, and how far it is from that of the first width."""
    rows = []
    for kind in settings.parametrisations:
        first = None
        for width in settings.widths:
            losses = [r["loss"] for r in trained if r["parametrisation"] == kind and r["width"] == width]
            best, inside = best_rate(settings.log2_rates, losses)
            first = best if first is None else first
            moved = f"{2 ** (best - first):.2f}"
            rows.append((kind, f"{width}", *(f"{loss:.3f}" for loss in losses), f"{best:.2f}" if inside else f"{best:g} (edge)", moved))
    columns = ("", "width", *(f"2^{x:g}" for x in settings.log2_rates), "log2 of best", "moved")
    return Sheet(columns, rows, title=f"validation loss (nats) after {settings.steps} steps, by peak learning rate")


def main(settings: Settings) -> dict[str, Any]:
    console = wide_console()
    record = study(settings, console)
    if record["coordinates"]:
        console.print(coordinate_table(settings, record["coordinates"]))
    if record["transfer"]:
        console.print(transfer_table(settings, record["transfer"]))
    if settings.out is not None:
        settings.out.mkdir(parents=True, exist_ok=True)
        (settings.out / "mup.json").write_text(json.dumps(record, indent=1, default=str), encoding="utf-8")
        plot_transfer(record["transfer"], record["coordinates"], settings.out / "mup.png")
        console.print(f"wrote {settings.out}")
    return record


if __name__ == "__main__":
    sys.exit(start(main, Settings, __doc__))
