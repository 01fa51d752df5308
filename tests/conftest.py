"""Shared by all tests: shapes are checked, and small encoders, media and stores are made."""

import os

os.environ["CMCR_CHECK_SHAPES"] = "1"  # before anything of cmcr is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shell import Demo, process
from torch import Tensor

from cmcr.embeddings import Dataset, Key, Modality, import_embeddings
from cmcr.files import locked, write_json

# Tests that run side by side have a core each.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--demo",
        type=lambda folder: Path(folder).resolve(),
        help="keep the store of `cmcr run digits` in this folder, and take it from there",
    )


class Bytes:
    """An encoder of 8 dimensions for any modality: a fixed random map of a few statistics."""

    name = "bytes"
    modalities: frozenset[Modality] = frozenset(["audio", "image", "pointcloud", "text"])
    dim = 8
    device = torch.device("cpu")

    def __init__(self, checkpoint: str = "0" * 64) -> None:
        self.checkpoint = checkpoint
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(16, self.dim, generator=generator)

    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "encoder": self.name,
            "checkpoint_sha256": self.checkpoint,
            "preprocessing": "bytes",
            "libraries": {"torch": torch.__version__},
        }

    def preprocess(self, modality: Modality, item: Any) -> Tensor:
        if modality == "text":
            data = np.frombuffer(item.encode(), dtype=np.uint8).astype(np.float32)
        elif modality == "audio":
            data = item.samples.ravel()
        else:
            data = np.asarray(item, dtype=np.float32).ravel()
        return torch.from_numpy(np.resize(data, 16) + np.float32(1e-3))

    def encode(self, modality: Modality, batch: Tensor) -> Tensor:
        return torch.nn.functional.normalize(batch @ self.weight, dim=-1)


@pytest.fixture(scope="session")
def demo(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Demo:
    """Do not write into its store: copy it."""
    base = tmp_path_factory.getbasetemp()
    kept = pytestconfig.getoption("--demo")
    folder = kept or (base if worker_id == "master" else base.parent) / "demo"
    told = folder / "demo.json"
    with locked(folder / "lock", wait=True):
        if not told.exists():
            started = time.perf_counter()
            done = process("run", "digits", "--store", folder / "store", "--json")
            seconds = time.perf_counter() - started
            assert done.returncode == 0, done.stderr
            write_json(told, {"rows": json.loads(done.stdout)["results"], "seconds": seconds})
    content = json.loads(told.read_text(encoding="utf-8"))
    return Demo(folder / "store", content["rows"], content["seconds"])


def axes_of(vectors: np.ndarray) -> np.ndarray:
    """A map by the two axes that the vectors (items, dim) spread over most: (items, 2)."""
    centred = vectors.astype(np.float32) - vectors.mean(axis=0, dtype=np.float32)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    points: np.ndarray = centred @ np.resize(axes, (2, axes.shape[1])).T
    return points


@pytest.fixture(scope="session", autouse=True)
def as_they_are() -> Iterator[Mapping[Any, Any]]:
    """Figures are coarse and their maps no t-SNE, which takes seconds; what they are in truth.

    Commands that are processes draw as they do for users, and so do tests with `true_figures`.
    """
    from cmcr.evaluate.figures import joint_space, style

    quick = {(joint_space, "embed_2d"): axes_of, (style, "DPI"): 50}
    with pytest.MonkeyPatch.context() as patch:
        before = {place: getattr(*place) for place in quick}
        for place, it in quick.items():
            patch.setattr(*place, it)
        yield before


@pytest.fixture
def true_figures(as_they_are: Mapping[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for place, it in as_they_are.items():
        monkeypatch.setattr(*place, it)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Batches of a few rows lose more by waiting for a second thread than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def encoder() -> Bytes:
    return Bytes()


@pytest.fixture(scope="session")
def makers() -> Callable[[Path], Callable[..., Dataset]]:
    """For a folder what `make_dataset` is for that of a test."""

    def maker(folder: Path) -> Callable[..., Dataset]:
        def make(
            place: str, array: np.ndarray, store: Path | None = None, **columns: list[Any]
        ) -> Dataset:
            import pyarrow as pa
            import pyarrow.parquet as pq

            space, rest = place.split("/")
            modality, dataset = rest.split(":")
            arrays = folder / "arrays"
            arrays.mkdir(exist_ok=True)
            name = place.replace("/", "-").replace(":", "-")
            np.save(arrays / f"{name}.npy", array)
            metadata = None
            if columns:
                metadata = arrays / f"{name}.parquet"
                pq.write_table(pa.table(columns), metadata)
            return import_embeddings(
                store or folder / "store",
                Key(space, modality, dataset),  # type: ignore[arg-type]
                arrays / f"{name}.npy",
                metadata,
                index=None,
            )

        return make

    return maker


@pytest.fixture
def make_dataset(
    makers: Callable[[Path], Callable[..., Dataset]], tmp_path: Path
) -> Callable[..., Dataset]:
    """Write an array as a dataset of the store `tmp_path / "store"`."""
    return makers(tmp_path)
