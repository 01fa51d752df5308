"""What one request may cost, and how many inputs may wait: the server's limits, not the job's.

gate = Gate(limits.queue)
with gate.entered(len(inputs)):     # ServiceError 429 where too many wait already
    ...
"""

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cmcr.serve.schemas import ServiceError

GIVEN_UP = (499, 504)  # the client went away, as nginx has it; it took too long
_IN_TIME = 0.8  # of the deadline: how long is waited is only estimated
_ENOUGH = 16  # inputs that tell how fast they are answered


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
    """How many inputs are being worked on. A request that does not fit is told when to come.

    Nor does one fit that would not be answered in `seconds`, as inputs have been answered so far.
    """

    def __init__(self, most: int, seconds: float = math.inf) -> None:
        self.most, self.seconds, self.inside = most, seconds, 0
        self._worked = 0.0  # seconds with some inputs inside, until there were none
        self._since = 0.0  # when there came some again
        self._left: deque[float] = deque(maxlen=256)  # how much was worked when each was answered

    def refuse(self, count: int) -> None:
        """Raise ServiceError 429 where there is no room for `count` inputs more."""
        if not self.inside:  # it will never be better
            return
        rate, after = self._rate(), self.inside + count
        late = _IN_TIME * self.seconds
        if after <= self.most and after <= rate * late:
            return
        wait = max((after - self.most) / rate, after / rate - late)
        raise ServiceError(
            429,
            f"{self.inside} inputs are waiting, more would take too long",
            code="overloaded",
            headers={"Retry-After": str(math.ceil(min(max(wait, 1), 60)))},
        )

    @contextmanager
    def entered(self, count: int) -> Iterator[None]:
        """Room for `count` inputs. Raises ServiceError 429 where there is none."""
        self.refuse(count)
        if not self.inside:
            self._since = time.monotonic()
        self.inside += count
        answered = True
        try:
            yield
        except ServiceError as error:
            answered = error.status not in GIVEN_UP
            raise
        finally:
            worked = self._clock()
            self.inside -= count
            if not self.inside:
                self._worked = worked
            if answered:
                self._left.extend([worked] * min(count, 256))

    def _clock(self) -> float:
        return self._worked + (time.monotonic() - self._since if self.inside else 0.0)

    def _rate(self) -> float:
        """Inputs answered a second of work; without end where too few were to tell."""
        if len(self._left) < _ENOUGH:
            return math.inf
        return len(self._left) / max(self._clock() - self._left[0], 1e-3)
