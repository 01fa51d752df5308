"""What one request may cost, and how many inputs may wait: the server's limits, not the job's.

gate = Gate(limits.queue)
with gate.entered(len(inputs)):     # ServiceError 429 where too many wait already
    ...
"""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cmcr.serve.schemas import ServiceError


@dataclass(frozen=True)
class Limits:
    """Of a request; each is looked at as early as what is sent allows."""

    body: int = 32 << 20  # bytes of a request
    letters: int = 10_000  # of a text
    pixels: int = 40_000_000
    seconds: float = 600.0  # of sound
    points: int = 2_000_000
    results: int = 1_000  # of a search
    queue: int = 512  # inputs that were accepted and are not answered
    item: float = 10.0  # seconds for one input to be decoded
    deadline: float = 30.0  # seconds for a request

    def refuse_text(self, text: str) -> None:
        """Raise ServiceError for a text that is empty or too long."""
        if not text.strip():
            raise ServiceError(400, "the text is empty", "input")
        if len(text) > self.letters:
            raise ServiceError(
                400, f"a text has {len(text):,} letters, {self.letters:,} are the most", "input"
            )


class Gate:
    """How many inputs are being worked on. A request that does not fit is told when to come."""

    def __init__(self, most: int) -> None:
        self.most, self.inside = most, 0
        self._left: deque[float] = deque(maxlen=256)  # when the last inputs were answered

    @contextmanager
    def entered(self, count: int) -> Iterator[None]:
        """Room for `count` inputs. Raises ServiceError 429 where there is none."""
        if self.inside + count > self.most and self.inside:
            raise ServiceError(
                429,
                f"{self.inside} inputs are waiting, {self.most} are the most",
                code="overloaded",
                headers={"Retry-After": str(self._seconds(count))},
            )
        self.inside += count
        try:
            yield
        finally:
            self.inside -= count
            self._left.extend([time.monotonic()] * min(count, 256))

    def _seconds(self, count: int) -> int:
        """In how many seconds there will be room, as inputs have been answered so far."""
        if len(self._left) < 2:
            return 1
        rate = len(self._left) / max(time.monotonic() - self._left[0], 1e-3)
        return min(max(round((self.inside + count - self.most) / rate), 1), 60)
