"""What matches where there are neither labels nor groups, and what is said where nothing does.

pytest tests/evaluate/test_truth.py
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from cmcr.connect import connect, load_connection, read_config
from cmcr.embeddings import Dataset, Key, open_dataset
from cmcr.errors import CmcrError
from cmcr.evaluate import (
    Evaluated,
    IndexChoice,
    Items,
    evaluate_gap,
    evaluate_index,
    evaluate_retrieval,
    parse_budget,
    results_table,
    select,
    weak_spots,
)
from cmcr.evaluate.inputs.items import check_pair
from cmcr.evaluate.ranking.hubs import chance_hubs, hub_metrics, most_found
from cmcr.evaluate.results import rows_of_connection

pytestmark = pytest.mark.usefixtures("one_thread")

SOUNDS, PHOTOS = "ear/audio:sounds", "eye/image:photos"
MEANING = np.random.default_rng(0).normal(size=(60, 8))
TURN = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0]
Make = Callable[..., Dataset]


def noisy(vectors: np.ndarray, seed: int) -> np.ndarray:
    return vectors + 0.2 * np.random.default_rng(seed).normal(size=vectors.shape)


@pytest.fixture
def world(make_dataset: Make, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Sounds and photos of the 60 meanings, `columns` of each, in two connected spaces.

    Nothing is drawn: figures are tested elsewhere.
    """
    monkeypatch.setattr("cmcr.evaluate.tasks.retrieval._draw", lambda *_: [])

    def make(
        photos: np.ndarray = MEANING,
        sound_columns: dict[str, list] | None = None,
        photo_columns: dict[str, list] | None = None,
    ) -> Path:
        ids = [f"t{row}" for row in range(60)]
        make_dataset("eye/text:texts", noisy(MEANING, 2), id=ids)
        made = make_dataset("ear/text:texts", noisy(MEANING, 3) @ TURN, id=ids)
        make_dataset(SOUNDS, noisy(MEANING, 4) @ TURN, **(sound_columns or {}))
        make_dataset(PHOTOS, noisy(photos, 5), **(photo_columns or {}))
        names = [f"meaning {row % 20}" for row in range(60)]
        make_dataset("ear/audio:heard", noisy(MEANING, 6) @ TURN, label=names)
        make_dataset("eye/image:seen", noisy(MEANING, 7), label=names)
        store = made.folder.parents[2]
        fields = {"spaces": ["eye", "ear"], "via": "text", "train": ["texts"], "method": "ridge",
                  "ridge_strength": 0.01, "memory": ["heard", "seen"]}  # fmt: skip
        connect(store, read_config(fields), name="made")
        return store

    return make


def retrieve(store: Path, query: str = SOUNDS, gallery: str = PHOTOS, **options) -> Evaluated:
    return evaluate_retrieval(
        store, store / "connections/made", Key.parse(query), Key.parse(gallery), **options
    )


def both(store: Path, *places: str) -> list[Items]:
    return [select(open_dataset(store, Key.parse(place))) for place in places or (SOUNDS, PHOTOS)]


def truth_of(store: Path, *places: str) -> str:
    return check_pair([], *both(store, *places)).truth


def test_paired_arrays_without_metadata_are_evaluated_row_by_row(world: Make) -> None:
    store = world()
    done = retrieve(store)
    assert {row["truth"] for row in done.rows} == {"id"}
    assert {row["task"] for row in done.rows} == {"retrieval"}
    there, back = rows_of_connection(done.rows)
    assert there["metrics"]["hit_rate@1"] > 0.9
    assert back["metrics"]["hit_rate@1"] > 0.9
    assert there["metrics"]["gallery_size"] == 60
    assert there["metrics"]["queries_without_match"] == 0
    assert there["intervals"]["mAP"]
    assert "per_class" in there  # there are no classes, and no line of one
    assert not there["per_class"]
    assert not retrieve(store).fresh
    match = pq.read_table(done.folder / "neighbours.parquet", partitioning=None)
    for line in match.to_pylist():
        assert line["match"] == (line["query_id"] == line["gallery_id"])
    gap = evaluate_gap(store, store / "connections/made", *map(Key.parse, (SOUNDS, PHOTOS)))
    assert {row["truth"] for row in gap.rows} == {"id"}
    assert all("alignment" in row["metrics"] for row in gap.rows)


def test_ids_that_are_names_pair_what_shares_them(world: Make) -> None:
    names = [f"clip-{row}" for row in range(60)]
    store = world(MEANING[30:], {"id": names}, {"id": names[30:]})
    there, _ = rows_of_connection(retrieve(store).rows)
    assert there["truth"] == "id"
    assert there["unmatched"]["queries"] == 30
    assert there["metrics"]["hit_rate@1"] > 0.9


def test_row_numbers_of_unequal_datasets_are_no_truth(world: Make) -> None:
    """As of five captions a picture: row 3 of the one has nothing to do with row 3 of the other."""
    assert truth_of(world(MEANING[:12])) == ""


def test_labels_and_groups_count_before_equal_ids(world: Make) -> None:
    labels, groups = [str(row % 5) for row in range(60)], [f"g{row // 2}" for row in range(60)]
    store = world(MEANING, {"label": labels}, {"label": labels, "group": groups})
    matches = check_pair([], *both(store))
    assert matches.truth == "label"  # the ids are row numbers on both sides
    assert set(matches.counts()) == {12}
    assert check_pair([], *both(store)[::-1]).truth == "label"


def test_labels_on_one_side_alone_leave_equal_ids_a_chance(world: Make) -> None:
    assert truth_of(world(MEANING, {"label": [str(row % 5) for row in range(60)]})) == ""


def test_labels_of_other_names_are_a_mistake(world: Make) -> None:
    with pytest.raises(CmcrError, match="no query has a match"):
        truth_of(world(MEANING, {"label": ["cat"] * 60}, {"label": ["dog"] * 60}))


@pytest.fixture
def unknown(world: Make) -> Path:
    """Photos of two meanings and eight more of one, of which nothing says what shows what."""
    return world(np.concatenate([MEANING[:12], np.tile(MEANING[:1], (8, 1))]))


def test_without_truth_it_says_how_the_search_spreads(unknown: Path) -> None:
    done = retrieve(unknown)
    assert {row["task"] for row in done.rows} == {"hubs"}
    assert {row["truth"] for row in done.rows} == {"none"}
    chance, *_, there = [row for row in done.rows if row["query"] == SOUNDS]
    assert chance["model"] == "chance"
    assert there["model"] == "ridge"
    metrics = there["metrics"]
    assert (metrics["queries"], metrics["gallery_size"]) == (60, 20)
    assert metrics["coverage@10"] == 1 - metrics["antihubs@10"]
    assert 0 < metrics["coverage@1"] <= metrics["coverage@5"] <= metrics["coverage@10"] <= 1
    assert 0 <= metrics["distance"] < 1
    table = pq.read_table(done.folder / "neighbours.parquet", partitioning=None)
    found = [line for line in table.to_pylist() if line["query"] == SOUNDS]
    assert len(found) == 60 * 10
    assert table["match"].null_count == len(table)
    counts = dict.fromkeys(map(str, range(20)), 0)
    for line in found:
        counts[line["gallery_id"]] += 1
    hubs = there["hubs"]
    assert {hub["id"]: hub["found"] for hub in hubs}.items() <= counts.items()
    assert hubs[0]["found"] == max(counts.values()) == metrics["top_hub@10"] * 60
    assert metrics["antihubs@10"] == sum(not often for often in counts.values()) / 20
    assert not (done.folder / "per-query.parquet").exists()
    assert not retrieve(unknown).fresh
    assert "hubs, and how many queries have them" in weak_spots(done.rows)


def test_corrected_hubs_without_truth(unknown: Path) -> None:
    rows = [row for row in retrieve(unknown, hubness="nnn").rows
            if row["model"] == "ridge" and row["query"] == SOUNDS]  # fmt: skip
    plain, corrected = rows
    assert corrected["hubness"] == "nnn"
    assert corrected["metrics"]["distance"] == plain["metrics"]["distance"]
    assert corrected["metrics"]["skewness@10"] < plain["metrics"]["skewness@10"]


def test_what_share_of_unrelated_pairs_scores_as_high_as_the_median_match(world: Make) -> None:
    store = world()
    connection = load_connection(store / "connections/made")
    heard, seen = (
        connection.project(key.space, open_dataset(store, key).embeddings(), key.modality)
        .numpy().astype(np.float64)
        for key in map(Key.parse, ("ear/audio:heard", "eye/image:seen"))
    )  # fmt: skip
    other = np.arange(60)[:, None] % 20 != np.arange(60) % 20
    unrelated = (heard @ seen.T)[other]
    sounds, photos = (items.projected(connection).numpy().astype(np.float64)
                      for items in both(store))  # fmt: skip
    median = np.median((sounds * photos).sum(axis=1))
    expected = ((unrelated >= median).sum() + 1) / (len(unrelated) + 1)
    rows = retrieve(store).rows
    for row in rows:
        if row["model"] == "ridge":
            assert row["metrics"]["false_positives"] == pytest.approx(expected, abs=1.5 / 3000)
            assert expected < row["false_positives_unknown_below"] == pytest.approx(10 / 60)
        else:
            assert "false_positives" not in row["metrics"]
    console = Console(width=100)
    with console.capture() as capture:
        console.print(results_table(rows))
    told = " ".join(capture.get().split())
    assert "of unrelated pairs score as high as the median match by ridge (not known: so" in told
    assert "no share below 0.17" in told
    assert "a match has the same id" in capture.get()


def test_without_unpaired_rows_nothing_is_said_of_unrelated_pairs(unknown: Path) -> None:
    shutil.rmtree(Key.parse("ear/audio:heard").folder(unknown))
    rows = retrieve(unknown, "ear/text:texts", "eye/text:texts").rows
    assert "false_positives" in rows[-1]["metrics"]  # the bridge is unpaired within a space
    found = retrieve(unknown, SOUNDS, "eye/text:texts").rows
    assert not any("false_positives" in row["metrics"] for row in found)


def test_every_query_has_a_line(world: Make) -> None:
    labels = [str(row % 5) for row in range(60)]
    store = world(MEANING[:40], {"label": ["none", *labels[1:]]}, {"label": labels[:40]})
    done = retrieve(store)
    table = pq.read_table(done.folder / "per-query.parquet", partitioning=None)
    for row in done.rows:
        lines = [
            line
            for line in table.to_pylist()
            if (line["model"], line["query"]) == (row["model"], row["query"])
        ]
        if row["model"] == "chance":
            assert not lines
            continue
        known = [line for line in lines if line["matches"]]
        assert len(lines) - len(known) == row["metrics"]["queries_without_match"]
        if row["query"] == SOUNDS:
            assert [line["id"] for line in lines] == [str(number) for number in range(60)]
            assert lines[0]["matches"] == 0
            assert lines[0]["ap"] is lines[0]["first_rank"] is lines[0]["hit@1"] is None
        for line in known:
            assert line["reciprocal_rank"] == 1 / line["first_rank"]
            for k in (1, 5, 10):
                assert line[f"hit@{k}"] == (line["first_rank"] <= k)
        mean = np.mean([line["ap"] for line in known])
        assert mean == pytest.approx(row["metrics"]["mAP"])
        assert np.median([line["first_rank"] for line in known]) == row["metrics"]["median_rank"]


def test_gap_and_index_without_truth(unknown: Path) -> None:
    keys = [Key.parse(place) for place in (SOUNDS, PHOTOS)]
    path = unknown / "connections/made"
    for row in evaluate_gap(unknown, path, *keys).rows:
        assert row["truth"] == "none"
        assert row["metrics"].keys() == {"distance", "uniformity"}
    rows = evaluate_index(unknown, path, *keys, IndexChoice("HNSW8", parse_budget(None, None))).rows
    for row in rows:
        assert row["metrics"]["found@10"] > 0.9
        assert "hit_rate@1" not in row["metrics"]


@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_hub_metrics_against_a_restatement(queries: int, gallery: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    found = np.array([draw.permutation(gallery)[:10] for _ in range(queries)])
    metrics = hub_metrics(found, gallery)
    often = [sum(item in list(row) for row in found) for item in range(gallery)]
    for k in (1, 5, 10):
        covered = {item for row in found for item in row[:k]}
        assert metrics[f"coverage@{k}"] == pytest.approx(len(covered) / gallery, abs=1e-15)
    assert metrics["antihubs@10"] == pytest.approx(often.count(0) / gallery)
    assert metrics["top_hub@10"] == max(often) / queries
    mean = sum(often) / gallery
    second = sum((one - mean) ** 2 for one in often) / gallery
    third = sum((one - mean) ** 3 for one in often) / gallery
    if len(set(often)) == 1:
        assert "skewness@10" not in metrics
    else:
        assert metrics["skewness@10"] == pytest.approx(third / second**1.5, abs=1e-9)
    most = most_found(found, gallery, 5)
    assert [count for _, count in most] == [one for one in sorted(often, reverse=True)[:5] if one]
    assert all(often[item] == count for item, count in most)


def test_chance_hubs_is_what_random_orders_give() -> None:
    draw = np.random.default_rng(0)
    drawn = [
        hub_metrics(np.array([draw.permutation(40)[:10] for _ in range(6)]), 40) for _ in range(400)
    ]
    expected = chance_hubs(6, 40)
    for name in ("coverage@1", "coverage@5", "coverage@10", "antihubs@10"):
        mean = np.mean([metrics[name] for metrics in drawn])
        assert mean == pytest.approx(expected[name], abs=0.01), name
    pooled = draw.binomial(6, 0.25, size=200_000).astype(float)
    off = pooled - pooled.mean()
    skewness = (off**3).mean() / (off**2).mean() ** 1.5
    assert expected["skewness@10"] == pytest.approx(skewness, abs=0.02)
    assert "skewness@10" not in chance_hubs(6, 10)
