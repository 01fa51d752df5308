"""`cca` is what its formula says, is saved and read again, and leaves older connections alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from cmcr.connect import ConnectConfig, baselines, connect, load_connection, read_config
from cmcr.connect.methods import cca as cca_module
from cmcr.connect.methods import closed_forms
from cmcr.connect.methods.cca import covariance
from cmcr.connect.methods.solve import STRENGTHS
from cmcr.embeddings import Dataset, Key, open_dataset
from cmcr.errors import StoreError, UsageError
from cmcr.files import sha256_file

pytestmark = pytest.mark.usefixtures("one_thread")

MakeDataset = Callable[..., Dataset]
PAIRS, DIMS = 90, {"see": 12, "hear": 9}
OTHER = {"see": "image", "hear": "audio"}


@pytest.fixture(scope="module")
def whole_store(
    makers: Callable[[Path], MakeDataset], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Two spaces of unequal dim and uneven spread."""
    folder = tmp_path_factory.mktemp("whole")
    make_dataset = makers(folder)
    random = np.random.default_rng(0)
    said, shown = random.normal(size=(PAIRS, 6)), random.normal(size=(200, 6))
    for space, dim in DIMS.items():
        spread = np.arange(1, dim + 1) ** -0.7
        seen = random.normal(size=(6, dim))
        noise = 0.3 * spread * random.normal(size=(PAIRS, dim))
        ids = [str(row) for row in range(PAIRS)]
        make_dataset(f"{space}/text:captions", said @ seen + noise, id=ids)
        offset, stress = 2 * random.normal(size=dim), np.exp(random.normal(size=dim))
        make_dataset(f"{space}/{OTHER[space]}:memory", shown @ seen * stress + offset)
    return folder / "store"


@pytest.fixture
def store(whole_store: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(whole_store, tmp_path / "store")


def config(**settings: Any) -> ConnectConfig:
    section = {"via": "text", "spaces": ["see", "hear"], "train": ["captions"],
               "memory": ["memory"], "method": "cca"}  # fmt: skip
    return read_config(section | settings)


def embeddings(store: Path, place: str) -> np.ndarray:
    space, modality, dataset = place.replace(":", "/").split("/")
    key = Key(space, modality, dataset)  # type: ignore[arg-type]
    return open_dataset(store, key).embeddings().astype(np.float64)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def restated(store: Path, memory: bool = True) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """The formula of `cca` in NumPy: what takes SPACE/MODALITY into the joint space."""
    whitened: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
    for space, dim in DIMS.items():
        for modality, dataset in (("text", "captions"), (OTHER[space], "memory")):
            own = modality == "text" or memory
            x = unit(embeddings(store, f"{space}/{modality if own else 'text'}:"
                                       f"{dataset if own else 'captions'}"))  # fmt: skip
            z = unit(x - x.mean(axis=0))
            cov = np.cov(z.T, bias=True)
            values, vectors = np.linalg.eigh(0.5 * cov + 0.5 * np.trace(cov) / dim * np.eye(dim))
            a = vectors @ np.diag(values**-0.25) @ vectors.T
            mean = x.mean(axis=0) if own else np.zeros(dim)
            whitened[f"{space}/{modality}"] = lambda y, m=mean, a=a: unit(unit(unit(y) - m) @ a)
    one, two = (whitened[f"{s}/text"](embeddings(store, f"{s}/text:captions")) for s in DIMS)
    u, s, vt = np.linalg.svd(one.T @ two / PAIRS, full_matrices=False)
    f = (s / s[0]) ** 0.25
    sides = {"see": u * f, "hear": vt.T * f}
    weights = {place: sides[place.partition("/")[0]] for place in whitened}
    return {
        place: lambda y, into=into, w=weights[place]: unit(into(y) @ w)
        for place, into in whitened.items()
    }


@pytest.mark.parametrize("memory", [True, False])
def test_cca_is_what_its_formula_says(
    store: Path, memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (cca_module, closed_forms):
        monkeypatch.setattr(module, "CACHED_ROWS", 17)
    monkeypatch.setattr(cca_module, "STRIP", 5)
    made = connect(store, config(memory=["memory"] if memory else []), name="a")
    connection, expected = load_connection(made.path), restated(store, memory)
    assert (made.record.model, made.record.joint_dim, made.record.held_out) == ("cca", 9, 0)
    joint, wanted = {}, {}
    for place, project in expected.items():
        space, modality = place.split("/")
        dataset = "captions" if modality == "text" else "memory"
        x = embeddings(store, f"{place}:{dataset}")
        joint[place] = connection.project(space, x, modality).double().numpy()  # type: ignore[arg-type]
        wanted[place] = project(x)
    for one in ("see/text", "see/image"):
        for two in ("hear/text", "hear/audio"):
            np.testing.assert_allclose(
                joint[one] @ joint[two].T, wanted[one] @ wanted[two].T, rtol=0, atol=2e-5
            )


def test_a_covariance_streams_and_does_not_hang_on_lengths() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 7)) * np.arange(1, 8)
    mean = unit(x).mean(axis=0)
    expected = np.cov(unit(unit(x) - mean).T, bias=True)
    blocks = [x[:1], 3 * x[1:120], x[120:].astype(np.float32)]
    found = covariance(blocks, torch.from_numpy(mean).float())
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)


def test_fewer_pairs_than_dimensions(store: Path, make_dataset: MakeDataset) -> None:
    for space in DIMS:
        x = embeddings(store, f"{space}/text:captions")[:4]
        make_dataset(f"{space}/text:few", x, id=[str(row) for row in range(4)])
    connection = load_connection(connect(store, config(train=["few"]), name="a").path)
    one, two = (
        connection.project(space, embeddings(store, f"{space}/text:few"), "text") for space in DIMS
    )
    assert (one @ two.T).argmax(dim=1).tolist() == [0, 1, 2, 3]
    for projector in connection.projectors:  # type: ignore[union-attr]
        weight = projector.head.weight  # (joint, D), of which no pair speaks of the last
        assert weight[:2].abs().amax(dim=1).min() > 0.1
        assert not weight[4:].any()


def test_ex_cca_leaves_space_2_and_its_indexes_as_they_are(store: Path) -> None:
    """Texts of space 1 find their own in a plain index of space 2."""
    made = connect(store, config(method="ex-cca"), name="a")
    assert (made.record.model, made.record.joint_dim) == ("ex-cca", DIMS["hear"])
    connection = load_connection(made.path)
    text, image = embeddings(store, "see/text:captions"), embeddings(store, "see/image:memory")
    index = unit(embeddings(store, "hear/text:captions"))
    np.testing.assert_allclose(connection.project("hear", 3 * index), index, atol=1e-6)
    found = (connection.project("see", text, "text").numpy() @ index.T).argmax(axis=1)
    assert np.mean(found == np.arange(PAIRS)) > 0.2  # chance: 0.01
    # No row of space 2 is ahead of the others whatever is searched with.
    means = connection.project("see", image, "image").numpy() @ index.mean(axis=0)
    np.testing.assert_allclose(means, 0, atol=1e-6)


def test_a_modality_without_rows_of_its_own_has_the_bridges_covariance_and_no_mean(
    store: Path,
) -> None:
    connection = load_connection(connect(store, config(), name="a").path)
    x = embeddings(store, "see/image:memory")
    text, image, cloud = (connection.project("see", x, m) for m in ("text", "image", "pointcloud"))
    projector = connection.projectors[0]  # type: ignore[attr-defined]
    units = torch.nn.functional.normalize(torch.from_numpy(x).float())
    expected = projector.head(torch.nn.functional.normalize(units @ projector.whitenings["text"]))
    torch.testing.assert_close(cloud, torch.nn.functional.normalize(expected))
    assert not cloud.allclose(image)
    assert not cloud.allclose(text)
    with pytest.raises(UsageError, match="none was named"):
        connection.project("see", x)


def test_without_a_memory_pictures_find_sounds_all_the_same(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    """The way from texts to pictures is in no row: by the texts' mean they would find a hub."""
    random = np.random.default_rng(1)
    said, shown = random.normal(size=(300, 6)), random.normal(size=(100, 6))
    ids = [str(row) for row in range(300)]
    found = {}
    for space, dim in {"see": 40, "hear": 32}.items():
        seen = random.normal(size=(6, dim))
        here, there = random.normal(size=(2, dim))
        texts = said @ seen + here + 0.5 * random.normal(size=(300, dim))
        make_dataset(f"{space}/text:captions", texts, id=ids)
        found[space] = shown @ seen + (there if space == "see" else here)
    store = tmp_path / "store"
    fields = {"via": "text", "spaces": ["see", "hear"], "train": ["captions"], "validation": 0}
    first = {}
    for method in ("cca", "procrustes"):
        made = connect(store, read_config(fields | {"method": method}), name=method)
        connection = load_connection(made.path)
        picture = connection.project("see", found["see"], "image")
        scores = picture @ connection.project("hear", found["hear"], "text").T
        first[method] = (scores.argmax(dim=1) == torch.arange(100)).float().mean()
    assert first["cca"] > 0.5
    assert first["cca"] >= first["procrustes"]


def test_the_record_and_the_weights_hold_a_matrix_for_each_modality(store: Path) -> None:
    folder = connect(store, config(), name="a").path
    first, second = json.loads((folder / "config.json").read_text())["spaces"]
    assert (first["whitened"], second["whitened"]) == (["text", "image"], ["text", "audio"])
    weights = load_file(folder / "model.safetensors")
    assert weights["whitening_A.image"].shape == (12, 12)
    assert weights["whitening_B.audio"].shape == (9, 9)
    assert "by its own covariance: text, image" in (folder / "README.md").read_text()
    plain = connect(store, config(method="procrustes"), name="b").path
    assert "whitened" not in (plain / "config.json").read_text()

    weights["whitening_A.image"] = weights["whitening_A.image"][:5]
    save_file(weights, folder / "model.safetensors")
    record = json.loads((folder / "config.json").read_text())
    record["model_sha256"] = sha256_file(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(record))
    with pytest.raises(StoreError, match=r"whitening_A\.image"):
        load_connection(folder)


def test_cca_stands_beside_every_connection(store: Path) -> None:
    made = connect(store, config(method="ridge"), name="a")
    beside = baselines(store, made.record)["cca"]
    own = load_connection(connect(store, config(), name="b").path)
    x = embeddings(store, "hear/audio:memory")
    torch.testing.assert_close(beside.project("hear", x, "audio"), own.project("hear", x, "audio"))


def test_ridge_takes_the_strength_that_its_pairs_want(store: Path) -> None:
    made = connect(store, config(method="ridge", centre=True), name="a").record
    assert made.requested.ridge_strength is None
    tried = {strength: connect(store, config(method="ridge", centre=True, ridge_strength=strength),
                               name=str(strength)).record.validation["log_likelihood"]
             for strength in STRENGTHS}  # fmt: skip
    assert made.config.ridge_strength == max(tried, key=lambda strength: tried[strength])
    assert made.validation["log_likelihood"] == pytest.approx(max(tried.values()))
