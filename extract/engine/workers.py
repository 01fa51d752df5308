"""Batches of one part, decoded and preprocessed in worker processes, in the source's order.

    for loaded in load(batches, encoder, "audio", workers=4): ...

A worker has `PREFETCH` batches before it, and items are taken from the source only as there is
room, so a source of any length is read as it is needed. An input that ends the process that
decodes it, or never comes back, is one failure: the process is replaced, and the rest of the batch
is as if the input could not be decoded.
"""

import itertools
import logging
import signal
import time
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait

import torch
from torch import Tensor

from cmcr.devices import free_memory, threads_for
from cmcr.embeddings import Modality
from cmcr.embeddings.inventory import Input
from cmcr.embeddings.parts import Failure
from cmcr.errors import SourceError
from cmcr.extract.encoders.registry import Encoder
from cmcr.extract.engine.content import Content, measure, stamp
from cmcr.extract.engine.processes import NOWHERE, Mark, Place, Worker, start
from cmcr.extract.items import Decoded, Item
from cmcr.extract.media.crops import Crop, RecordedError, crop
from cmcr.extract.media.decode import decode
from cmcr.extract.media.readers import reader_of
from cmcr.extract.media.video import Span, files_open, span

log = logging.getLogger(__name__)

ITEM_TIMEOUT = 300.0  # seconds
GIVING_WAY = 5  # a fourth of a core on which another process is busy
PREFETCH = 2  # batches ahead of the encoder, for each worker
TRIES = 3  # processes that an input may cost; it is alone with the last
FEWEST = 8  # inputs that cannot all be bad, the first ones
LARGEST_BATCH = 1 << 28  # bytes of media that lie in memory before they are decoded
ENOUGH = 1 << 30  # bytes with which a process that runs alone is not short of memory


@dataclass(frozen=True, slots=True)
class Batch:
    """Some items of one part and their places in it; `last` marks the part's last batch."""

    part: int
    items: Sequence[Item]
    places: Sequence[int]
    last: bool


@dataclass(frozen=True, slots=True)
class Loaded:
    """A batch after decoding: `inputs` is (items, ...), or None when none could be decoded.

    `measured` are all items of the batch by their places, as they were before they were decoded.
    `broken` says what the encoder's `preprocess` gave where its tensors make no batch.
    """

    part: int
    items: Sequence[Item]
    places: Sequence[int]
    inputs: Tensor | None
    failures: Sequence[Failure]
    measured: Mapping[int, Input]
    last: bool
    broken: str | None = None

    def pin_memory(self) -> "Loaded":
        """The same in page-locked memory, from which a copy to the GPU can run by the side."""
        return self if self.inputs is None else replace(self, inputs=self.inputs.pin_memory())


class TimedOut(Exception):  # noqa: N818  its name is what failures.parquet says
    """An input that was not decoded in time, `in_stat` where not even its size was told."""

    in_stat = False


class WorkerKilled(Exception):  # noqa: N818
    """An input whose decoding ended the process."""


class Decoding:
    """What runs in a worker: `Batch` to `Loaded`. One bad input costs only itself."""

    def __init__(self, encoder: Encoder, modality: Modality) -> None:
        self.preprocess = encoder.preprocess
        self.modality = modality
        self.reader = reader_of(modality)

    def __call__(
        self, task: tuple[Batch, Mapping[int, Exception]], mark: Mark
    ) -> tuple[Loaded, Tensor | None]:
        """In a worker, the inputs apart from the rest."""
        loaded = self.load(*task, mark)
        return replace(loaded, inputs=None), loaded.inputs

    def load(
        self,
        batch: Batch,
        known: Mapping[int, Exception] | None = None,
        mark: Mark = lambda number: None,
    ) -> Loaded:
        """Decode and preprocess a batch, its failures set aside.

        `known` are failures of items by their number in the batch, which are not tried again;
        `mark` is told the number of each item that is begun.
        """
        with threads_for(0), files_open():  # there is a worker for every core
            items, places, inputs, failures = [], [], [], []
            measured = {}
            for number, (item, place) in enumerate(zip(batch.items, batch.places, strict=True)):
                mark(number)
                found = known.get(number) if known else None
                if isinstance(found, TimedOut) and found.in_stat:
                    content = Content()
                else:
                    content = stamp(item) if found else measure(item)
                measured[place] = content.as_input(item, failed=True)
                try:
                    if found:
                        again = _is_recorded(batch.items, number)
                        raise RecordedError(str(found)) if again else found
                    told, decoded = self.decode(item)
                    inputs.append(self.preprocess(self.modality, decoded))
                except RecordedError:
                    continue
                except Exception as error:  # decoders raise what they like
                    failures.append(failure(item, error))
                else:
                    items.append(told)
                    places.append(place)
                    measured[place] = content.as_input(item)
            mark(len(batch.items))
            broken = unstackable(inputs)
            stacked = torch.stack(inputs) if inputs and not broken else None  # (items, ...)
        return Loaded(batch.part, items, places, stacked, failures, measured, batch.last, broken)

    def decode(self, item: Item) -> tuple[Item, Decoded]:
        """The item as it is written, its media let go, and what the encoder takes."""
        if isinstance(item, Crop):
            return crop(item)
        if isinstance(item, Span):
            return span(item)
        decoded = decode(self.modality, item, self.reader)
        return (item if isinstance(item.content, str) else replace(item, content=None)), decoded


def unstackable(inputs: Sequence[object]) -> str | None:
    """Why preprocessed inputs make no batch; None where they are tensors of one kind."""
    kinds = {
        f"{tuple(one.shape)} {str(one.dtype).removeprefix('torch.')}"
        if isinstance(one, Tensor)
        else f"a {type(one).__name__}"
        for one in inputs
    }
    if len(kinds) > 1:
        return f"{len(kinds)} kinds, such as {' and '.join(sorted(kinds)[:2])}"
    return next((kind for kind in kinds if kind.startswith("a ")), None)


def niceness(encoders: Iterable[Encoder]) -> int:
    """Of processes that decode: an encoder on their cores comes first."""
    return GIVING_WAY if any(encoder.device.type == "cpu" for encoder in encoders) else 0


def failure(item: Item, error: Exception) -> Failure:
    """The row of `failures.parquet` for an item."""
    message = str(error).strip().partition("\n")[0]
    return {"id": item.id, "uri": item.uri, "error": type(error).__name__, "message": message}


def load(
    batches: Iterator[Batch],
    encoder: Encoder,
    modality: Modality,
    workers: int,
    item_timeout: float = ITEM_TIMEOUT,
) -> Iterator[Loaded]:
    """Decode and preprocess `batches` in `workers` processes (0: in this one), in order.

    An input that takes longer than `item_timeout` seconds, while this process waits for it, fails
    as TimedOut, one that ends `TRIES` processes as WorkerKilled.
    Raises SourceError where that is not the input's fault: nothing can be decoded, or memory is
    short.
    """
    decoding = Decoding(encoder, modality)
    if not workers:
        loaded = map(decoding.load, batches)
        yield from map(Loaded.pin_memory, loaded) if torch.cuda.is_available() else loaded
        return
    with ExitStack() as stack:
        thread = None
        if torch.cuda.is_available():  # batches are copied while one before them is encoded
            thread = stack.enter_context(ThreadPoolExecutor(1, "pin"))
        crew = Crew(encoder, decoding, workers, item_timeout)
        stack.callback(crew.dismiss)
        yield from crew.load(batches, thread)


_kept: list[Worker] | None = None


@contextmanager
def workers_kept() -> Iterator[None]:
    """Processes that `load` has started work for the next `load` too, and end with this block."""
    global _kept
    if _kept is not None:  # in such a block already
        yield
        return
    _kept = []
    try:
        yield
    finally:
        ended, _kept = _kept, None
        for worker in ended:
            worker.end()


@dataclass(eq=False)
class Hand:
    """A worker and its batches, by number; `age` is how long this process saw it at `seen`."""

    worker: Worker
    batches: deque[int] = field(default_factory=deque)
    finished: int = 0
    ready: bool = False
    seen: Place | None = None
    age: float = 0.0


class Crew:
    """Workers, and what was found out about inputs that end or hold them."""

    def __init__(
        self, encoder: Encoder, decoding: Decoding, workers: int, item_timeout: float
    ) -> None:
        imports = (type(encoder).__module__, *getattr(encoder, "worker_imports", ()))
        self.imports = [__name__, *(module for module in imports if module != "__main__")]
        self.niceness = niceness([encoder])
        self.decoding = decoding
        self.workers = workers
        self.timeout = item_timeout
        self.hands: list[Hand] = []
        self.batches: dict[int, Batch] = {}  # that are not decoded yet
        self.todo: deque[int] = deque()  # of these, that nobody has
        self.alone: deque[int] = deque()  # likewise, to be tried with nothing beside them
        self.lone: int | None = None  # that is being tried so
        self.free: int | None = None  # memory, when it began
        self.known: dict[Hashable, Exception] = {}
        self.strikes: Counter[Hashable] = Counter()
        self.any_decoded = False
        self.unready = 0  # workers that went before they had begun
        self.waited = 0.0  # seconds since hands were looked after

    def load(self, batches: Iterator[Batch], thread: ThreadPoolExecutor | None) -> Iterator[Loaded]:
        """Each batch decoded, in order, and copied to page-locked memory by `thread`."""
        done: dict[int, Future[Loaded] | Loaded] = {}
        source = enumerate(batches)
        taken, room = 0, self.workers * PREFETCH
        for number in itertools.count():
            while number not in done:
                while (
                    taken - number < room
                    and sum(map(_content_bytes, self.batches.values())) < 2 * LARGEST_BATCH
                    and (following := next(source, None))
                ):
                    taken += 1
                    self.batches[following[0]] = following[1]
                    self.todo.append(following[0])
                    self._hand_out()
                self._hand_out()
                if not self.batches:
                    return
                for found, loaded in self._receive():
                    done[found] = thread.submit(loaded.pin_memory) if thread else loaded
            one = done.pop(number)
            yield one.result() if isinstance(one, Future) else one

    def dismiss(self) -> None:
        """End the workers, or keep those that have nothing to do where they are kept."""
        for hand in self.hands:
            if _kept is not None and hand.ready and not hand.batches:
                _kept.append(hand.worker)
            else:
                hand.worker.end()
        self.hands.clear()

    def _hand_out(self) -> None:
        """Give the hands what they have room for; a batch that is to be alone waits for that."""
        while (self.todo or self.alone) and self.lone is None:
            if self.alone and any(hand.batches for hand in self.hands):
                return
            hand = self._idlest()
            if len(hand.batches) == PREFETCH:
                return
            if self.alone:
                self.lone = self.alone.popleft()
                self.free = free_memory()
            number = self.todo.popleft() if self.lone is None else self.lone
            hand.batches.append(number)
            batch = self.batches[number]
            keys = [self._key(number, row) for row in range(len(batch.items) if self.known else 0)]
            known = {row: self.known[key] for row, key in enumerate(keys) if key in self.known}
            hand.worker.give((batch, known))

    def _idlest(self) -> Hand:
        if len(self.hands) < self.workers and all(hand.batches for hand in self.hands):
            worker = None
            while _kept and worker is None:
                kept = _kept.pop()
                if kept.socket.poll():  # nothing is to come but the end
                    kept.end()
                else:
                    worker = kept
            hand = Hand(worker or start(self.imports))
            hand.worker.take_up(self.decoding, self.niceness)
            self.hands.append(hand)
        return min(self.hands, key=lambda hand: len(hand.batches))

    def _receive(self) -> Iterator[tuple[int, Loaded]]:
        """What the hands have done; waits for some of it, but not for an input without end."""
        busy = {hand.worker.socket: hand for hand in self.hands if hand.batches}
        often = min(1.0, self.timeout / 4)
        began = time.monotonic()
        found = wait(list(busy), often)
        # A longer time is one for which this process itself was stopped.
        self.waited += min(time.monotonic() - began, 2 * often)
        for socket in found:
            hand = busy[socket]  # type: ignore[index]
            try:
                kind, answer, inputs = hand.worker.receive()
            except (EOFError, OSError):
                self._lose(hand)
                continue
            if kind == "error":
                raise answer
            if kind == "ready":
                hand.ready, hand.age = True, 0.0
                continue
            number = hand.batches.popleft()
            hand.finished += 1
            del self.batches[number]
            self.lone = None
            self.any_decoded = self.any_decoded or inputs is not None
            yield number, replace(answer, inputs=inputs)
        if self.waited >= often:
            self._look_after()

    def _look_after(self) -> None:
        for hand in [hand for hand in self.hands if hand.batches]:
            place = hand.worker.place()
            hand.age = hand.age + self.waited if place == hand.seen else 0.0
            hand.seen = place
            if hand.age > (self.timeout if hand.ready else max(self.timeout, ITEM_TIMEOUT)):
                self._lose(hand, in_time=False)
        self.waited = 0.0

    def _lose(self, hand: Hand, in_time: bool = True) -> None:
        """Go on without a hand: find out which input it was at, and what that means for it."""
        self.hands.remove(hand)
        self.lone = None
        self.todo.extendleft(reversed(hand.batches))
        place = hand.worker.place() or NOWHERE
        code = hand.worker.end()
        if not hand.ready:
            self.unready += 1
            if not in_time or self.unready == TRIES:
                raise self._not_ready(code, in_time)
            self._tell_replaced(code)
            return
        begun = max(place[0] - 1 - hand.finished, 0)
        number = hand.batches[min(begun, len(hand.batches) - 1)]
        items = self.batches[number].items
        at_one = place[0] > hand.finished and 0 <= place[1] < len(items)
        row = place[1] if at_one else None
        before = [self._key(number, one) for one in range(row or 0)]
        self.any_decoded = self.any_decoded or any(key not in self.known for key in before)
        key = number if row is None else self._key(number, row)
        self.strikes[key] += 1
        if in_time and self.strikes[key] < TRIES:
            self._tell_replaced(code)
            if self.strikes[key] == TRIES - 1:
                self.todo.remove(number)
                self.alone.append(number)
            return
        short = code == -signal.SIGKILL and self.free is not None and self.free < ENOUGH
        if row is None or (in_time and short):
            raise self._killed(code, in_time)
        if in_time:
            found: Exception = WorkerKilled(f"it ends the process that decodes it ({_told(code)})")
        else:
            found = TimedOut(f"not decoded within {self.timeout:g} s (--item-timeout)")
            found.in_stat = key in self.known
        self.known[key] = found
        log.warning("%s: %s: %s", items[row].id, type(found).__name__, found)
        if not self.any_decoded and len(self.known) >= FEWEST:
            raise self._killed(code, in_time)

    def _key(self, number: int, row: int) -> Hashable:
        """What ends a process: a file is one wherever it stands, with all its regions or spans.

        Texts of one manifest share their uri, and may share an id.
        """
        item = self.batches[number].items[row]
        if isinstance(item.content, str):
            return number, row
        if isinstance(item, Crop | Span):
            item = item.picture.item if isinstance(item, Crop) else item.recording.item
        return item.id, item.uri

    def _tell_replaced(self, code: int | None) -> None:
        log.warning(
            "a process that decodes %s was killed (%s) and is replaced; if memory is short, "
            "take fewer --workers", self.decoding.modality, _told(code),
        )  # fmt: skip

    def _killed(self, code: int | None, in_time: bool) -> SourceError:
        how = f"was killed: {_told(code)}" if in_time else f"gave nothing in {self.timeout:g} s"
        some = f"{len(self.known)} inputs, and none was decoded; " if self.known else ""
        return SourceError(
            f"a process that decodes {self.decoding.modality} {how}",
            fix=some + "run the command again, with fewer --workers if memory ran out, or a longer "
            "--item-timeout; finished parts are kept",
        )

    def _not_ready(self, code: int | None, in_time: bool) -> SourceError:
        seconds = max(self.timeout, ITEM_TIMEOUT)
        how = f"was killed: {_told(code)}" if in_time else f"not begun in {seconds:g} s"
        return SourceError(
            f"a process that decodes {self.decoding.modality} {how}",
            where=type(self.decoding).__module__,
            fix="look at what the encoder imports; --workers 0 does it in this process",
        )


def content_bytes(item: Item) -> int:
    """The encoded media that the item itself holds."""
    return len(item.content) if isinstance(item.content, bytes) else 0


def _content_bytes(batch: Batch) -> int:
    return sum(map(content_bytes, batch.items))


def _is_recorded(items: Sequence[Item], number: int) -> bool:
    """Whether region 0 stands for its picture, or the span before this one for its file."""
    item, before = items[number], items[number - 1] if number else None
    if isinstance(item, Span) and isinstance(before, Span):
        return before.recording is item.recording
    return isinstance(item, Crop) and item.number > 0


def _told(code: int | None) -> str:
    if code is None:
        return "by whom is not known"
    if code < 0:
        return signal.Signals(-code).name
    return f"it exited with {code}"
