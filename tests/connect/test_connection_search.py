"""Searching through a connection by vectors, in a synthetic world where the truth is known.

pytest tests/connect/test_connection_search.py
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cmcr.connect import JointSpace, connect, load_connection, read_config
from cmcr.embeddings import Dataset, Key
from cmcr.errors import MismatchError, UsageError

MakeDataset = Callable[..., Dataset]

LATENT, DIM, ROWS = 12, 32, 900


@pytest.fixture
def store(make_dataset: MakeDataset, tmp_path: Path) -> Path:
    """Concepts that two spaces see through random networks, each modality with an offset."""
    random = np.random.default_rng(0)
    sizes = {"captions": 500, "pictures": ROWS, "sounds": ROWS, "test": 300}
    concepts = {name: random.standard_normal((rows, LATENT)) for name, rows in sizes.items()}

    def see(place: str, name: str) -> None:
        own = np.random.default_rng(len(place.partition("/")[0]))
        first, second = own.standard_normal((LATENT, 64)), own.standard_normal((64, DIM))
        seen = np.tanh(concepts[name] @ first / LATENT**0.5) @ second / 8
        offset = np.random.default_rng(len(place.partition(":")[0])).standard_normal(DIM)
        noise = 0.15 * random.standard_normal(seen.shape)
        ids = [f"{name}-{row}" for row in range(len(seen))]
        make_dataset(f"{place}:{name}", seen + 0.3 * offset + noise, id=ids)

    for place, names in (("see/text", ["captions"]), ("hear/text", ["captions"]),
                         ("see/image", ["pictures", "test"]),
                         ("hear/audio", ["sounds", "test"])):  # fmt: skip
        for name in names:
            see(place, name)
    return tmp_path / "store"


@pytest.fixture
def connection(store: Path) -> JointSpace:
    fields = {"via": "text", "spaces": ["see", "hear"], "train": ["captions"], "method": "ridge",
              "memory": ["pictures", "sounds"]}  # fmt: skip
    return load_connection(connect(store, read_config(fields), name="joint").path)


def test_what_belongs_together_is_found(store: Path, connection: JointSpace) -> None:
    sounds = Dataset.embeddings(_test_of(store))
    found = connection.search(
        store, sounds, ["see/image:test"], space="hear", modality="audio", k=10
    )
    ranks = [[hit.item["id"] for hit in hits].index(f"test-{row}") if
             f"test-{row}" in [hit.item["id"] for hit in hits] else 10
             for row, hits in enumerate(found)]  # fmt: skip
    assert np.mean(np.array(ranks) < 10) > 0.5
    joint = connection.project("hear", sounds, "audio")
    items = connection.project("see", _test_of(store, "see/image:test").embeddings(), "image")
    np.testing.assert_allclose(
        [hits[0].cosine for hits in found], (joint @ items.T).max(dim=1).values, atol=1e-5
    )


def _test_of(store: Path, place: str = "hear/audio:test") -> Dataset:
    from cmcr.embeddings import open_dataset

    return open_dataset(store, Key.parse(place))


@pytest.mark.parametrize("asked", [0.05, 0.01])
def test_the_rate_of_false_positives_is_what_comes(
    store: Path, connection: JointSpace, asked: float
) -> None:
    sounds = _test_of(store).embeddings()
    found = connection.search(
        store, sounds, ["see/image:test"], space="hear", modality="audio", k=300,
        false_positives=asked,
    )  # fmt: skip
    wrong = sum(hit.item["id"] != f"test-{row}" for row, hits in enumerate(found) for hit in hits)
    assert wrong / (300 * 299) == pytest.approx(asked, rel=0.2)


def test_what_was_not_made_for_it_is_refused(
    store: Path, connection: JointSpace, make_dataset: MakeDataset
) -> None:
    make_dataset("feel/image:other", np.eye(DIM))
    vectors = np.ones((1, DIM))
    with pytest.raises(MismatchError, match="between see and hear"):
        connection.search(store, vectors, ["feel/image:other"], space="hear", modality="audio")
    with pytest.raises(MismatchError, match="between see and hear"):
        connection.search(store, vectors, ["see/image:test"], space="feel", modality="image")
    with pytest.raises(UsageError, match="no dataset see/image:tests") as error:
        connection.search(store, vectors, ["see/image:tests"], space="hear", modality="audio")
    assert "did you mean see/image:test" in str(error.value.fix)
