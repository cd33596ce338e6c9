"""Stopping a loop between two steps instead of in the middle of one."""

from __future__ import annotations

import signal
from collections.abc import Callable


class GracefulStop:
    """While entered, Ctrl-C or SIGTERM sets `asked`, for the loop to look at; a second one raises KeyboardInterrupt.

    say: told once, what happens next. Enter it on the main thread (the only one that may handle signals).
    """

    def __init__(self, say: Callable[[str], None]):
        self.asked = False
        self._say = say

    def __enter__(self) -> GracefulStop:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._say("stopping after this step, with a checkpoint; once more stops at once")
