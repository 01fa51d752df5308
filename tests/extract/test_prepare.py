"""Published data sets in their publishers' own formats, in miniature, made manifests."""

import csv
import gzip
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from miniatures import RATE, cloud, picture, sound, text, video
from typer.testing import CliRunner

from cmcr.cli.app import app
from cmcr.embeddings import Modality
from cmcr.errors import SourceError, UsageError
from cmcr.extract import Item, open_source, prepare_dataset, published_sets
from cmcr.extract.media.decode import decode
from cmcr.extract.prepare import making

CLOUD = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
MODALITIES: dict[str, Modality] = {
    "images.csv": "image",
    "audio.csv": "audio",
    "shapes.csv": "pointcloud",
    "captions.csv": "text",
    "texts.tsv": "text",
}


# Each writes a miniature of which one item is missing.


def ave(root: Path) -> None:
    head = "Category&VideoID&Quality&StartTime&EndTime"
    lines = ["Church bell&b-1&good&0&10", "Male speech&v2&good&0&9", "Female speech&v2&good&0&9"]
    text(root / "Annotations.txt", "\n".join([head, *lines, "Bark&gone&good&0&3"]))
    text(root / "trainSet.txt", lines[0])
    text(root / "testSet.txt", "\n".join([lines[1], "Bark&gone&good&0&3"]))
    for name in ("b-1", "v2"):
        video(root / "AVE" / f"{name}.mp4")


def vggsound(root: Path) -> None:
    text(
        root / "vggsound.csv",
        'abc,3,"dog barking, loud",test\ndef_g,12,sea waves,test\n'
        "hij,0,rain,train\nk,0,rain,test\n",
    )
    video(root / "video" / "abc_000003.mp4")
    video(root / "video" / "def_g.mp4", seconds=24)
    video(root / "video" / "hij_000000.mp4")


def vggss(root: Path) -> None:
    rows = [
        {"file": f"{name}_000003", "class": "dog barking", "bbox": [[0.1, 0.1, 0.5, 0.5]]}
        for name in ("abc", "de", "gone")
    ]
    text(root / "metadata/vggss.json", json.dumps(rows))
    text(root / "metadata/vggss_heard_test.csv", "abc_000003\n")
    text(root / "metadata/vggss_unheard_test.csv", "de_000003\ngone_000003\n")
    text(
        root / "metadata/vggss_test_plus_silent.csv",
        "video,audio,label\nabc_000003,zz_000001,non-sounding\ngone_000003,de_000003,non-sounding\n",
    )
    video(root / "abc_000003.mp4")
    picture(root / "frames/de_000003.jpg")
    sound(root / "audio/de_000003.wav")
    sound(root / "audio/zz_000001.wav")


def flickr(root: Path) -> None:
    for name in ("10", "20", "30"):
        text(
            root / f"Annotations/{name}.xml",
            "<a><o><bbox><n>1</n><a>1</a><b>2</b><c>100</c><d>200</d></bbox></o></a>",
        )
    text(root / "flickr_test.csv", "10,202\n30,0\n")
    text(root / "flickr_test_plus_silent.csv", "video,audio,label\n10,20,non-sounding\n")
    for name in ("10", "20"):
        sound(root / f"Data/{name}.mp4/{name}.wav")
        picture(root / f"Data/{name}.mp4/00000001.jpg")
        picture(root / f"Data/{name}.mp4/{name}.jpg")


def coco(root: Path) -> None:
    images = [{"id": id, "file_name": f"{id:012d}.jpg"} for id in (139, 285, 9)]
    captions = [
        {"image_id": id, "id": number, "caption": f"A view {number}.\n"}
        for number, id in enumerate([139, 285, 139, 9])
    ]
    listing = json.dumps({"images": images, "annotations": captions})
    text(root / "annotations/captions_val2017.json", listing)
    text(
        root / "annotations/captions_train2017.json", json.dumps({"images": [], "annotations": []})
    )
    for id in (139, 285):
        picture(root / f"val2017/{id:012d}.jpg")


def audiocaps(root: Path) -> None:
    rows = [f"{number},abc,30,caption {number}" for number in range(5)]
    rows += [f"{number},xyz,0,caption {number}" for number in range(5, 10)]
    rows += ["99,gone,0,nothing"]
    text(root / "test.csv", "audiocap_id,youtube_id,start_time,caption\n" + "\n".join(rows))
    text(root / "train.csv", "audiocap_id,youtube_id,start_time,caption\n77,gone,0,a")
    sound(root / "wav/abc.wav", seconds=45)
    sound(root / "wav/Yxyz.wav", seconds=0.5)


def clotho(root: Path) -> None:
    head = "file_name," + ",".join(f"caption_{number}" for number in range(1, 6))
    rows = [f"{name}.wav,one,two,three,four,five" for name in ("Santa Motor", "a [b] 2", "gone")]
    text(root / "clotho_captions_evaluation.csv", "\n".join([head, *rows]))
    for name in ("Santa Motor", "a [b] 2"):
        sound(root / f"evaluation/{name}.wav")


def texts(root: Path) -> None:
    text(root / "Train_GCC-training.tsv", 'a "quoted\tword\nsame caption\thttp://x/y.jpg\n')
    text(root / "cc12m.tsv", "https://x/z.jpg\tsame caption\nhttps://x/u.jpg\tanother\n")
    coco(root / "coco")
    clotho(root / "clotho")
    text(root / "mine.txt", "one of mine\n\n")
    text(root / "mine.tsv", "id\ttext\n7\ttwo of mine\n")
    text(root / "mine.csv", '"three, of mine"\nfour of mine\n')


def esc50(root: Path) -> None:
    text(
        root / "meta/esc50.csv",
        "filename,fold,target,category,esc10,src_file,take\n"
        "1-1-A-0.wav,1,0,dog,True,1,A\n2-1-A-1.wav,2,1,crying_baby,False,2,A\n3.wav,1,0,dog,True,1,A\n",
    )
    sound(root / "audio/1-1-A-0.wav")
    sound(root / "audio/2-1-A-1.wav")


MESH = "OFF4 4 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n3 0 1 3\n3 0 2 3\n3 1 2 3\n"


def modelnet40(root: Path) -> None:
    """Princeton's; no list says what is missing."""
    for name in ("test/flower_pot_0150.off", "train/flower_pot_0001.off"):
        text(root / "flower_pot" / name, MESH)
    text(root / "car/test/car_0198.off", MESH)


def modelnet40_resampled(root: Path) -> None:
    text(root / "modelnet40_shape_names.txt", "car\nflower_pot\n")
    text(root / "modelnet40_train.txt", "flower_pot_0001\n")
    text(root / "modelnet40_test.txt", "car_0198\nflower_pot_0150\ncar_0199\n")
    for name in ("car/car_0198", "flower_pot/flower_pot_0150"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        np.savetxt(root / f"{name}.txt", CLOUD, delimiter=",", fmt="%.6f")


def modelnet40_dat(root: Path) -> None:
    modelnet40_resampled(root)
    clouds = [CLOUD, CLOUD + 1, CLOUD + 2]
    held = [clouds, [np.array([number], np.int32) for number in (0, 1, 0)]]
    (root / "modelnet40_test_8192pts_fps.dat").write_bytes(pickle.dumps(held))


def scanobjectnn(root: Path) -> None:
    (root / "main_split_nobg").mkdir(parents=True)
    with h5py.File(root / "main_split_nobg/test_objectdataset.h5", "w") as file:
        file["data"] = np.stack([CLOUD[:, :3], CLOUD[:, 3:]])
        file["label"] = np.array([4, 14])


def lvis(root: Path) -> None:
    listing = {"flower_pot": ["aa", "bb"], "Band_Aid": ["gone"]}
    (root / "lvis").mkdir(parents=True)
    (root / "lvis-annotations.json.gz").write_bytes(gzip.compress(json.dumps(listing).encode()))
    cloud(root / "000-000/aa.npy", {"xyz": CLOUD[:, :3], "rgb": CLOUD[:, 3:], "text": ["a pot"]})
    cloud(root / "000-001/bb.npy", CLOUD[:, :3])


def imagenet(root: Path) -> None:
    text(root / "LOC_synset_mapping.txt", "n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
    picture(root / "train/n01440764/n01440764_1.JPEG")
    picture(root / "train/n01443537/n01443537_2.JPEG")


def audioset(root: Path) -> None:
    text(
        root / "balanced_train_segments.csv",
        "# Segments csv created\n# num_ytids=3\n# YTID, start_seconds, end_seconds, labels\n"
        '-ab, 420.000, 430.000, "/m/1,/m/2"\ncd, 0.000, 10.000, "/m/2"\n'
        'gone, 0.000, 10.000, "/m/1"\n',
    )
    text(root / "ontology.json", json.dumps([{"id": "/m/1", "name": "Dog"}]))
    sound(root / "audio/-ab.flac")
    sound(root / "audio/cd.flac", seconds=12)


SETS: list[tuple[str, Callable[[Path], None], dict[str, int], int]] = [
    ("ave", ave, {"images.csv": 2, "audio.csv": 2}, 1),
    ("vggsound", vggsound, {"images.csv": 2, "audio.csv": 2}, 1),
    ("vggss", vggss, {"images.csv": 2, "audio.csv": 2}, 1),
    ("vggss-extended", vggss, {"images.csv": 2, "audio.csv": 3}, 2),
    ("flickr-soundnet", flickr, {"images.csv": 2, "audio.csv": 2}, 1),
    ("flickr-extended", flickr, {"images.csv": 1, "audio.csv": 2}, 2),
    ("coco", coco, {"images.csv": 2, "captions.csv": 3}, 1),
    ("audiocaps", audiocaps, {"audio.csv": 2, "captions.csv": 10}, 1),
    ("clotho", clotho, {"audio.csv": 2, "captions.csv": 10}, 1),
    ("texts", texts, {"texts.tsv": 16}, 0),
    ("esc50", esc50, {"audio.csv": 2, "classes.txt": 2}, 1),
    ("modelnet40", modelnet40, {"shapes.csv": 2, "classes.txt": 2}, 0),
    ("modelnet40", modelnet40_resampled, {"shapes.csv": 2, "classes.txt": 2}, 1),
    ("modelnet40", modelnet40_dat, {"shapes.csv": 3, "classes.txt": 2}, 0),
    ("scanobjectnn", scanobjectnn, {"shapes.csv": 2, "classes.txt": 2}, 0),
    ("objaverse-lvis", lvis, {"shapes.csv": 2, "classes.txt": 2}, 1),
    ("imagenet", imagenet, {"images.csv": 2}, 0),
    ("audioset", audioset, {"audio.csv": 2}, 1),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "published"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def items(out: Path, name: str) -> dict[str, Item]:
    return {item.id: item for item in open_source(MODALITIES[name], str(out / name)).items()}


def state(out: Path) -> Iterator[tuple[str, int, bytes]]:
    """What was made, with when; and what the manifests say."""
    for path in sorted(out.rglob("*")):
        if path.is_file():
            made = path.parent.parent.name == "prepared"
            yield str(path), path.stat().st_mtime_ns if made else 0, path.read_bytes()


def test_every_set_that_is_listed_is_tried_here() -> None:
    assert {one.name for one in published_sets()} == {name for name, *_ in SETS}
    for one in published_sets():
        assert one.where
        assert not one.counts or one.split in one.counts or one.name == "audioset"


@pytest.mark.parametrize(("name", "write", "files", "missing"), SETS)
def test_a_set_becomes_manifests_whose_media_can_be_decoded(
    root: Path,
    out: Path,
    name: str,
    write: Callable[[Path], None],
    files: dict[str, int],
    missing: int,
) -> None:
    write(root)
    prepared = prepare_dataset(name, [root], out)
    assert prepared.files == files, prepared
    assert len(prepared.missing) == missing
    assert prepared.listed == prepared.ready + missing
    assert json.loads((out / f"prepared/{name}.json").read_text()) == prepared.as_dict()
    for file in files.keys() - {"classes.txt"}:
        source = open_source(MODALITIES[file], str(out / file))
        assert source.total == files[file]
        assert file == "texts.tsv" or "split" in source.columns
        for item in source.items():
            decode(MODALITIES[file], item)
    before = list(state(out))
    assert prepare_dataset(name, [root], out).as_dict() == prepared.as_dict()
    assert list(state(out)) == before


def test_frame_and_sound_of_a_clip_come_out_of_the_middle_of_the_whole_video(
    root: Path, out: Path
) -> None:
    vggsound(root)
    prepare_dataset("vggsound", [root], out)
    # def_g is 24 s long and the clip is 12 to 22: its middle is second 17, a shade of 8 each.
    shade = np.asarray(decode("image", items(out, "images.csv")["def_g_000012"]))
    assert shade.mean() == pytest.approx(8 * 17, abs=4)
    wave = decode("audio", items(out, "audio.csv")["def_g_000012"])
    assert wave.samples.shape == (1, 10 * RATE)
    loud = np.abs(wave.samples[0]).reshape(10, RATE).max(1) * 32
    np.testing.assert_allclose(loud, np.arange(12, 22), atol=2)
    # abc_000003 is the clip alone, whatever second its name says.
    assert decode("audio", items(out, "audio.csv")["abc_000003"]).samples.shape[1] > 1.9 * RATE


def test_what_belongs_together_shares_a_group_and_labels_alone_have_none(
    root: Path, out: Path
) -> None:
    audiocaps(root / "a")
    prepare_dataset("audiocaps", [root / "a"], out / "a")
    captions = items(out / "a", "captions.csv")
    assert {item.group for item in captions.values()} == set(items(out / "a", "audio.csv"))
    assert [id for id, item in captions.items() if item.group == "abc_30"] == [
        f"abc_30#{number}" for number in range(5)
    ]
    ave(root / "b")
    prepare_dataset("ave", [root / "b"], out / "b")
    (both,) = [row for row in rows(out / "b/audio.csv") if row["id"] == "v2"]
    assert (both["label"], both["labels"]) == ("Male speech", "Male speech; Female speech")
    assert (both["group"], both["split"]) == ("v2", "test")
    modelnet40_dat(root / "c")
    prepare_dataset("modelnet40", [root / "c"], out / "c")
    shapes = items(out / "c", "shapes.csv")
    assert [(item.id, item.label, item.group) for item in shapes.values()] == [
        ("car_0198", ("car",), None),
        ("flower_pot_0150", ("flower pot",), None),
        ("car_0199", ("car",), None),
    ]
    np.testing.assert_array_equal(decode("pointcloud", shapes["car_0199"]), CLOUD[:, :3] + 2)
    assert (out / "c/classes.txt").read_text() == "car\nflower pot\n"


def test_the_annotations_lie_where_the_recipes_look_for_them(root: Path, out: Path) -> None:
    flickr(root / "f")
    prepare_dataset("flickr-soundnet", [root / "f"], out / "f")
    assert len(list((out / "f/Annotations").iterdir())) == 3
    assert (out / "f/flickr_test_plus_silent.csv").is_file()
    assert [row["split"] for row in rows(out / "f/images.csv")] == ["test", "train"]
    assert "/10.jpg" in rows(out / "f/images.csv")[0]["path"]
    vggss(root / "v")
    prepare_dataset("vggss", [root / "v"], out / "v")
    assert {"vggss.json", "vggss_test_plus_silent.csv"} <= {
        path.name for path in (out / "v").iterdir()
    }
    heard = prepare_dataset("vggss", [root / "v"], out / "v", split="heard")
    assert (heard.listed, heard.published) == (1, 2564)


def test_a_caption_is_not_cut_at_its_comma(root: Path, out: Path) -> None:
    text(root / "mine.csv", 'a dog on a mat\n"a cat, sitting"\na cat, sitting on a mat\n')
    with pytest.raises(SourceError, match="line 3 has 2 fields") as error:
        prepare_dataset("texts", [root], out)
    assert error.value.where == str(root / "mine.csv")
    assert not (out / "texts.tsv").exists()


def test_prepared_in_the_folder_that_it_lies_in_it_reads_none_of_what_it_made(root: Path) -> None:
    vggss(root)
    first = prepare_dataset("vggss", [root], root)
    before = list(state(root))
    assert prepare_dataset("vggss", [root], root).as_dict() == first.as_dict()
    assert list(state(root)) == before


def test_a_run_that_is_killed_goes_on_and_makes_nothing_twice(
    root: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ave(root)
    make = making._flac
    made = []

    def killed(medium: making.Sound) -> bytes:
        if made:
            raise KeyboardInterrupt
        made.append(medium)
        return make(medium)

    with monkeypatch.context() as patch:
        patch.setattr(making, "_flac", killed)
        patch.setattr("os.sched_getaffinity", lambda _: {0})
        with pytest.raises(KeyboardInterrupt):
            prepare_dataset("ave", [root], out)
    assert not (out / "audio.csv").exists()
    there = {path: path.stat().st_mtime_ns for path in (out / "prepared").rglob("*.*")}
    assert len(there) == 3
    assert prepare_dataset("ave", [root], out).ready == 2
    assert {path: path.stat().st_mtime_ns for path in there} == there


def test_bad_media_are_told_and_leave_no_half_of_a_pair(root: Path, out: Path) -> None:
    ave(root)
    whole = (root / "AVE/v2.mp4").read_bytes()
    (root / "AVE/v2.mp4").write_bytes(whole[: len(whole) // 2])
    prepared = prepare_dataset("ave", [root], out)
    assert {row["id"] for row in prepared.bad} == {"v2"}
    assert prepared.bad[0]["file"].endswith("AVE/v2.mp4")
    assert prepared.bad[0]["why"]
    assert [list(items(out, name)) for name in ("images.csv", "audio.csv")] == [["b-1"], ["b-1"]]
    assert "missing 1: gone" in str(prepared)
    assert "published are 4,097, the lists name 3" in str(prepared)
    (root / "AVE/v2.mp4").write_bytes(whole)
    assert prepare_dataset("ave", [root], out).ready == 2


def test_what_cannot_be_prepared_says_what_to_do(root: Path, out: Path) -> None:
    with pytest.raises(UsageError, match="no data set 'avee'") as caught:
        prepare_dataset("avee", [root], out)
    assert "did you mean ave" in str(caught.value)
    with pytest.raises(UsageError, match="no such folder"):
        prepare_dataset("ave", [root], out)
    text(root / "testSet.txt", "")
    with pytest.raises(SourceError, match=r"there is no Annotations\.txt"):
        prepare_dataset("ave", [root], out)
    text(root / "Annotations.txt", "Bark&gone&good&0&3")
    with pytest.raises(SourceError, match="of 1 items that ave lists none is there"):
        prepare_dataset("ave", [root], out)
    coco(root)
    with pytest.raises(UsageError, match="no split 'test'"):
        prepare_dataset("coco", [root], out, split="test")
    text(root / "annotations/captions_val2017.json", '{"images": [')
    with pytest.raises(SourceError, match="the lists of coco cannot be read"):
        prepare_dataset("coco", [root], out)
    assert not list(out.glob("*.csv"))


def test_no_pickle_is_run(root: Path, out: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.mkdir, (root / "run",)

    modelnet40_dat(root)
    (root / "modelnet40_test_8192pts_fps.dat").write_bytes(pickle.dumps([[Evil()], [0]]))
    with pytest.raises(SourceError, match="it names"):
        prepare_dataset("modelnet40", [root], out)
    cloud(root / "evil.npy", {"xyz": Evil()})
    with pytest.raises(SourceError, match="it names"):
        decode("pointcloud", Item("x", str(root / "evil.npy")))
    assert not (root / "run").exists()


def test_the_command_prepares_and_lists(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    esc50(root)
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(app, ["prepare", "esc50", "--from", "published", "--json"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["files"] == {"audio.csv": 2, "classes.txt": 2}
    assert "esc50: 2 of 3 items are ready" in run.stderr
    assert (tmp_path / "data/esc50/audio.csv").is_file()
    listed = CliRunner().invoke(app, ["prepare", "--list", "--json"])
    assert {"dataset": "esc50", "licence": "CC BY-NC"}.items() <= next(
        one for one in json.loads(listed.stdout)["datasets"] if one["dataset"] == "esc50"
    ).items()
    assert "esc50" in CliRunner().invoke(app, ["prepare", "--list"]).stdout
    with pytest.raises(UsageError, match="nothing says where esc50 lies"):
        CliRunner().invoke(app, ["prepare", "esc50"], catch_exceptions=False)
