"""`summary.json`: every start of a supervised run, how it ended and what was done about it, also over kills of the supervisor itself."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .outcome import Fault
from .rundir import write_atomically

SUMMARY = "summary.json"
_FORMAT = 1


@dataclass(frozen=True)
class Ended:
    """How a start of a command ended.

    last_step: the last that was done and written down, or that it went on from; None where it did not come so far.
    checkpoint: step of the newest checkpoint on disk; None: none.
    """

    fault: Fault
    last_step: int | None = None
    checkpoint: int | None = None


@dataclass
class Start:
    """One start: when (UTC), after which step it went on, its last step, how it ended, and what was done. None: not known (yet)."""

    number: int
    began: str
    from_step: int | None = None
    last_step: int | None = None
    checkpoint: int | None = None
    host_seconds: float | None = None
    exit_code: int | None = None
    fault: str | None = None
    reason: str | None = None
    action: str | None = None
    said: str | None = None


def read_summary(path: Path) -> dict[str, Any] | None:
    """A run's summary; None where there is none. Raises ValueError for a file that is none."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["format"] != _FORMAT:
            raise ValueError(f"format {body['format']}")
        [Start(**start) for start in body["starts"]]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no summary of a run ({error}); remove it") from None
    return body


class Summary:
    """The summary at `path`, going on with the one that is there. Nothing is written before a start holds the run's folder: one that is
    refused leaves no trace, and no other supervisor's file is touched.

    say: told where the file cannot be written (a full disk), which ends nothing.
    Raises ValueError where the file at `path` is something else.
    """

    def __init__(self, path: Path, say: Callable[[str], None]):
        self._path, self._say, self._held = path, say, False
        earlier = read_summary(path)
        self.starts = [Start(**start) for start in earlier["starts"]] if earlier else []
        self._outcome, self._reason = "running", ""
        self._clock = time.monotonic()
        for start in self.starts:
            if start.fault is None:
                start.fault, start.action = "supervisor lost", "none: the supervisor was killed, and the run with it"

    def begin(self) -> Start:
        """A new start, now."""
        self._clock = time.monotonic()
        self.starts.append(Start(len(self.starts) + 1, datetime.now(UTC).isoformat(timespec="milliseconds")))
        return self.starts[-1]

    def holds(self, start: Start, step: int) -> None:
        """The start holds the run's folder and goes on after this step."""
        self._held, start.from_step = True, step
        self._write()

    def end(self, start: Start, ended: Ended, exit_code: int, said: str, action: str, reason: str) -> None:
        """How the start ended, and what is done about it."""
        start.host_seconds = round(time.monotonic() - self._clock, 3)
        start.fault, start.last_step, start.checkpoint = str(ended.fault), ended.last_step, ended.checkpoint
        start.exit_code, start.said, start.action, start.reason = exit_code, said, action, reason
        self._write()

    def finish(self, outcome: str, reason: str) -> None:
        """How it all ended."""
        self._outcome, self._reason = outcome, reason
        self._write()

    def closing_words(self) -> str:
        """How it all ended, in one line."""
        return f"{len(self.starts)} starts; outcome: {self._outcome}" + (f" ({self._reason})" if self._reason != self._outcome else "")

    def as_json(self) -> dict[str, Any]:
        known = [start for start in self.starts if start.from_step is not None and start.last_step is not None]
        totals = {
            "starts": len(self.starts),
            "faults": dict(Counter(start.fault for start in self.starts if start.fault not in (None, str(Fault.COMPLETE)))),
            "last_step": max((start.last_step or 0 for start in known), default=0),
            # of the starts whose end was seen; more than last_step where steps behind a checkpoint were done again
            "steps_done": sum((start.last_step or 0) - (start.from_step or 0) for start in known),
            "host_seconds": round(sum(start.host_seconds or 0.0 for start in self.starts), 3),
        }
        starts = [dataclasses.asdict(start) for start in self.starts]
        return {"format": _FORMAT, "outcome": self._outcome, "reason": self._reason, "totals": totals, "starts": starts}

    def _write(self) -> None:
        if not self._held:
            return
        try:
            write_atomically(self._path, json.dumps(self.as_json(), indent=2) + "\n")
        except OSError as error:
            self._say(f"{self._path} could not be written ({error}); it is written anew at the next start or end")
