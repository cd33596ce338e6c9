"""Parts of a wafer that die while a program runs, and going on without them: in memory, and with the same bits.

Results depend on tiles, and a remapped wafer keeps its tiles, so a death changes routes and no number. What it takes is a new mesh,
the program compiled for it, and the state moved to where that program wants it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
from jaxtyping import PyTree

from wsejax.hardware import Wafer

from .distributed import gather_text, is_first, process_count
from .rundir import write_atomically

FAULTS, EVENTS = "faults.json", "events.jsonl"
LOOK_EVERY = 16  # steps between looks at faults.json where processes have to agree on what it says, which takes a message
Place = tuple[int, int]
Link = tuple[Place, Place]
T = TypeVar("T")


class LostWaferError(ValueError):
    """What is left of the wafer after a death cannot run the program."""


@dataclass(frozen=True)
class Death:
    """Parts of a wafer that die together, between two steps.

    step: the last step that they live through; 0: none. None: they die as soon as the run is told.
    pes: physical (row, col). links: pairs of neighbouring PEs, in any order.
    """

    step: int | None = None
    pes: tuple[Place, ...] = ()
    links: tuple[Link, ...] = ()

    def __str__(self) -> str:
        return ", ".join([*(f"PE {pe}" for pe in self.pes), *(f"link {one}-{other}" for one, other in self.links)])

    def check(self, wafer: Wafer | None) -> None:
        """Raises ValueError for a PE off the wafer, a link that leads nowhere, or parts to die where there is no wafer."""
        if wafer is None:
            raise ValueError("this run is plain jax.jit on one device: it has no wafer of which a part could die")
        wafer.defects.with_dead(self.pes, self.links)

    def still_alive(self, wafer: Wafer) -> Death:
        """The parts of it that live on `wafer`."""
        defects = wafer.defects
        pes = tuple(pe for pe in self.pes if not defects.dead_pes[pe])
        links = tuple(link for link in self.links if defects.with_dead(links=[link]) != defects)
        return Death(self.step, pes, links)

    def as_json(self) -> dict[str, Any]:
        return {"pes": [list(pe) for pe in self.pes], "links": [[list(one), list(other)] for one, other in self.links]}


def together(deaths: Sequence[Death]) -> Death:
    """Many deaths as one; each part once."""
    pes = dict.fromkeys(pe for death in deaths for pe in death.pes)
    links = dict.fromkeys((min(link), max(link)) for death in deaths for link in death.links)
    return Death(None, tuple(pes), tuple(links))


def death_of(value: object) -> Death:
    """A Death from JSON: `{"step": 100, "pes": [[3, 5]], "links": [[[8, 8], [8, 9]]]}`; each of the three may be left out, but
    some part must die. Raises ValueError for anything else."""
    known = ("step", "pes", "links")
    if not isinstance(value, dict) or not value.keys() <= set(known):
        raise ValueError(f"{_short(value)} is no death; give an object with {', '.join(known)}")
    step = value.get("step")
    if step is not None and not _natural(step):
        raise ValueError(f"step {_short(step)} is no step; give a number of 0 or more, or leave it out for at once")
    pes, links = value.get("pes", []), value.get("links", [])
    if not isinstance(pes, list) or not all(map(_is_place, pes)):
        raise ValueError(f"pes {_short(pes)}: give a list of [row, col]")
    if not isinstance(links, list) or not all(isinstance(link, list) and len(link) == 2 and all(map(_is_place, link)) for link in links):
        raise ValueError(f"links {_short(links)}: give a list of [[row, col], [row, col]]")
    if not pes and not links:
        raise ValueError("a death without pes or links; name what dies")
    return Death(step, tuple((row, col) for row, col in pes), tuple(((a, b), (c, d)) for (a, b), (c, d) in links))


def read_deaths(path: Path) -> tuple[Death, ...]:
    """The deaths in a JSON file: a list of what `death_of` takes. All of them, or a ValueError or OSError."""
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, for ever
        raise ValueError("it is no ordinary file")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error})") from None
    if not isinstance(values, list):
        raise ValueError(f"it holds {_short(values)}; give a list of deaths")
    deaths = []
    for number, value in enumerate(values):
        try:
            deaths.append(death_of(value))
        except ValueError as error:
            raise ValueError(f"death {number}: {error}") from None
    return tuple(deaths)


def _natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_place(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(n, int) and not isinstance(n, bool) for n in value)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass(frozen=True)
class Event:
    """A death that a run has survived. Pairs are before and after; seconds are of the host."""

    step: int
    died: Death
    logical_grid: tuple[Place, Place]
    mean_dilation: tuple[float, float]
    max_dilation: tuple[int, int]
    remap_seconds: float
    recompile_seconds: float
    move_seconds: float

    def as_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        del values["died"]
        return {"step": values.pop("step"), **self.died.as_json(), **values}

    def __str__(self) -> str:
        (rows, cols), (rows2, cols2) = self.logical_grid
        mean, mean2 = self.mean_dilation
        return (
            f"after step {self.step} died: {self.died}; logical grid {rows} x {cols} -> {rows2} x {cols2}, "
            f"mean dilation {mean:.3f} -> {mean2:.3f}; remapped in {self.remap_seconds:.2f} s, "
            f"recompiled in {self.recompile_seconds:.1f} s, state moved in {self.move_seconds:.3f} s"
        )


def survive(
    wafer: Wafer, state: PyTree, died: Death, *, step: int, build: Callable[[Wafer], tuple[T, PyTree]]
) -> tuple[Wafer, T, PyTree, Event]:
    """Go on without what died: remap, compile anew, and move the state in memory. Nothing is read from disk.

    Args:
      wafer: the wafer so far.
      state: the live state; given away, where its arrays have to move.
      died: what died. Its step is not looked at.
      step: steps that are done, for the event.
      build: makes what runs on a wafer: (anything, the shardings that it wants the state in: one, or a pytree like the state).

    Returns:
      The remapped wafer, what `build` made for it, the state laid out as that wants it, and the event.

    Raises:
      ValueError: a PE off the wafer or a link that leads nowhere; nothing has happened.
      LostWaferError: (a ValueError) what is left holds no usable mesh. The state is as it was.
    """
    died.check(wafer)
    start = time.perf_counter()
    try:
        after = wafer.kill(died.pes, died.links)
    except ValueError as error:
        raise LostWaferError(f"after step {step} died: {died}; what is left of the wafer cannot go on: {error}") from error
    remapped = time.perf_counter()
    made, shardings = build(after)
    built = time.perf_counter()
    # arrays that already lie so are passed on as they are
    state = jax.block_until_ready(jax.device_put(state, shardings, donate=True))
    end = time.perf_counter()
    meshes = wafer.remap, after.remap
    event = Event(
        step,
        died,
        (wafer.logical_grid, after.logical_grid),
        (meshes[0].mean_dilation, meshes[1].mean_dilation),
        (meshes[0].max_dilation, meshes[1].max_dilation),
        *(round(seconds, 4) for seconds in (remapped - start, built - remapped, end - built)),
    )
    return after, made, state, event


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The events in a run's folder, up to the first line that is not whole (a kill can tear the last one).

    Raises ValueError for a whole line that is no event.
    """
    rows: list[dict[str, Any]] = []
    try:
        lines = (folder / EVENTS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return rows
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            break
        try:
            death_of({name: row[name] for name in ("pes", "links")})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / EVENTS}, line {number} is no event ({error}); mend or remove the line") from None
        rows.append(row)
    return rows


def history(folder: Path) -> Death:
    """All that has died in a run, as its folder tells. Raises ValueError as `read_events`."""
    return together([death_of({name: row[name] for name in ("pes", "links")}) for row in read_events(folder)])


class DeathWatch:
    """The deaths of one run: those asked for, and those that faults.json in its folder tells of while it runs.

    A dead part stays dead: events.jsonl is the machine's history, so it is not rewound where a run goes back to a checkpoint, and what
    it tells of is not logged again. faults.json is looked at whenever `due` is called and taken whole or not at all; `report` hears
    what is wrong with it, once. A new faults.json takes the place of the old one; what died stays dead.

    In a run of several processes the first one writes, and reads faults.json for all, every LOOK_EVERY steps.
    """

    def __init__(self, folder: Path, wafer: Wafer | None, asked: Sequence[Death], report: Callable[[str], None]):
        self._folder, self._wafer, self._asked, self._report = folder, wafer, tuple(asked), report
        self._told: tuple[Death, ...] = ()
        self._seen: tuple[int, int, int] | None = None
        rows = read_events(folder)
        if is_first() and (folder / EVENTS).exists():  # without a torn last line, to which the next event would be glued
            write_atomically(folder / EVENTS, "".join(json.dumps(row) + "\n" for row in rows))
        past = history(folder)
        self._known: set[Place | Link] = {*past.pes, *past.links}  # parts that were dealt with

    def due(self, step: int, wafer: Wafer | None) -> Death | None:
        """What of `wafer` dies now that `step` steps are done; None where nothing does."""
        if process_count() == 1:
            self._look()
        elif step % LOOK_EVERY == 0:
            self._look_together()
        if wafer is None:
            return None
        now = together([death for death in (*self._asked, *self._told) if death.step is None or death.step <= step])
        fresh = Death(None, tuple(pe for pe in now.pes if pe not in self._known), tuple(ln for ln in now.links if ln not in self._known))
        if not fresh.pes and not fresh.links:  # as before nearly every step, so nothing is looked up in the wafer
            return None
        self._known |= {*fresh.pes, *fresh.links}
        dying = fresh.still_alive(wafer)
        already = Death(None, tuple(set(fresh.pes) - set(dying.pes)), tuple(set(fresh.links) - set(dying.links)))
        if already.pes or already.links:
            self._report(f"{already}: dead from the start; nothing changes")
        return dying if dying.pes or dying.links else None

    def record(self, event: Event) -> None:
        """Write a line to events.jsonl; it is on disk when this returns."""
        if not is_first():
            return
        with open(self._folder / EVENTS, "a", encoding="utf-8") as file:
            file.write(json.dumps(event.as_json()) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _look_together(self) -> None:
        if is_first():
            self._look()
        told = gather_text(json.dumps([{"step": death.step, **death.as_json()} for death in self._told]))[0]
        self._told = tuple(map(death_of, json.loads(told)))

    def _look(self) -> None:
        path = self._folder / FAULTS
        try:
            found = path.stat()
        except OSError:
            self._seen, self._told = None, ()
            return
        seen = found.st_mtime_ns, found.st_size, found.st_ino
        if seen == self._seen:
            return
        self._seen = seen
        try:
            told = read_deaths(path)
            for number, death in enumerate(told):
                try:
                    death.check(self._wafer)
                except ValueError as error:
                    raise ValueError(f"death {number}: {error}") from None
        except (OSError, ValueError) as error:
            self._report(f"{path}: {error}. Nothing of this file was applied and the run goes on; write it anew, whole")
            return
        self._told = told
