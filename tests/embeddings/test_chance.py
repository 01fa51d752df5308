"""Shares, rates of false positives and searches of several datasets, against restatements.

pytest tests/embeddings/test_chance.py
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from cmcr.embeddings import Dataset, Key, build_index
from cmcr.embeddings.search.chance import Sample, false_positives, log_shares, unrelated_scores
from cmcr.embeddings.search.mixed import Hit, Query, search_places
from cmcr.embeddings.search.places import OwnSpace, open_places
from cmcr.errors import UsageError

MakeDataset = Callable[..., Dataset]
PHOTOS, TEXTS = Key("eye", "image", "photos"), Key("eye", "text", "texts")


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.integers(0, 99))
def test_shares_count_the_sample_and_fall_off_exponentially_beyond_it(rows: int, seed: int) -> None:
    sample = drawn(1, rows, seed=seed)
    asked = np.sort(np.concatenate([drawn(1, 40, seed=seed + 1), [[2.5, 4.0, 9.0]]], axis=1))
    logs = log_shares(asked.astype(np.float32), sample)
    assert (np.diff(logs[0]) <= 1e-9).all()  # the higher the score, the smaller the share
    ordered = np.sort(sample[0].astype(np.float64))[::-1]  # descending
    tail = min(max(10, int(np.ceil(0.02 * rows))), rows - 1)
    begins = ordered[tail]
    for score, log in zip(asked[0].astype(np.float32), logs[0], strict=True):
        if score <= begins:
            expected = ((sample[0] >= score).sum() + 0.5) / (rows + 0.5)
        else:
            scale = (ordered[:tail] - begins).mean() if tail else 1
            expected = max(tail, 1) / rows * np.exp(-(float(score) - begins) / scale)
        assert log == pytest.approx(np.log(expected), abs=1e-4)


def test_related_pairs_are_no_false_positives() -> None:
    keys = [{("label", "dog"), ("id", "a", "0")}, {("group", "g"), ("id", "a", "1")},
            {("id", "a", "2")}]  # fmt: skip
    others = [{("label", "dog"), ("id", "b", "0")}, {("label", "cat"), ("group", "g")},
              {("id", "a", "2")}, {("id", "b", "1")}]  # fmt: skip
    queries = Sample(torch.from_numpy(drawn(3, 4)), [frozenset(one) for one in keys], [])
    sample = Sample(torch.from_numpy(drawn(4, 4, seed=1)), [frozenset(one) for one in others], [])
    scores = (queries.vectors @ sample.vectors.T).numpy()
    unrelated = [(0, 1), (0, 2), (0, 3), (1, 0), (1, 2), (1, 3), (2, 0), (2, 1), (2, 3)]
    chance = unrelated_scores(queries, sample, lambda own: (own @ sample.vectors.T).numpy())
    np.testing.assert_array_equal(chance, np.sort([scores[pair] for pair in unrelated]))
    rates = false_positives(np.array([chance[-1] + 1, chance[-1], chance[0] - 1]), chance)
    np.testing.assert_allclose(rates, [0.1, 0.2, 1.0])


@pytest.fixture
def store(make_dataset: MakeDataset, tmp_path: Path) -> Path:
    """One space: photos in two datasets, texts, and sounds that lie nearer to every text."""
    texts = drawn(80, 8, seed=3)
    make_dataset(str(TEXTS), texts, label=[str(row % 4) for row in range(80)])
    labels = [str(row % 4) for row in range(60)]
    make_dataset(str(PHOTOS), drawn(60, 8, seed=4), label=labels, take=labels[::-1])
    make_dataset("eye/image:more", drawn(30, 8, seed=5))
    make_dataset("eye/audio:sounds", drawn(50, 8, seed=6) + 3 * texts.mean(axis=0))
    return tmp_path / "store"


def ask(store: Path, vectors: np.ndarray, places: list[str], **options: object) -> list[list[Hit]]:
    queries = [Query(vector, {("eye", "text"): 1.0})
               for vector in normalize(torch.from_numpy(vectors), dim=1)]  # fmt: skip
    where = options.pop("where", {})
    found = open_places(store, [Key.parse(place) for place in places], where)  # type: ignore[arg-type]
    return search_places(store, OwnSpace(store), queries, found, **options)  # type: ignore[arg-type]


def test_one_kind_is_ranked_by_cosine_over_all_its_datasets(store: Path) -> None:
    vectors = drawn(5, 8, seed=7)
    found = ask(store, vectors, ["eye/image:photos", "eye/image:more"], k=7)
    own = OwnSpace(store)
    places = open_places(store, [PHOTOS, Key("eye", "image", "more")], {})
    gallery = torch.cat([block for place in places for block in place.blocks(own)])
    cosines = (normalize(torch.from_numpy(vectors), dim=1).double() @ gallery.double().T).numpy()
    for hits, row in zip(found, cosines, strict=True):
        best = np.argsort(-row)[:7]
        names = [(hit.dataset.rpartition(":")[2], hit.item["id"]) for hit in hits]
        assert names == [("photos", str(at)) if at < 60 else ("more", str(at - 60)) for at in best]
        np.testing.assert_allclose([hit.cosine for hit in hits], row[best], atol=1e-6)
        assert [hit.rank for hit in hits] == list(range(1, 8))


def test_rows_are_chosen_by_their_columns(store: Path) -> None:
    vectors = drawn(2, 8, seed=7)
    every = ask(store, vectors, ["eye/image:photos"], k=60)
    some = ask(store, vectors, ["eye/image:photos"], k=60, where={"label": ["1"], "take": ["2"]})
    for whole, chosen in zip(every, some, strict=True):
        ids = [hit.item["id"] for hit in whole if hit.item["label"] == ["1"]]
        wanted = [name for name in ids if (59 - int(name)) % 4 == 2]
        assert [hit.item["id"] for hit in chosen] == wanted
        assert wanted
    with pytest.raises(UsageError, match="no column 'lable'") as unknown:
        ask(store, vectors, ["eye/image:photos"], where={"lable": ["1"]})
    assert "did you mean label" in str(unknown.value.fix)
    with pytest.raises(UsageError, match="no row of eye/image:photos has label=9"):
        ask(store, vectors, ["eye/image:photos"], where={"label": ["9"]})


def test_an_index_gives_what_an_exact_search_gives(store: Path, make_dataset: MakeDataset) -> None:
    from cmcr.embeddings import open_dataset

    vectors = drawn(4, 8, seed=8)
    build_index(open_dataset(store, PHOTOS), "Flat")
    exact, fast = (
        ask(store, vectors, ["eye/image:photos"], k=70, index=on) for on in (False, True)
    )
    for one, other in zip(exact, fast, strict=True):
        assert [hit.row for hit in one] == [hit.row for hit in other]
        np.testing.assert_allclose(
            [hit.cosine for hit in one], [hit.cosine for hit in other], atol=1e-3
        )


def test_the_nearest_kind_does_not_fill_the_first_page(store: Path) -> None:
    hits = ask(store, drawn(40, 8, seed=9), ["eye/image:photos", "eye/audio:sounds"], k=10)
    share = np.mean([hit.dataset == str(PHOTOS) for own in hits for hit in own])
    assert abs(share - 60 / 110) < 0.1
    for own in hits:
        assert np.all(np.diff([hit.share for hit in own]) >= 0)


def test_the_rate_of_unrelated_items_is_what_is_asked_for(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vectors = drawn(300, 8, seed=10)
    found = ask(store, vectors, ["eye/image:photos", "eye/image:more"], k=90, most_false=0.05)
    assert "a share of 0.05 is not known from 80 unrelated rows" in caplog.text
    accepted = sum(map(len, found)) / (300 * 90)
    assert accepted == pytest.approx(0.05, rel=0.2)
    with pytest.raises(UsageError, match="cannot tell a share of 1e-09"):
        ask(store, vectors[:1], ["eye/image:photos"], most_false=1e-9)
    (hits,) = ask(store, vectors[:1], ["eye/image:photos"], k=60)
    assert {hit.least_known for hit in hits} == {10 / 80}  # of the texts, fewer than of photos
    known = [hit.as_dict()["false_positives_known"] for hit in hits]
    assert known == [(hit.false_positives or 0) >= 10 / 80 for hit in hits]
    assert not known[0]
    assert known[-1]
    bare = [Query(torch.ones(8) / 8**0.5, {("eye", "pointcloud"): 1.0})]
    places = open_places(store, [PHOTOS], {})
    (hits,) = search_places(store, OwnSpace(store), bare, places, k=1)
    assert hits[0].false_positives is None
    with pytest.raises(UsageError, match="nothing tells how often") as nothing:
        search_places(store, OwnSpace(store), bare, places, most_false=0.1)
    assert nothing.value.where
    assert "without --false-positives" in str(nothing.value.fix)


def test_several_kinds_in_one_query_and_hubs_corrected(store: Path) -> None:
    vector = normalize(torch.from_numpy(drawn(8, seed=11)), dim=0)
    query = Query(vector, {("eye", "text"): 1.0, ("eye", "audio"): 3.0})
    places = open_places(store, [PHOTOS], {})
    own = OwnSpace(store)
    (hits,) = search_places(store, own, [query], places, k=60, hubness="nnn")
    (gallery,) = places[0].blocks(own)
    r = torch.zeros(60, dtype=torch.float64)
    for key, share in ((TEXTS, 0.25), (Key("eye", "audio", "sounds"), 0.75)):
        (bank,) = open_places(store, [key], {})[0].blocks(own)
        cosines = gallery.double() @ bank.double().T
        r += share * cosines.topk(5, dim=1).values.mean(dim=1)
    scores = (2 * gallery.double() @ vector.double() - r).numpy()
    assert [hit.row for hit in hits] == np.argsort(-scores).tolist()
    np.testing.assert_allclose([hit.score for hit in hits], -np.sort(-scores), atol=1e-5)
    assert hits[0].cosine == pytest.approx(float(gallery[hits[0].row] @ vector), abs=1e-5)
    assert all(0 < hit.false_positives <= 1 for hit in hits if hit.false_positives is not None)
    assert hits[0].false_positives is not None
