"""More than two spaces in one: what was never bridged directly finds its own."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmcr.connect import connect, connect_chain, load_connection, read_config
from cmcr.embeddings import Dataset, Key, open_dataset
from cmcr.errors import MismatchError, UsageError

MakeDataset = Callable[..., Dataset]
LATENT, DIM = 5, 18
MODALITIES = {"hear": ("audio", "text"), "see": ("text", "image"), "feel": ("image", "pointcloud")}
SETTINGS = {
    "memory": ["unpaired"],
    "epochs": 10,
    "batch_size": 150,
    "joint_dim": DIM,
    "memory_temperature": 0.05,
    "bridge_temperature": 0.05,
    "pseudo_temperature": 0.05,
    "noise_variance": 0.01,
    "validation": 0,
}


@pytest.fixture(scope="module")
def whole_store(
    makers: Callable[[Path], MakeDataset], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """`hear` and `see` share captions, `see` and `feel` share photos; audio meets 3D nowhere."""
    folder = tmp_path_factory.mktemp("whole")
    make_dataset = makers(folder)
    random = np.random.default_rng(5)
    maps = {space: random.normal(size=(2, LATENT, DIM)) for space in MODALITIES}

    def make(space: str, modality: str, dataset: str, latent: np.ndarray) -> None:
        first, second = maps[space]
        offset = 0.5 * MODALITIES[space].index(modality)
        noise = 0.05 * random.normal(size=(len(latent), DIM))
        shown = np.tanh(latent @ first) + latent @ second + offset + noise
        make_dataset(
            f"{space}/{modality}:{dataset}", shown, id=[str(i) for i in range(len(latent))]
        )

    captions, photos, test = (random.normal(size=(rows, LATENT)) for rows in (500, 500, 120))
    for space in ("hear", "see"):
        make(space, "text", "captions", captions)
    for space in ("see", "feel"):
        make(space, "image", "photos", photos)
    for space, modality in (("hear", "audio"), ("see", "image"), ("feel", "pointcloud")):
        make(space, modality, "unpaired", random.normal(size=(300, LATENT)))
        make(space, modality, "test", test)
    return folder / "store"


@pytest.fixture
def store(whole_store: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(whole_store, tmp_path / "store")


def hit_rate(folder: Path, store: Path, one: str, other: str) -> float:
    """Share of the test items of `one` that find their own among the first five of 120."""
    chain = load_connection(folder)
    joined = []
    for place in (one, other):
        space, modality = place.split("/")
        dataset = open_dataset(store, Key(space, modality, "test"))  # type: ignore[arg-type]
        chain.check(space, dataset.encoder_identity)
        joined.append(chain.project(space, dataset.embeddings(), modality))  # type: ignore[arg-type]
    scores = joined[0] @ joined[1].T
    rank = (scores >= scores.diagonal()[:, None]).sum(dim=1)
    return (rank <= 5).float().mean().item()


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "c-mcr", "epochs": 40},
        {"method": "procrustes", "centre": True},
        {"method": "ex-mcr", "projector": "residual", "centre": True},
    ],
)
def test_a_pair_that_was_never_bridged_meets_in_the_joint_space(
    store: Path, settings: dict[str, Any]
) -> None:
    made = connect_chain(store, ["hear", "see", "feel"], SETTINGS | settings, name="all")
    assert made.bridges == ("see via text of hear", "feel via image of see")
    assert [space.name for space in made.record.spaces] == ["hear", "see", "feel"]
    assert hit_rate(made.path, store, "hear/audio", "feel/pointcloud") > 0.25  # chance: 0.042
    assert hit_rate(made.path, store, "hear/audio", "see/image") > 0.25
    again = connect_chain(store, ["hear", "see", "feel"], SETTINGS | settings, name="all")
    assert (made.fresh, again.fresh) == (True, False)
    norms = (
        load_connection(made.path).project("feel", torch.randn(9, DIM), "pointcloud").norm(dim=1)
    )
    torch.testing.assert_close(norms, torch.ones(9))


def test_a_chain_tells_of_the_datasets_of_its_own_spaces_alone(store: Path) -> None:
    told: list[Key] = []
    settings = SETTINGS | {"method": "procrustes"}
    made = connect_chain(store, ["hear", "see", "feel"], settings, name="all", opened=told.extend)
    assert set(told) == {
        Key("hear", "text", "captions"), Key("hear", "audio", "unpaired"),
        Key("see", "text", "captions"), Key("see", "image", "unpaired"),
        Key("feel", "image", "photos"), Key("feel", "pointcloud", "unpaired"),
    } == set(made.health)  # fmt: skip


def test_every_link_of_a_chain_may_choose_its_method(store: Path) -> None:
    settings = SETTINGS | {"method": "auto", "epochs": 1, "validation": 0.1}
    made = connect_chain(store, ["hear", "see", "feel"], settings, name="all")
    assert {name.partition(": ")[0] for name in made.methods} == {"link-1", "link-2"}
    assert {"link-1: procrustes", "link-1: cca", "link-2: cca"} <= made.methods.keys()


def test_spaces_that_share_nothing_are_refused(store: Path) -> None:
    with pytest.raises(UsageError, match="nothing connects feel with hear"):
        connect_chain(store, ["hear", "feel", "see"], SETTINGS, name="all")
    with pytest.raises(UsageError, match="nothing connects see with hear"):
        connect_chain(store, ["hear", "see", "feel"], SETTINGS | {"via": "audio"}, name="all")
    with pytest.raises(UsageError, match="named twice"):
        connect_chain(store, ["hear", "see", "hear"], SETTINGS, name="all")


def test_a_chain_refuses_what_is_not_of_it(store: Path) -> None:
    made = connect_chain(
        store, ["hear", "see", "feel"], SETTINGS | {"method": "procrustes"}, name="all"
    )
    chain = load_connection(made.path)
    with pytest.raises(MismatchError, match="between hear and see and feel, not of smell"):
        chain.project("smell", torch.randn(2, DIM))
    with pytest.raises(MismatchError, match="made for another 'hear'"):
        chain.check("hear", "0" * 64)
    with pytest.raises(MismatchError, match="embeddings of feel are"):
        chain.project("feel", torch.randn(2, DIM + 1))


def test_another_chain_of_that_name_is_refused_until_it_is_to_be_replaced(store: Path) -> None:
    plain = SETTINGS | {"method": "procrustes"}
    folder = connect_chain(store, ["hear", "see", "feel"], plain, name="all").path
    before = (folder / "config.json").read_bytes()
    centred = plain | {"centre": True}
    with pytest.raises(UsageError, match="centre: False → True"):
        connect_chain(store, ["hear", "see", "feel"], centred, name="all")
    with pytest.raises(UsageError, match="spaces: hear,see,feel → see,feel"):
        connect_chain(store, ["see", "feel"], plain, name="all")
    fields = {"spaces": ["hear", "see"], "via": "text", "train": ["captions"]}
    one = read_config(fields | {"method": "procrustes"})
    with pytest.raises(UsageError, match="it is a chain"):
        connect(store, one, name="all")
    assert (folder / "config.json").read_bytes() == before
    made = connect_chain(store, ["hear", "see", "feel"], centred, name="all", replace=True)
    assert "centre: False → True" in str(made)
    expected = connect_chain(store, ["hear", "see", "feel"], centred, name="other").path
    for link in ("link-1", "link-2"):
        assert load_connection(folder / link).record.config.centre
    x = torch.randn(4, DIM)
    torch.testing.assert_close(
        load_connection(folder).project("hear", x, "audio"),
        load_connection(expected).project("hear", x, "audio"),
    )
    assert not connect_chain(store, ["hear", "see", "feel"], centred, name="all").fresh
    assert not list(folder.glob(".new*"))


def test_a_chain_that_was_killed_goes_on_with_other_settings(store: Path) -> None:
    plain = SETTINGS | {"method": "procrustes"}
    folder = connect_chain(store, ["hear", "see", "feel"], plain, name="all").path
    (folder / "config.json").unlink()
    assert connect_chain(store, ["hear", "see", "feel"], plain | {"centre": True}, name="all").fresh
