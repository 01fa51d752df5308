"""Parts made by actors on Ray: what travels are numbers, the bytes are those of the local engine.

    engine = RayEngine(partial(load_encoder, "clip"), actors=8)
    extract(store, encoder, open_source("image", "photos.plan.parquet"), "photos", engine=engine)

An actor is a process with the encoder and decoding workers of its own. It is handed the number of a
part, reads that row group of the plan, goes through the same loop as `engine/local.py`, writes the
part into the store, which all hosts see, and answers how many rows and failures there are. Neither
media nor vectors enter the object store, and Ray restarts nothing by itself: an actor that died, or
showed no progress for too long, is replaced here, and its part is made by another. A part that ends
`TRIES` actors ends the run.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from cmcr.embeddings.parts import part_contents, part_name
from cmcr.errors import CmcrError, EncoderError, UsageError
from cmcr.extract.encoders.registry import Encoder
from cmcr.extract.engine.local import Job, count_made, make_parts, stop, too_many
from cmcr.extract.engine.summary import Summary
from cmcr.extract.engine.workers import workers_kept
from cmcr.files import sha256_file
from cmcr.progress import progress

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle
    from ray.exceptions import RayTaskError

log = logging.getLogger(__name__)

TRIES = 3  # actors that a part may cost, or that may end in a row before they have begun
_TOLD_AFTER = 60.0  # seconds without an actor
_LOOKED_AFTER = 5.0  # seconds between two looks at actors that are at work


class Made(NamedTuple):
    """What an actor answers about a part: nothing that grows with it."""

    part: int
    rows: int
    failures: int
    sha256: str
    truncated: int
    seconds: dict[str, float]


class Maker:
    """What runs in an actor. It is there at once, so that `pulse` answers while `begin` loads."""

    def __init__(self, load: Callable[[], Encoder], job: Job, threads: int) -> None:
        self.load, self.job, self.threads = load, job, threads
        self.summary = Summary(job.description.key, job.folder)
        self.kept = ExitStack()

    def begin(self) -> None:
        """Load the encoder. Raises EncoderError for other weights than the job's."""
        torch.set_num_threads(self.threads)
        job, encoder = self.job, self.load()
        told = encoder.fingerprint().get("checkpoint_sha256")
        if told != job.description.encoder.get("checkpoint_sha256"):
            raise EncoderError(
                f"this host has other weights of {encoder.name} than the one that began",
                where=job.folder,
                fix="have the same checkpoint on all hosts",
            )
        self.job = replace(job, encoder=encoder)
        self.kept.enter_context(workers_kept())

    def make(self, part: int) -> Made:
        """Make one part, by the loop of one machine."""
        torch.set_num_threads(self.threads)  # of this thread: it may change the last bits
        self.summary = summary = Summary(self.job.description.key, self.job.folder)
        make_parts(replace(self.job, mine=range(part, part + 1)), summary, max_failures=1.0)
        sha256 = sha256_file(self.job.folder / part_name(part))
        return Made(part, summary.rows, summary.failures, sha256, summary.truncated,
                    summary.seconds)  # fmt: skip

    def pulse(self) -> float:
        """Changes as long as something is done; asked for while `make` is at work."""
        return sum(self.summary.seconds.values())


@dataclass(eq=False)
class Hand:
    """An actor, what it was asked for last, and when it last showed that it lives."""

    actor: "ActorHandle"
    waiting: "ObjectRef"
    placed: bool = False  # it has a host
    part: int | None = None  # None until it has begun
    pulse: float = -1.0
    seen: float = field(default_factory=time.monotonic)
    asked: "ObjectRef | None" = None  # for its pulse


@dataclass(frozen=True)
class RayEngine:
    """Makes parts by `actors` actors of a Ray cluster, one that runs already or one of its own.

    `load` gives the encoder, on the actor's host. `actors` 0 means one a GPU of the cluster, where
    the encoder is on one, else one. Actors that wait for a host join as it comes: autoscalers see
    what they ask for. One that shows no progress for `patience` seconds is lost; 0 means four times
    what a single input may take.
    """

    load: Callable[[], Encoder]
    actors: int = 0
    patience: float = 0.0

    def __call__(self, job: Job, summary: Summary, max_failures: float) -> None:
        """Make the parts of `job.mine` that are not there yet.

        Raises UsageError without Ray or a plan, EncoderError where actors do not begin or a part
        ends several of them, SourceError where more than `max_failures` failed.
        """
        ray = _ray()
        if job.source.part is None:
            raise UsageError(
                "Ray makes the parts of a plan",
                where=job.source.description["where"],
                fix="`cmcr plan` makes one of this source",
            )
        left = deque(count_made(job, summary))
        if not left:
            return
        own = not ray.is_initialized()
        if own:
            _join(ray)
        pool = _Pool(self, job, len(left))
        try:
            with progress(str(summary.key), job.source.total, "rows") as advance:
                advance(summary.rows + summary.failures)
                for made in pool.work(left):
                    log.info("part %d: %d rows, %d failures, %s", *made[:4])
                    summary.made += made.rows
                    summary.rows += made.rows
                    summary.truncated += made.truncated
                    for stage, seconds in made.seconds.items():
                        summary.seconds[stage] += seconds
                    if made.failures:
                        summary.fail(part_contents(job.folder / part_name(made.part))[1])
                    advance(made.rows + made.failures)
                    if left and too_many(summary, max_failures):
                        left.clear()
                        summary.finished = False
        finally:
            pool.end()
            if own:
                ray.shutdown()
        if not summary.finished:
            stop(job, summary, max_failures)


class _Pool:
    """Actors that are begun, watched and replaced."""

    def __init__(self, engine: RayEngine, job: Job, parts: int) -> None:
        ray = _ray()
        self.ray = ray
        on_gpu = job.encoder.device.type == "cuda"
        there = ray.cluster_resources()
        wanted = engine.actors or (int(there.get("GPU", 0)) if on_gpu else 1) or 1
        self.size = min(wanted, parts)
        self.patience = engine.patience or 4 * job.item_timeout
        self.cpus, self.gpus = max(job.workers, 1), int(on_gpu)
        self.kind = ray.remote(
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            max_restarts=0,
            max_task_retries=0,
            concurrency_groups={"pulse": 1},
        )(Maker)
        # The driver's encoder stays here: every actor loads its own.
        sent = replace(job, encoder=None, folder=job.folder.absolute())  # type: ignore[arg-type]
        self.given = engine.load, ray.put(sent), torch.get_num_threads()
        self.hands: list[Hand] = []
        self.strikes: Counter[int] = Counter()
        self.unready = 0  # that ended before they had begun, since the last that did begin

    def work(self, left: deque[int]) -> Iterator[Made]:
        """The parts in `left` as they are made; what is taken out of it meanwhile is not."""
        looked = told = time.monotonic()
        while True:
            busy = sum(hand.part is not None for hand in self.hands)
            while len(self.hands) < min(self.size, len(left) + busy):
                self._hire()
            if not left and not busy:
                return
            if not busy and time.monotonic() - told > _TOLD_AFTER:
                told = time.monotonic()
                log.warning("no actor has begun yet; the cluster has %s", self._there())
            waiting = {hand.waiting: hand for hand in self.hands}
            done, _ = self.ray.wait(list(waiting), timeout=_LOOKED_AFTER)
            for answer in done:
                hand = waiting[answer]
                try:
                    made = self.ray.get(answer)
                except self.ray.exceptions.RayTaskError as error:
                    if hand.part is None:
                        self._lose(hand, left, _reason(error))
                        continue
                    raise (error.cause if isinstance(error.cause, CmcrError) else error) from None
                except self.ray.exceptions.RayError as error:  # it died, or its host did
                    self._lose(hand, left, _last_line(error))
                    continue
                hand.seen = time.monotonic()
                if not hand.placed:
                    self._begin(hand)
                    continue
                if hand.part is None:
                    self.unready = 0
                else:
                    hand.part = None
                    yield made
                if left:
                    hand.part = left.popleft()
                    hand.waiting = hand.actor.make.remote(hand.part)
                else:
                    self._dismiss(hand)
            if time.monotonic() - looked >= min(_LOOKED_AFTER, self.patience / 4):
                looked = time.monotonic()
                self._look_after(left)

    def _there(self) -> str:
        """What the cluster has, and what an actor asks for."""
        has = self.ray.cluster_resources()
        told = [f"{has.get(name, 0):g} {name}" for name in ("CPU", "GPU")]
        return f"{' and '.join(told)}, an actor asks for {self.cpus} and {self.gpus}"

    def _hire(self) -> None:
        actor = self.kind.remote(*self.given)
        self.hands.append(Hand(actor, actor.pulse.options(concurrency_group="pulse").remote()))

    def _begin(self, hand: Hand) -> None:
        hand.placed = True
        hand.waiting = hand.actor.begin.remote()

    def _look_after(self, left: deque[int]) -> None:
        """Ask those with a host whether they do anything; who does not for too long is lost."""
        for hand in [hand for hand in self.hands if hand.placed]:
            if hand.asked is None:
                hand.asked = hand.actor.pulse.options(concurrency_group="pulse").remote()
            if self.ray.wait([hand.asked], timeout=0)[0]:
                try:
                    pulse = self.ray.get(hand.asked)
                except self.ray.exceptions.RayError:
                    pulse = hand.pulse  # what it was asked for first tells
                if pulse != hand.pulse:
                    hand.pulse, hand.seen = pulse, time.monotonic()
                hand.asked = None
            if time.monotonic() - hand.seen > self.patience:
                self._lose(hand, left, f"no progress for {self.patience:g} s")

    def _lose(self, hand: Hand, left: deque[int], why: str) -> None:
        self._dismiss(hand)
        log.warning("an actor was lost at part %s: %s", hand.part, why)
        if hand.part is None:
            self.unready += 1
            if self.unready >= TRIES:
                raise EncoderError(f"{TRIES} actors ended before they had begun, the last: {why}")
            return
        self.strikes[hand.part] += 1
        if self.strikes[hand.part] >= TRIES:
            raise EncoderError(
                f"part {hand.part} ended {TRIES} actors, the last: {why}",
                fix="Ray's logs say more; `cmcr extract` without --engine ray makes it here",
            )
        left.append(hand.part)

    def _dismiss(self, hand: Hand) -> None:
        self.hands.remove(hand)
        self.ray.kill(hand.actor)

    def end(self) -> None:
        """Let no actor stay."""
        for hand in list(self.hands):
            self._dismiss(hand)


def _join(ray: Any) -> None:
    """Join the cluster that runs here or at RAY_ADDRESS, or start one on this machine."""
    try:
        ray.init(include_dashboard=False, log_to_driver=False)
    except Exception as error:  # it has no class of its own
        raise EncoderError(
            f"Ray cannot be started or reached: {_last_line(error)}",
            fix="start it with `ray start --head`; RAY_ADDRESS says where one runs",
        ) from error


def _reason(error: "RayTaskError") -> str:
    cause = error.cause
    return cause.what if isinstance(cause, CmcrError) else _last_line(error)


def _last_line(error: Exception) -> str:
    """What an error of Ray's ends with, after a traceback and but for what is indented."""
    said = [line for line in str(error).splitlines() if line.strip() and not line[0].isspace()]
    return said[-1].partition(". Some common causes")[0] if said else type(error).__name__


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UsageError("Ray is not installed", fix="pip install 'cmcr[ray]'") from error
    return ray
