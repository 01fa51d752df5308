"""Nearest Neighbor Normalization against a float64 restatement, and what a bank holds.

pytest tests/embeddings/test_hubness.py
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from cmcr.embeddings import Dataset, Key
from cmcr.embeddings.inventory import Input, write_inputs
from cmcr.embeddings.search.hubness import K, correction, open_bank, with_correction, with_one
from cmcr.errors import UsageError

MakeDataset = Callable[..., Dataset]


def unit(*shape: int, seed: int = 0) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def plain(space: str, block: np.ndarray, modality: str) -> Tensor:
    return normalize(torch.from_numpy(block.astype(np.float32)), dim=1)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 7), st.integers(0, 99))
def test_r_is_the_mean_of_the_largest_cosines_in_whatever_blocks(
    items: int, rows: int, size: int, seed: int
) -> None:
    gallery, bank = unit(items, 6, seed=seed), unit(rows, 6, seed=seed + 100)
    cosines = gallery.double().numpy() @ bank.double().numpy().T  # (items, rows)
    expected = np.sort(cosines, axis=1)[:, -K:].mean(axis=1)
    found = correction(gallery, bank.split(size))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_the_inner_product_is_the_score() -> None:
    import faiss

    queries, gallery = unit(9, 6, seed=1), unit(30, 6, seed=2)
    r = correction(gallery, [unit(50, 6, seed=3)])
    products = 2 * with_one(queries) @ with_correction(gallery, r).T
    expected = 2 * queries.double() @ gallery.double().T - r.double()
    torch.testing.assert_close(products.double(), expected, atol=1e-6, rtol=0)
    index = faiss.IndexFlatIP(7)
    index.add(with_correction(gallery, r).numpy())
    scores, rows = index.search(with_one(queries).numpy(), 30)
    np.testing.assert_array_equal(rows[:, 0], expected.argmax(dim=1).numpy())
    np.testing.assert_allclose(2 * scores, np.sort(expected.numpy())[:, ::-1], atol=1e-6)


def test_a_hub_stops_answering_every_query() -> None:
    """One item lies in the middle of all queries, nearer to each than its own."""
    middle = unit(64, seed=5)
    queries = normalize(unit(40, 64, seed=4) + middle, dim=1)
    own = normalize(queries + 0.135 * torch.randn(40, 64, generator=torch.manual_seed(6)), dim=1)
    gallery = torch.cat([own, middle[None]])
    bank = normalize(unit(200, 64, seed=7) + middle, dim=1)
    truth = torch.arange(40)
    raw = (queries @ gallery.T).argmax(dim=1)
    corrected = with_one(queries) @ with_correction(gallery, correction(gallery, [bank])).T
    assert (raw == 40).float().mean() > 0.5
    assert (corrected.argmax(dim=1) == truth).float().mean() > 0.9


def test_a_bank_holds_no_item_that_is_searched_for(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    for place, seed in (("ear/audio:sounds", 0), ("ear/audio:more", 1)):
        rows = np.random.default_rng(seed).standard_normal((6, 4))
        make_dataset(place, rows, id=[str(row) for row in range(6)])
    keys = [Key("ear", "audio", "sounds"), Key("ear", "audio", "more"), Key("ear", "audio", "gone")]
    elsewhere = Key("other", "audio", "sounds")  # the same items through another encoder
    bank = open_bank(store, keys, [(elsewhere, ["0", "4"]), (Key("ear", "text", "more"), ["1"])])
    rows = {"ear/audio:sounds": 4, "ear/audio:more": 6}
    assert bank.summary == {"k": 5, "rows": rows, "left_out": 2}
    sounds = next(iter(bank.blocks(plain)))
    expected = plain("ear", bank.parts[0][0].embeddings()[[1, 2, 3, 5]], "audio")
    torch.testing.assert_close(sounds, expected)
    for name, contents in (("sounds", "abcdef"), ("more", "ghaijk")):  # one lies in both
        inputs = [Input(str(row), "", 1, 1, content) for row, content in enumerate(contents)]
        write_inputs(Key("ear", "audio", name).folder(store), 0, inputs)
    bank = open_bank(store, keys, [(keys[0], ["0", "4"])])
    assert bank.summary["rows"] == {"ear/audio:sounds": 4, "ear/audio:more": 5}
    assert list(bank.parts[1][1]) == [0, 1, 3, 4, 5]
    with pytest.raises(UsageError, match="none of ear/audio:sounds is left") as error:
        open_bank(store, keys[:1], [(keys[0], [str(row) for row in range(6)])])
    assert error.value.where
    assert "--memory" in str(error.value.fix)
    with pytest.raises(UsageError, match="made from none of the query's modality"):
        open_bank(store, [])
