"""What no client sees: decoding that hangs or dies, and which inputs leave in one batch."""

import asyncio
import errno
import io
import os
import signal
import time
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Bytes
from served import Moody
from shell import Demo
from torch import Tensor

from cmcr.embeddings import Key, Modality, open_dataset
from cmcr.embeddings.search.places import OwnSpace, Place
from cmcr.errors import CmcrError
from cmcr.extract import Decoding, Item
from cmcr.extract.engine.workers import GIVING_WAY
from cmcr.serve import decoding
from cmcr.serve.batching import Batcher
from cmcr.serve.decoding import Decoders, Work
from cmcr.serve.gallery import Galleries
from cmcr.serve.limits import Gate, Limits
from cmcr.serve.schemas import ServiceError


def cloud(points: int) -> Item:
    rows = "\n".join(f"{number} {number % 2} 1" for number in range(points))
    return Item("input", "input.xyz", rows.encode())


def test_an_input_that_hangs_or_kills_costs_itself_alone() -> None:
    encoder = Moody()
    decoders = Decoders(Work({"moody": encoder}, Limits(item=1.0), []), 1, ["served"])

    async def one(points: int) -> str:
        try:
            await decoders.prepare("moody", "pointcloud", cloud(points))
        except ServiceError as error:
            return f"{error.status} {error.code}"
        return "decoded"

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*map(one, (3, 4, 3, 5, 3)))

    try:
        began = time.monotonic()
        told = asyncio.run(all_of_them())
        assert told == ["decoded", "400 TimedOut", "decoded", "400 WorkerKilled", "decoded"]
        assert time.monotonic() - began < 30
        text = asyncio.run(decoders.prepare("moody", "text", Item("", "", "a text")))
        torch.testing.assert_close(text, encoder.preprocess("text", "a text"))
        process = decoders.idle.get()
        assert process is not None
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == GIVING_WAY  # the encoder is first
        decoders.idle.put(process)
        os.kill(process.pid, signal.SIGKILL)  # by somebody else: no input is blamed
        assert asyncio.run(one(3)) == "decoded"
    finally:
        decoders.close()


def test_a_process_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    decoders = Decoders(Work({"moody": Moody()}, Limits(item=1.0), []), 1, ["served"])
    try:
        for code in ("WorkerKilled", "no_worker", None):
            with monkeypatch.context() as patch:
                if code == "no_worker":
                    patch.setattr(decoding, "start_worker", refuse)
                points = 5 if code == "WorkerKilled" else 3
                prepared = decoders.prepare("moody", "pointcloud", cloud(points))
                if code is None:
                    assert len(asyncio.run(prepared)) == 16
                else:
                    with pytest.raises(ServiceError) as refused:
                        asyncio.run(prepared)
                    assert refused.value.code == code
    finally:
        decoders.close()


def refuse(imports: Any) -> Any:
    raise CmcrError("no process can be started")


def test_long_sound_is_refused_by_its_header() -> None:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.zeros(700 * 1_000, np.float32), 1_000, format="FLAC")
    work = Work({"moody": Moody()}, Limits(), [])
    item = Item("input", "input.flac", file.getvalue())
    answer, _ = work(("prepare", "moody", "audio", item), lambda number: None)
    assert answer[2] == "700 s of sound, 600 are the most"


def test_too_many_points_are_refused() -> None:
    work = Work({"moody": Moody()}, Limits(points=100), [])
    answer, tensor = work(("prepare", "moody", "pointcloud", cloud(101)), lambda number: None)
    assert tensor is None
    assert answer[2] == "101 points, 100 are the most"


class Slow(Bytes):
    """Says what came in one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[str, list[float]]] = []

    def encode(self, modality: Modality, batch: Tensor) -> Tensor:
        self.batches.append((modality, batch[:, 0].tolist()))
        time.sleep(0.05)
        return super().encode(modality, batch)


def test_a_batch_leaves_when_the_encoder_is_idle_with_what_is_most_alike() -> None:
    encoder = Slow()

    async def run() -> list[np.ndarray]:
        batcher = Batcher(encoder, most=3)
        batcher.begin()
        waiting = []
        # The first is alone; of what comes meanwhile the oldest goes with its nearest in length.
        for length in (5, 50, 9, 52, 8, 51):
            row = torch.full((16,), float(length))
            waiting.append(asyncio.ensure_future(batcher.embed("text", row, length)))
            await asyncio.sleep(0.005)
        sound = asyncio.ensure_future(batcher.embed("audio", torch.ones(16)))
        gone = asyncio.ensure_future(batcher.embed("text", torch.full((16,), 7.0), 7))
        await asyncio.sleep(0)
        gone.cancel()
        found = await asyncio.gather(*waiting)
        await sound
        await batcher.end()
        return found

    found = asyncio.run(run())
    told = [(modality, sorted(rows)) for modality, rows in encoder.batches]
    assert told == [("text", [5]), ("text", [50, 51, 52]), ("text", [8, 9]), ("audio", [1])]
    assert all(len(vector) == encoder.dim for vector in found)


def test_an_encoder_that_fails_fails_its_batch_and_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failing(Bytes):
        def encode(self, modality: Modality, batch: Tensor) -> Tensor:
            if modality == "audio":
                raise RuntimeError("/secret/path")
            return torch.full((len(batch), self.dim), float("nan"))

    async def run() -> list[Any]:
        batcher = Batcher(Failing(), most=3)
        batcher.begin()
        both = (batcher.embed("audio", torch.ones(16)), batcher.embed("text", torch.ones(16)))
        told = await asyncio.gather(*both, return_exceptions=True)
        await batcher.end()
        return told

    sound, text = asyncio.run(run())
    assert (sound.status, text.status, text.code) == (500, 400, "not_finite")
    assert "secret" not in sound.message
    assert "/secret/path" in caplog.text  # whoever runs the server is told


def test_the_gate_counts_inputs_and_tells_when_to_come() -> None:
    gate = Gate(4)
    with gate.entered(3):
        with pytest.raises(ServiceError) as refused, gate.entered(2):
            raise AssertionError
        assert refused.value.status == 429
        assert int((refused.value.headers or {})["Retry-After"]) >= 1
        with gate.entered(1):
            assert gate.inside == 4
    assert gate.inside == 0
    with gate.entered(9):  # nothing else is in work: it would never fit
        pass


@pytest.mark.parametrize("shape", [(3_000_000, 3), (40, 1_000_000)])
def test_an_array_of_too_many_points_is_refused_by_its_header(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.BytesIO()
    np.savez_compressed(file, points=np.zeros(shape, np.float32))
    work = Work({"moody": Moody()}, Limits(), [])
    monkeypatch.setattr(Decoding, "decode", lambda *_: pytest.fail("it was decoded"))
    item = Item("input", "input.npz", file.getvalue())
    told, _ = work(("prepare", "moody", "pointcloud", item), lambda _: None)
    assert told[2].endswith("points, 2,000,000 are the most")


def test_a_gallery_is_kept_while_there_is_room_for_it(
    demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(shape: tuple[int, ...]) -> np.ndarray:
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp")

    dataset = open_dataset(demo.store, Key("digits-clip", "image", "handwriting-test"))
    rows, own = np.arange(3, dataset.rows), OwnSpace(demo.store)
    plain = torch.cat(list(Place(dataset, rows).blocks(own)))
    size = dataset.rows * dataset.dim * 4
    galleries = Galleries(2 * size)
    for called in ("a", "b", "a", "c"):
        kept = galleries.place(dataset, rows, called, own)
        assert torch.equal(torch.cat(list(kept.blocks(own))), plain)
    assert [name[2] for name in galleries.kept] == ["a", "c"]
    none = Galleries(size - 1)
    assert torch.equal(torch.cat(list(none.place(dataset, rows, "a", own).blocks(own))), plain)
    few = galleries.place(dataset, rows[:9], "d", own)
    assert torch.equal(torch.cat(list(few.blocks(own))), plain[:9])
    monkeypatch.setattr("cmcr.serve.gallery.room_for", no_room)
    full = Galleries(2 * size)
    assert torch.equal(torch.cat(list(full.place(dataset, rows, "a", own).blocks(own))), plain)
    assert not none.kept
    assert not full.kept
    assert "d" not in [name[2] for name in galleries.kept]
