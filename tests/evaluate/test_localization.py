"""Where a sound is heard: boxes on the grid, published annotations, and the choice of a region.

pytest tests/evaluate/test_localization.py
"""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmcr.connect import connect, read_config
from cmcr.embeddings import Key, open_dataset
from cmcr.errors import CmcrError, MismatchError, SourceError, UsageError
from cmcr.evaluate import (
    evaluate_localization,
    localization_metrics,
    read_results,
    read_truth,
    success_rates,
    truth_of,
)
from cmcr.evaluate.inputs.ciou import CENTRE, GRID, consensus_iou, truth_map
from cmcr.evaluate.inputs.scenes import find_scenes
from cmcr.evaluate.inputs.selection import choose_rows
from cmcr.extract import extract, open_source

LEFT, RIGHT = [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]
WHOLE, TOP_LEFT = [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5]
CORNERS = ("x0", "y0", "x1", "y1")


def ciou(region, heard, consensus=1):
    heard = np.array(heard, float).reshape(-1, 4)
    return consensus_iou(np.array([region], float), heard, consensus)[0]


def test_ciou_by_hand():
    assert ciou(LEFT, [LEFT]) == 1  # the exact box
    assert ciou(LEFT, [RIGHT]) == 0  # no overlap
    assert ciou(TOP_LEFT, [LEFT]) == 0.5  # half of the box
    assert ciou(WHOLE, [LEFT]) == 0.5  # twice the box
    assert ciou(WHOLE, [LEFT, RIGHT]) == 1  # several boxes make one area
    assert ciou(LEFT, [LEFT, LEFT, TOP_LEFT]) == 1  # and each place counts once
    assert ciou(LEFT, []) == 0
    assert ciou(LEFT, [[0.5, 0.5, 0.5, 0.5]]) == 0  # an annotation without area
    assert ciou([0.1, 0.1, 0.1001, 0.1001], [LEFT]) == 0  # smaller than a cell


def test_two_annotators_must_agree():
    assert truth_map(np.array([LEFT]), 2).max() == 0.5
    # One of two marked the left half, both the top left quarter: g is 1 there and 1/2 below.
    both = [LEFT, TOP_LEFT]
    assert ciou(TOP_LEFT, both, consensus=2) == pytest.approx(1 / 1.5)
    assert ciou(LEFT, both, consensus=2) == 1
    assert ciou(WHOLE, both, consensus=2) == pytest.approx(1.5 / (1.5 + 2))


@st.composite
def boxes(draw, least=0):
    places = st.lists(st.floats(0, 1), min_size=2, max_size=2)
    box = st.tuples(places, places).map(lambda p: [min(p[0]), min(p[1]), max(p[0]), max(p[1])])
    return np.array(draw(st.lists(box, min_size=least, max_size=3)), float).reshape(-1, 4)


@settings(deadline=None, max_examples=40)
@given(boxes(1), boxes(), st.sampled_from([1, 2]))
def test_ciou_is_what_the_published_code_computes(regions, heard, consensus):
    """Restated from the protocol of LVS: maps of 0 and 1, compared cell by cell."""

    def filled(box):
        x0, y0, x1, y1 = (int(GRID * value) for value in box)
        cells = np.zeros((GRID, GRID))
        cells[y0:y1, x0:x1] = 1
        return cells

    truth = np.minimum(sum(map(filled, heard), np.zeros((GRID, GRID))) / consensus, 1)
    for region, ours in zip(regions, consensus_iou(regions, heard, consensus), strict=True):
        predicted = filled(region)
        union = truth.sum() + (predicted * (truth == 0)).sum()
        expected = (predicted * truth).sum() / union if union else 0
        assert ours == pytest.approx(expected, abs=1e-12)


def test_the_centre_covers_half():
    x0, y0, x1, y1 = CENTRE[0]
    assert (x1 - x0) * (y1 - y0) == pytest.approx(0.5)
    assert (x0 + x1, y0 + y1) == pytest.approx((1, 1))


def test_success_and_area_by_hand():
    metrics = localization_metrics(success_rates(np.array([1.0, 1.0])))
    assert metrics == {"success@0.5": 1, "auc": 1}
    metrics = localization_metrics(success_rates(np.array([0.0, 0.0])))
    assert metrics == {"success@0.5": 0, "auc": pytest.approx(0.025)}
    # One in two reaches 0.5 and no more: 1 at threshold 0, 1/2 at 0.05 … 0.5, then 0.
    metrics = localization_metrics(success_rates(np.array([0.5, 0.0])))
    assert metrics == {"success@0.5": 0.5, "auc": pytest.approx((0.5 + 10 * 0.5) / 20)}
    weighted = success_rates(np.array([1.0, 0.0]), np.array([0.25, 0.75]))
    assert localization_metrics(weighted)["success@0.5"] == 0.25


def test_published_annotations(tmp_path):
    vggss = tmp_path / "vggss.json"
    boxes = [[0.25, 0.5, 0.75, 1.5], [0.5, 0.5, -2.9e16, 0.9]]
    vggss.write_text(json.dumps([{"file": "abc_000030", "class": "dog", "bbox": boxes}]))
    silent = tmp_path / "vggss_test_plus_silent.csv"
    silent.write_text("video,audio,label\nabc_000030,xyz_000001,non-sounding\n")
    lines = tmp_path / "own.jsonl"
    lines.write_text('{"id": 7, "image": "p", "boxes": []}\n\n{"id": "8", "image": "p", "boxes": '
                     "[[0, 0, 0.5, 0.5]]}\n")  # fmt: skip
    pairs = read_truth([vggss, silent, lines])
    assert [pair[:2] for pair in pairs] == [
        ("abc_000030", "abc_000030"), ("xyz_000001", "abc_000030"), ("7", "p"), ("8", "p"),
    ]  # fmt: skip
    assert [pair.visible for pair in pairs] == [True, False, False, True]
    assert pairs[0].boxes.tolist() == [[0.25, 0.5, 0.75, 1], [0.5, 0.5, 0, 0.9]]
    folder = tmp_path / "Annotations"
    folder.mkdir()
    bbox = (
        "<bbox><label>1</label><xmin>64</xmin><ymin>0</ymin><xmax>128</xmax><ymax>256</ymax></bbox>"
    )
    (folder / "123.xml").write_text(f"<annotation><object>{bbox}{bbox}</object></annotation>")
    (pair,) = read_truth([folder])
    assert (pair.sound, pair.image, pair.consensus) == ("123", "123", 2)
    assert pair.boxes.tolist() == [[0.25, 0, 0.5, 1]] * 2


def test_truth_that_cannot_be_read(tmp_path):
    cases = {
        "a.jsonl": ('{"id": "a", "image": "p", "boxes": [[0, 0, 300, 200]]}', "in fractions"),
        "b.jsonl": ('{"id": "a", "boxes": []}', "no 'image'"),
        "c.jsonl": ('{"id": "a", "image": "p", "boxes": [[0, 0, 1]]}', "boxes are"),
        "d.jsonl": ("{", "cannot be read"),
        "e.json": ('[{"file": "a", "bbox": [[0, 0, NaN, 1]]}]', "boxes are"),
        "f.csv": ("video,audio,label\na,b,sounding\n", "names no pair"),
        "g.txt": ("a", "of no known kind"),
    }
    for name, (text, message) in cases.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(SourceError, match=message):
            read_truth([tmp_path / name])
    with pytest.raises(UsageError, match="no such file"):
        read_truth([tmp_path / "nowhere.json"])
    with pytest.raises(SourceError, match="names no pair"):
        read_truth([tmp_path])  # a folder without XML


EAR, EYE = Key("ear", "audio", "sounds"), Key("eye", "image", "regions")
E0, E1, E2 = np.eye(4)[:3]


@pytest.fixture
def world(tmp_path, make_dataset):
    """Two pictures of two regions each, three sounds, and the two spaces connected as they are.

    Sound s0 is nearest to the true region of picture p0, s1 to the wrong one of p1, s2 as near to
    the one as to the other and silent in p1.
    """
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(12, 4)).astype(np.float32)
    ids = [f"t{i}" for i in range(12)]
    for space in ("eye", "ear"):
        make_dataset(f"{space}/text:texts", texts, id=ids)
    sounds = np.array([E0, E1, E2], np.float32)
    make_dataset(
        "ear/audio:sounds", sounds, id=["s0", "s1", "s2"], image=["p0", "p1", "p1"],
        boxes=[json.dumps([LEFT]), json.dumps([LEFT]), "[]"],
    )  # fmt: skip
    regions = np.array([E0 + 0.1 * E2, E1, E0, E1], np.float32)
    places = np.array([LEFT, RIGHT, LEFT, RIGHT]).T
    make_dataset(
        "eye/image:regions", regions, id=["p0#0", "p0#1", "p1#0", "p1#1"],
        image=["p0", "p0", "p1", "p1"], **dict(zip(CORNERS, map(list, places), strict=True)),
    )  # fmt: skip
    store = tmp_path / "store"
    fields = {
        "spaces": ["eye", "ear"],
        "via": "text",
        "train": ["texts"],
        "method": "identity",
        "ridge_strength": 0.01,
    }
    connect(store, read_config(fields), name="same")
    return store


def run(world, truth=()):
    return evaluate_localization(world, world / "connections" / "same", EAR, EYE, truth)


def test_the_nearest_region_is_the_answer(world):
    done = run(world)
    rows = {row["model"]: row["metrics"] for row in done.rows}
    assert list(rows)[:3] == ["chance", "centre", "procrustes"]
    assert {"procrustes-centred", "ridge", "ridge-centred", "cca", "identity"} <= rows.keys()
    assert rows["identity"]["success@0.5"] == 0.5
    assert rows["identity"]["auc"] == pytest.approx(0.05 * (0.75 + 19 * 0.5))
    assert rows["chance"]["success@0.5"] == 0.5
    covered = np.sqrt(0.5) / 2  # of the width, by the centred box, on the left half
    expected = covered * np.sqrt(0.5) / (0.5 + covered * np.sqrt(0.5))
    assert rows["centre"]["success@0.5"] == float(expected >= 0.5)
    assert (rows["identity"]["pairs"], rows["identity"]["silent_pairs"]) == (2, 0)
    row = done.rows[-1]
    assert (row["task"], row["query"]) == ("localization", "ear/audio:sounds")
    assert row["gallery"] == "eye/image:regions"
    answers = pq.read_table(done.folder / "localization.parquet").to_pydict()
    assert answers["region"] == ["p0#0", "p1#1"]
    assert (answers["x0"], answers["ciou"]) == ([0, 0.5], [1, 0])


def test_ties_are_decided_against_us(world, tmp_path):
    """The third sound is as near to both regions of its picture."""
    truth = tmp_path / "truth.jsonl"
    for box in (LEFT, RIGHT):
        truth.write_text(json.dumps({"id": "s2", "image": "p1", "boxes": [box]}))
        assert run(world, [truth]).rows[-1]["metrics"]["success@0.5"] == 0


def test_results_are_used_again_until_the_truth_changes(world, tmp_path):
    truth = tmp_path / "truth.jsonl"
    truth.write_text(json.dumps({"id": "s0", "image": "p0", "boxes": [LEFT]}))
    first = run(world, [truth])
    assert first.fresh
    assert read_results(first.folder / "localization.json")["results"] == first.rows
    assert (first.folder / "success.png").stat().st_size > 1000
    assert not run(world, [truth]).fresh
    truth.write_text(json.dumps({"id": "s0", "image": "p0", "boxes": [RIGHT]}))
    again = run(world, [truth])
    assert again.fresh
    assert again.rows[-1]["metrics"]["success@0.5"] == 0


def test_each_truth_has_a_folder_of_its_own(world, tmp_path):
    first = run(world)
    assert first.folder.name == "ear_audio_sounds--eye_image_regions"
    folders = {first.folder}
    for place, box in (("a", LEFT), ("b", RIGHT)):
        (tmp_path / place).mkdir()
        truth = tmp_path / place / "truth.jsonl"
        truth.write_text(json.dumps({"id": "s0", "image": "p0", "boxes": [box]}))
        done = run(world, [truth])
        assert done.folder.name.startswith(f"{first.folder.name}--truth_truth.jsonl_")
        folders.add(done.folder)
    assert len(folders) == 3
    again = run(world)
    assert (again.fresh, again.rows) == (False, first.rows)


def test_pairs_that_the_store_does_not_have_are_counted(world, tmp_path):
    truth = tmp_path / "truth.jsonl"
    pairs = [("s0", "p0"), ("s9", "p0"), ("s1", "p9")]
    truth.write_text(
        "\n".join(json.dumps({"id": s, "image": p, "boxes": [LEFT]}) for s, p in pairs)
    )
    metrics = run(world, [truth]).rows[-1]["metrics"]
    assert (metrics["pairs"], metrics["pairs_left_out"]) == (1, 2)
    truth.write_text(json.dumps({"id": "S0.wav", "image": "p0", "boxes": [LEFT]}))
    with pytest.raises(CmcrError, match="belong to a pair") as error:
        run(world, [truth])
    assert "'S0.wav'" in str(error.value)
    assert "'s0'" in str(error.value)


def test_only_silent_pairs_are_nothing_to_locate(world, tmp_path):
    truth = tmp_path / "truth.jsonl"
    truth.write_text(json.dumps({"id": "s0", "image": "p0", "boxes": []}))
    with pytest.raises(CmcrError, match="every pair of the truth is a silent one"):
        run(world, [truth])


def test_datasets_that_do_not_say_what_is_needed(world, make_dataset):
    with pytest.raises(UsageError, match="does not say where its rows lie"):
        evaluate_localization(world, world / "connections/same", EAR, Key("eye", "text", "texts"))
    bare = make_dataset("ear/audio:bare", np.eye(4, dtype=np.float32))
    with pytest.raises(UsageError, match="nothing says where") as error:
        truth_of(bare)
    assert "--truth" in str(error.value)
    odd = make_dataset("ear/audio:odd", np.eye(4, dtype=np.float32)[:1], image=["p0"], boxes=["[["])
    with pytest.raises(SourceError, match="no boxes that can be read"):
        truth_of(odd)
    make_dataset("eye/image:flat", np.eye(4, dtype=np.float32)[:1], id=["r"], image=["p0"],
                 x0=[0.5], y0=[0.1], x1=[0.5], y1=[0.9])  # fmt: skip
    with pytest.raises(SourceError, match="a region has no area"):
        evaluate_localization(world, world / "connections/same", EAR, Key("eye", "image", "flat"))


def test_a_sound_is_there_once(world, tmp_path, encoder):
    """A manifest may name an id twice, as captions of one picture do; a sound may not."""
    lines = tmp_path / "twice.csv"
    lines.write_text('id,text,image,boxes\ns,a,p0,"[]"\ns,b,p0,"[]"\n')
    extract(world, encoder, open_source("text", str(lines)), "twice", space="bytes", workers=0)
    sounds = open_dataset(world, Key("bytes", "text", "twice"))
    with pytest.raises(SourceError, match="two sounds named 's'"):
        find_scenes(choose_rows(sounds), choose_rows(open_dataset(world, EYE)), truth_of(sounds))


def test_embeddings_of_another_encoder_are_refused(world, make_dataset):
    make_dataset("nose/audio:sounds", np.eye(4, dtype=np.float32), image=["p0"] * 4,
                 boxes=["[]"] * 4)  # fmt: skip
    with pytest.raises(MismatchError, match="between eye and ear"):
        evaluate_localization(
            world, world / "connections/same", Key("nose", "audio", "sounds"), EYE
        )
