"""`cmcr evaluate retrieval` on a small world: two spaces, five classes, one shared modality.

pytest tests/evaluate/test_retrieval.py
"""

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from cmcr.connect import baselines, connect, load_connection, read_config
from cmcr.embeddings import Key, import_embeddings, open_dataset
from cmcr.embeddings.index import search
from cmcr.errors import CmcrError, MismatchError, UsageError
from cmcr.evaluate import (
    evaluate_retrieval,
    parse_where,
    rank_both_ways,
    read_results,
    results_table,
    select,
)

CLASSES = ("cat", "dog", "owl", "pig", "rat")
SOUNDS = Key("ear", "audio", "sounds")
PHOTOS = Key("eye", "image", "photos")
DIMS = {"eye": 16, "ear": 16, "wide": 24}


def write(store, key, classes, seed, **columns):
    """A dataset whose vectors lie around one direction a class, shifted by a modality gap."""
    rng = np.random.default_rng(seed)
    dim = DIMS[key.space]
    centres = np.random.default_rng(1).normal(size=(len(CLASSES), 12))  # what the classes mean
    turn = np.random.default_rng(len(key.space) + dim).normal(size=(12, dim))  # each space its own
    gap = np.random.default_rng(len(key.modality)).normal(size=dim)
    meaning = centres[[CLASSES.index(name) for name in classes]]  # (items, 12)
    vectors = (meaning + 0.6 * rng.normal(size=meaning.shape)) @ turn + gap  # (items, dim)
    folder = store / "sources"
    folder.mkdir(parents=True, exist_ok=True)
    array = folder / f"{key.space}-{key.modality}-{key.dataset}.npy"
    np.save(array, vectors.astype(np.float32))
    metadata = array.with_suffix(".parquet")
    pq.write_table(pa.table({"id": [f"{key.dataset}-{i}" for i in range(len(classes))], **columns}),
                   metadata)  # fmt: skip
    return import_embeddings(store, key, array, metadata, index=None)


def write_world(store, other="ear"):
    """Texts in both spaces, sounds in `other`, photos in `eye`; fifth takes are apart."""
    texts = list(np.random.default_rng(0).choice(CLASSES, 60))
    for space in ("eye", other):
        write(store, Key(space, "text", "texts"), texts, seed=3)
    sounds, photos = list(CLASSES) * 8, [*CLASSES[1:]] * 10
    takes = [str(i // 5) for i in range(40)]
    write(store, Key(other, "audio", "sounds"), sounds, 4, label=sounds, take=takes)
    write(store, PHOTOS, photos, seed=5, label=photos)
    return read_config(
        {
            "spaces": ["eye", other],
            "via": "text",
            "train": ["texts"],
            "memory": ["photos", "sounds"],
            "method": "c-mcr",
            "epochs": 3,
            "joint_dim": 8,
        }
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A store with a trained connection named `tiny`."""
    store = tmp_path_factory.mktemp("store")
    connect(store, write_world(store), name="tiny")
    return store


@pytest.fixture(scope="module")
def done(world):
    return evaluate_retrieval(world, world / "connections" / "tiny", SOUNDS, PHOTOS)


def models(world):
    connection = load_connection(world / "connections" / "tiny")
    return {"c-mcr": connection}


def items(world, key, where=None):
    return select(open_dataset(world, key), where)


def test_a_row_for_each_model_and_direction(done):
    names = ["chance", "identity", "procrustes", "procrustes-centred", "ridge", "ridge-centred",
             "cca"]  # fmt: skip
    assert [row["model"] for row in done.rows] == [*names, "c-mcr"] * 2
    there, back = done.rows[6], done.rows[13]
    assert (there["query"], there["gallery"]) == ("ear/audio:sounds", "eye/image:photos")
    assert (back["query"], back["gallery"]) == ("eye/image:photos", "ear/audio:sounds")
    for row in done.rows:
        assert row["task"] == "retrieval"
        assert row["dataset"] == "photos+sounds"
    assert there["metrics"]["gallery_size"] == 40
    assert there["metrics"]["queries_without_match"] == 8  # there is no photo of a cat
    assert back["metrics"]["queries_without_match"] == 0
    assert there["unmatched"] == {"queries": 8, "of": 40, "first": "sounds-0", "labels": ["cat"]}
    assert "unmatched" not in back


def test_the_closed_forms_beat_chance(done):
    mean = {row["model"]: row["metrics"]["mAP"] for row in done.rows}
    assert mean["ridge-centred"] > mean["chance"] + 0.2


def test_queries_that_nothing_matches_are_told_loudly(done):
    console = Console(width=200, force_terminal=True)
    with console.capture() as capture:
        console.print(results_table(done.rows))
    (line,) = (line for line in capture.get().splitlines() if "match nothing" in line)
    assert "8 of 40 queries match nothing in the gallery" in line
    assert "'sounds-0'; their labels are such as cat" in line
    assert "\x1b[1;33m" in line  # bold, yellow


def test_results_are_saved_and_used_again(world, done):
    assert done.fresh
    results = read_results(done.folder / "retrieval.json")
    assert results["results"] == done.rows
    assert done.folder == world / "results/tiny/ear_audio_sounds--eye_image_photos"
    assert sorted(results["files"]) == [
        "joint-space.png", "neighbours.parquet", "per-query.parquet", "precision.png",
        "training.png",
    ]  # fmt: skip
    for name in results["files"]:
        assert (done.folder / name).stat().st_size > 1000
    again = evaluate_retrieval(world, world / "connections" / "tiny", SOUNDS, PHOTOS)
    assert not again.fresh
    assert again.rows == done.rows


def test_another_filter_or_a_missing_picture_is_computed(world, tmp_path):
    arguments = (world, world / "connections" / "tiny", SOUNDS, PHOTOS)
    first = evaluate_retrieval(*arguments, out=tmp_path, query_where={"take": ["0", "1"]})
    assert first.rows[len(first.rows) // 2]["metrics"]["gallery_size"] == 10
    (tmp_path / "precision.png").unlink()
    again = evaluate_retrieval(*arguments, out=tmp_path, query_where={"take": ["0", "1"]})
    assert again.fresh
    assert again.rows == first.rows
    assert evaluate_retrieval(*arguments, out=tmp_path, query_where={"take": ["0"]}).fresh
    # Five sounds make no map, and the old one is taken away.
    assert not (tmp_path / "joint-space.png").exists()


def test_a_picture_of_other_numbers_does_not_count_as_drawn(world, tmp_path, monkeypatch):
    arguments = (world, world / "connections" / "tiny", SOUNDS, PHOTOS)
    evaluate_retrieval(*arguments, out=tmp_path, query_where={"take": ["0", "1"]})

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cmcr.evaluate.figures.style._save", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate_retrieval(*arguments, out=tmp_path, query_where={"take": ["2", "3"]})
    assert evaluate_retrieval(*arguments, out=tmp_path, query_where={"take": ["2", "3"]}).fresh
    assert (tmp_path / "precision.png").exists()


def test_neighbours_agree_with_the_hit_rate(done):
    table = pq.read_table(done.folder / "neighbours.parquet").to_pandas()
    assert (table["rank"].max(), len(table)) == (10, 80 * 10)
    for row in (done.rows[len(done.rows) // 2 - 1], done.rows[-1]):
        found = table[(table["query"] == row["query"]) & (table["gallery"] == row["gallery"])]
        for k in (1, 5, 10):
            hits = found[found["rank"] <= k].groupby("query_id")["match"].any()
            answerable = len(hits) - row["metrics"]["queries_without_match"]
            assert hits.sum() / answerable == pytest.approx(row["metrics"][f"hit_rate@{k}"])


def test_search_gives_what_there_is():
    scores, rows = search(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), 10)
    assert rows.tolist() == [[0, 1], [1, 0]]
    assert scores.tolist() == [[1, 0], [1, 0]]


def test_both_sides_may_lie_in_one_space(world):
    rankings = list(
        rank_both_ways(
            models(world),
            items(world, SOUNDS, {"take": ["0", "1", "2"]}),
            items(world, SOUNDS, {"take": ["3", "4"]}),
        )
    )
    assert [ranking.row["dataset"] for ranking in rankings] == ["sounds"] * 4
    assert rankings[1].row["metrics"]["gallery_size"] == 10


def test_an_item_must_not_find_itself(world):
    with pytest.raises(UsageError, match="would find itself"):
        list(rank_both_ways(models(world), items(world, SOUNDS), items(world, SOUNDS)))


def test_one_item_on_each_side(world):
    one = items(world, SOUNDS, {"id": ["sounds-1"]})
    other = items(world, PHOTOS, {"id": ["photos-0"]})
    metrics = list(rank_both_ways(models(world), one, other))[1].row["metrics"]
    assert metrics["hit_rate@1"] == metrics["mAP"] == metrics["median_rank"] == 1


def test_filters_name_what_there_is(world):
    with pytest.raises(UsageError, match="no column 'speaker'") as unknown:
        items(world, SOUNDS, {"speaker": ["x"]})
    assert "take" in str(unknown.value)
    with pytest.raises(UsageError, match="has take=99"):
        items(world, SOUNDS, {"take": ["99"]})
    assert len(items(world, SOUNDS, {"label": ["owl", "pig"], "take": ["0"]}).rows) == 2


def test_filters_are_read_from_the_command_line():
    assert parse_where(["take=0,1", "speaker=x=y"]) == {"take": ["0", "1"], "speaker": ["x=y"]}
    for wrong in (["take"], ["=1"], ["a=1", "a=2"]):
        with pytest.raises(UsageError):
            parse_where(wrong)


def test_without_a_common_label_both_are_shown(world):
    cats = items(world, SOUNDS, {"label": ["cat"]})
    with pytest.raises(CmcrError, match="no query has a match") as error:
        list(rank_both_ways(models(world), cats, items(world, PHOTOS)))
    assert "label such as 'cat'; eye/image:photos has label such as 'dog'" in str(error.value)


def test_another_encoder_is_refused(world, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((world / "connections" / "tiny" / name).read_bytes())
    record = json.loads((tmp_path / "config.json").read_text())
    record["spaces"][1]["encoder_identity"] = "0" * 64
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(MismatchError, match="made for another 'ear'"):
        evaluate_retrieval(world, tmp_path, SOUNDS, PHOTOS, out=tmp_path / "results")


def test_another_space_is_refused(world):
    key = Key("wide", "audio", "sounds")
    write(world, key, ["cat"], 1, label=["cat"])
    with pytest.raises(MismatchError, match="between eye and ear"):
        evaluate_retrieval(world, world / "connections" / "tiny", key, PHOTOS)


def test_spaces_of_different_dims_and_a_connection_without_training(tmp_path):
    config = write_world(tmp_path, other="wide")
    closed = config.model_copy(update={"method": "ridge", "centre": True})
    connect(tmp_path, closed, name="closed")
    done = evaluate_retrieval(
        tmp_path, tmp_path / "connections" / "closed", Key("wide", "audio", "sounds"), PHOTOS
    )
    names = ["chance", "procrustes", "procrustes-centred", "ridge", "cca", "ridge-centred"]
    assert [row["model"] for row in done.rows] == names * 2
    assert not (done.folder / "training.png").exists()
    assert (done.folder / "joint-space.png").exists()


def test_centred_forms_need_no_mean_of_a_modality(world, tmp_path):
    """Without memory there is none to subtract."""
    bare = load_connection(world / "connections" / "tiny").config.model_copy(update={"memory": ()})
    done = connect(world, bare, name="bare", out=tmp_path / "bare")
    assert "ridge-centred" in baselines(world, done.record)
    results = evaluate_retrieval(world, done.path, SOUNDS, PHOTOS, out=tmp_path / "results")
    assert len(results.rows) == 16
    closed = {"identity", "procrustes", "procrustes-centred", "ridge", "ridge-centred", "cca"}
    assert {row["model"] for row in results.rows} == {"chance", "c-mcr", *closed}


def test_the_table_shows_the_best_in_bold(done):
    console = Console(width=80, force_terminal=True, color_system="truecolor", file=sys.stderr)
    with console.capture() as capture:
        console.print(results_table(done.rows))
    text = capture.get()
    assert "ear/audio:sounds → eye/image:photos" in text
    assert "8 queries without a match left out" in text
    assert "…" not in text
    best = max(row["metrics"]["mAP"] for row in done.rows[:7])
    assert f"\x1b[1m{best:.3f}" in text


def test_damaged_results_are_refused(tmp_path):
    (tmp_path / "retrieval.json").write_text('{"results": [')
    with pytest.raises(CmcrError, match="cannot be read"):
        read_results(tmp_path / "retrieval.json")
