"""A word to the user while a server says nothing: it may be slow, or not at work at all."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from stages.core import progress

LONG = 60.0  # seconds without an answer before the first word; each later one waits twice as long


@dataclass
class Patience:
    """How long a server has not answered."""

    url: str
    _since: float = field(default_factory=time.monotonic)
    _limit: float = field(default_factory=lambda: LONG)

    def renew(self) -> None:
        """An answer came."""
        self._since, self._limit = time.monotonic(), LONG

    def speak(self) -> None:
        """Say that nothing came for long, now and then."""
        passed = time.monotonic() - self._since
        if passed >= self._limit:
            self._limit *= 2
            progress.say(
                f"  no answer of {self.url} for {passed:.0f} s: see the server's log; what a slow machine "
                "can serve is in the README, under A server"
            )
