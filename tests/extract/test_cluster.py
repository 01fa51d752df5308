"""Parts made by actors: the bytes of one machine, whatever dies meanwhile.

Ray itself takes long to start on few cores, so `make stress` starts it (tests/faults/on_ray.py).
Here threads stand for its actors: calls, answers and deaths are those that Ray gives.
"""

import itertools
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Bytes
from torch import Tensor

from cmcr.embeddings import Modality
from cmcr.errors import EncoderError, SourceError, UsageError
from cmcr.extract import Encoder, RayEngine, Source, extract, open_source, write_plan
from cmcr.files import sha256_file

OPTIONS: dict[str, Any] = {"workers": 0, "index": None, "batch_size": 4}


class RayError(Exception):
    """An actor, or its host, is gone."""


class RayTaskError(RayError):
    """What an actor raised."""

    cause: Exception


class Actor:
    """One that dies, or is silent, at the calls that `faults` names by their number."""

    def __init__(self, ray: "Ray", kind: type, given: tuple[Any, ...]) -> None:
        self.ray, self.pending, self.dead = ray, set[Future](), False
        self.thread = ThreadPoolExecutor(1)
        self.made = self.thread.submit(kind, *given)

    def __getattr__(self, name: str) -> Any:
        called = SimpleNamespace(remote=lambda *given: self.call(name, given))
        called.options = lambda **_: called
        return called

    def call(self, name: str, given: tuple[Any, ...]) -> Future:
        answer: Future = Future()
        self.pending.add(answer)
        fault = self.ray.faults.get(next(self.ray.calls)) if name == "make" else None
        if name == "pulse" and self.made.done() and not self.made.exception():
            answer.set_result(self.made.result().pulse())  # not in the thread that is at work
        else:
            self.thread.submit(self.work, name, given, answer, fault)
        return answer

    def work(self, name: str, given: tuple[Any, ...], answer: Future, fault: str | None) -> None:
        try:
            maker = self.made.result()
        except Exception as error:
            answer.set_exception(RayError(f"it did not begin\n{error}"))
            return
        if fault == "silent":
            return
        if fault != "before":
            try:
                result = getattr(maker, name)(*given)
            except Exception as error:
                told = RayTaskError()
                told.cause = error
                answer.set_exception(told)
                return
        if fault is None and not self.dead:
            answer.set_result(result)
        elif not answer.done():
            self.dead = True
            answer.set_exception(RayError("the actor died"))


class Ray:
    """`import ray`, as far as it is used."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, faults: Mapping[int, str]) -> None:
        self.faults, self.calls, self.actors = faults, itertools.count(), list[Actor]()
        self.ended = False

    def is_initialized(self) -> bool:
        return False

    def init(self, **_: Any) -> None:
        pass

    def shutdown(self) -> None:
        self.ended = True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def put(self, value: Any) -> Any:
        return value

    def get(self, answer: Future) -> Any:
        return answer.result(timeout=0)

    def wait(self, answers: list[Future], timeout: float) -> tuple[list[Future], list[Future]]:
        done, rest = wait_for(answers, timeout, FIRST_COMPLETED)
        return list(done)[:1], list(rest)

    def kill(self, actor: Actor) -> None:
        actor.dead = True
        actor.thread.shutdown(wait=False)

    def remote(self, **_: Any) -> Callable[[type], Any]:
        def kind(wrapped: type) -> Any:
            def begin(*given: Any) -> Actor:
                self.actors.append(Actor(self, wrapped, given))
                return self.actors[-1]

            return SimpleNamespace(remote=begin)

        return kind


@pytest.fixture
def planned(tmp_path: Path) -> Source:
    """Ten parts of five texts."""
    (tmp_path / "t.txt").write_text("".join(f"a text of {number}\n" for number in range(50)))
    write_plan(tmp_path / "t.plan.parquet", open_source("text", str(tmp_path / "t.txt")), 5)
    return open_source("text", str(tmp_path / "t.plan.parquet"))


def parts(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.glob("part-*.parquet")}


def run(
    monkeypatch: pytest.MonkeyPatch,
    store: Path,
    source: Source,
    faults: Mapping[int, str],
    engine: RayEngine,
    **options: Any,
) -> tuple[Any, Ray]:
    ray = Ray(faults)
    monkeypatch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
    try:
        return extract(store, Bytes(), source, "t", engine=engine, **OPTIONS | options), ray
    finally:
        assert ray.ended
        assert all(actor.dead for actor in ray.actors)


FAULTS: dict[str, Mapping[int, str]] = {
    "nothing": {},
    "an actor dies before it has written its part": {1: "before", 5: "before"},
    "an actor dies when it has, and cannot say so": {2: "after"},
    "an actor is silent": {3: "silent"},
}


@pytest.mark.parametrize("what", FAULTS)
def test_actors_make_the_bytes_of_one_machine_whatever_happens_to_them(
    what: str, planned: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmcr.extract.cluster.actors._LOOKED_AFTER", 0.05)
    one = extract(tmp_path / "one", Bytes(), planned, "t", **OPTIONS)
    engine = RayEngine(Bytes, actors=2, patience=0.3)
    many, ray = run(monkeypatch, tmp_path / "many", planned, FAULTS[what], engine)
    assert (many.rows, many.made, many.finished) == (one.rows, one.made, True)
    assert parts(many.folder) == parts(one.folder)
    assert len(ray.actors) == 2 + len(FAULTS[what])


def test_a_part_that_ends_three_actors_ends_the_run_and_the_rest_is_kept(
    planned: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = RayEngine(Bytes, actors=1)
    every = dict.fromkeys(range(9, 99), "before")
    with pytest.raises(EncoderError, match="part 9 ended 3 actors, the last: the actor died"):
        run(monkeypatch, tmp_path, planned, every, engine)
    assert len(list(tmp_path.rglob("part-*.parquet"))) == 9
    many, ray = run(monkeypatch, tmp_path, planned, {}, RayEngine(Bytes))
    assert many.finished
    assert next(ray.calls) == 1  # one part was left


class Choosy(Bytes):
    """Its vectors of texts that begin with a zero byte are no numbers."""

    def encode(self, modality: Modality, batch: Tensor) -> Tensor:
        vectors = super().encode(modality, batch)
        vectors[batch[:, 0] < 1] = torch.nan
        return vectors


def test_a_part_without_one_good_input_is_failures_as_on_one_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = tmp_path / "t.tsv"
    marks = ["\0" if number // 16 == 10 else "" for number in range(320)]
    texts = (f"{mark}a text of {number}" for number, mark in enumerate(marks))
    lines.write_text("\n".join(["text", *texts, ""]))
    write_plan(tmp_path / "t.plan.parquet", open_source("text", str(lines)), 16)
    source = open_source("text", str(tmp_path / "t.plan.parquet"))
    options = OPTIONS | {"batch_size": 16, "max_failures": 0.1}
    one = extract(tmp_path / "one", Choosy(), source, "t", **options)
    ray = Ray({})
    monkeypatch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
    engine = RayEngine(Choosy, actors=1)
    many = extract(tmp_path / "many", Choosy(), source, "t", engine=engine, **options)
    assert (one.rows, one.failures) == (many.rows, many.failures) == (304, 16)
    assert parts(one.folder) == parts(many.folder)
    options |= {"num_shards": 10, "max_failures": 0.6}
    shard = extract(tmp_path / "shard", Choosy(), source, "t", **options)
    assert (shard.rows, shard.failures) == (16, 16)


def test_an_actor_that_hangs_before_it_has_begun_is_replaced(
    planned: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmcr.extract.cluster.actors._LOOKED_AFTER", 0.05)
    leave, first = threading.Event(), itertools.count()

    def load() -> Encoder:
        if next(first) == 0:
            leave.wait(10)
        return Bytes()

    try:
        many, ray = run(monkeypatch, tmp_path, planned, {}, RayEngine(load, 1, patience=0.3))
    finally:
        leave.set()
    assert many.finished
    assert len(ray.actors) == 2


def test_actors_that_never_begin_are_not_hired_for_ever_while_another_makes_parts(
    planned: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = itertools.count()

    def load() -> Encoder:
        if next(loaded) > 0:
            time.sleep(0.15)  # a part is made meanwhile
            raise RuntimeError("this host has no weights")
        return Slow()

    with pytest.raises(EncoderError, match="3 actors ended before they had begun"):
        run(monkeypatch, tmp_path, planned, {}, RayEngine(load, actors=2))
    assert next(loaded) == 4


class Slow(Bytes):
    """It takes some time over a batch."""

    def encode(self, modality: Modality, batch: Tensor) -> Tensor:
        time.sleep(0.05)
        return super().encode(modality, batch)


def test_what_an_actor_cannot_do_is_told_as_one_machine_tells_it(
    planned: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EncoderError, match=r"3 actors ended before they had begun.*other weights"):
        run(monkeypatch, tmp_path, planned, {}, RayEngine(lambda: Bytes("1" * 64)))
    lines = tmp_path / "empty.tsv"
    lines.write_text("text\tn\n" + "\t1\n" * 5 + "a text\t2\n" * 15)
    write_plan(tmp_path / "e.plan.parquet", open_source("text", str(lines)), 5)
    source = open_source("text", str(tmp_path / "e.plan.parquet"))
    with pytest.raises(SourceError, match=r"5 of 5 inputs could not be embedded"):
        run(monkeypatch, tmp_path / "e", source, {}, RayEngine(Bytes, actors=1))
    with pytest.raises(UsageError, match="Ray makes the parts of a plan"):
        extract(tmp_path / "e", Bytes(), open_source("text", str(lines)), "u",
                engine=RayEngine(Bytes))  # fmt: skip
