"""A word to the user while a server says nothing: it may be slow, or not at work at all."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from stages.core import progress
from stages.eval.engines.transport import PassingError

LONG = 60.0  # seconds without an answer before the first word; each later one waits twice as long
WORTH_A_WORD = 10.0  # seconds of a wait that the server asks for


@dataclass
class Patience:
    """How long a server has not answered."""

    url: str
    _since: float = field(default_factory=time.monotonic)
    _limit: float = field(default_factory=lambda: LONG)
    _rest: float = 0.0
    """The end of the longest wait that it asked for."""

    def renew(self) -> None:
        """An answer came."""
        self._since, self._limit = time.monotonic(), LONG

    def heed(self, error: PassingError) -> None:
        """The server answered that it is to be asked later: no silence, and a word where it is long.

        Questions that are sent away together are told of once.
        """
        end = time.monotonic() + error.after
        if error.after >= WORTH_A_WORD and end > self._rest + 1:
            progress.say(f"  {self.url} asked to wait {error.after:.0f} s (status {error.status})")
        if error.after:
            self._rest = max(self._rest, end)

    def speak(self) -> None:
        """Say that nothing came for long, now and then."""
        passed = time.monotonic() - max(self._since, self._rest)
        if passed >= self._limit:
            self._limit *= 2
            progress.say(
                f"  no answer of {self.url} for {passed:.0f} s: see the server's log; what a slow machine "
                "can serve is in the README, under A server"
            )
