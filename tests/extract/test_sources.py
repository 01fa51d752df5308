"""Sources that are broken, strange or hostile; and folders of good and bad media, extracted."""

import io
import json
import os
import pickle
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from cmcr.embeddings import Key, Modality, open_dataset, verify_store
from cmcr.errors import SourceError, UsageError
from cmcr.extract import Encoder, extract, open_source, preview_extraction
from cmcr.extract.media.decode import decode


def wav(samples: int = 800, rate: int = 8_000, subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    wave = 0.5 * np.sin(np.arange(samples) / 3 + 1)
    soundfile.write(file, wave, rate, format="WAV", subtype=subtype)
    return file.getvalue()


def picture(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def array(points: np.ndarray, **options: bool) -> bytes:
    file = io.BytesIO()
    np.save(file, points, **options)  # type: ignore[arg-type]
    return file.getvalue()


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def extracted(
    tmp_path: Path, encoder: Encoder, modality: Modality, where: Path
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The rows of the dataset, and why each failure failed."""
    source = open_source(modality, str(where))
    summary = extract(tmp_path / "store", encoder, source, "t", workers=0, max_failures=1.0)
    assert summary.rows + summary.failures == source.total
    dataset = open_dataset(tmp_path / "store", Key("bytes", modality, "t"))
    failures = pq.read_table(dataset.folder / "failures.parquet").to_pylist()
    names = ("id", "text", "label", "group", *source.columns)
    return dataset.table(names).to_pylist(), {row["id"]: row["message"] for row in failures}


# A folder of 200 files of which 20 or so are broken, for each modality


def audio_files() -> tuple[dict[str, bytes], dict[str, str]]:
    files = {f"good-{n}.wav": wav(100 + n) for n in range(180)}
    files |= {
        "8-bit.wav": wav(subtype="PCM_U8"),
        "192-khz.wav": wav(rate=192_000),
        "float.wav": wav(subtype="FLOAT"),
        "really-a-wav.mp3": wav(),
    }
    bad = {
        "0-bytes.wav": (b"", "empty"),
        "0-samples.wav": (wav(0), "no samples"),
        "1-sample.wav": (wav(1), "less than a millisecond"),
        "cut.wav": (wav()[:-100], "cut short"),
        "header-cut.wav": (wav()[:20], "cut short"),
        "text.wav": (b"this is no recording", "neither libsndfile"),
        "text.m4a": (b"this is no recording", "neither libsndfile"),
        "picture.flac": (picture(Image.new("L", (9, 9)), "PNG"), "neither libsndfile"),
        "2-mhz.wav": (wav(rate=2_000_000), "2000000 Hz"),
        "nan.wav": (wav(subtype="FLOAT")[:-4] + b"\xff" * 4, "NaN"),
    }
    return files | {name: content for name, (content, _) in bad.items()}, {
        name: reason for name, (_, reason) in bad.items()
    }


def image_files() -> tuple[dict[str, bytes], dict[str, str]]:
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8))
    deep = Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64)
    jpeg, png = picture(grey, "JPEG"), picture(grey, "PNG")
    files = {f"good-{n}.png": picture(Image.new("L", (8, 8), n), "PNG") for n in range(180)}
    files |= {
        "cmyk.jpg": picture(grey.convert("CMYK"), "JPEG"),
        "16-bit.png": picture(deep, "PNG"),
        "animated.gif": picture(grey, "GIF", save_all=True, append_images=[grey.rotate(90)]),
        "alpha.webp": picture(grey.convert("RGBA"), "WEBP"),
        "really-a-jpeg.png": jpeg,
    }
    bad = {
        "0-bytes.png": (b"", "empty"),
        "cut.jpg": (jpeg[:500], "truncated"),
        "cut.png": (png[:500], "truncated"),
        "text.jpg": (b"this is no picture", "cannot be read as a picture"),
        "bomb.png": (picture(Image.new("1", (12_000, 12_000)), "PNG"), "exceeds limit"),
        "photo.heic": (b"\0\0\0\x18ftypheic", "HEIC"),
        "line.png": (picture(Image.new("1", (20_000, 2)), "PNG"), "a line"),
    }
    return files | {name: content for name, (content, _) in bad.items()}, {
        name: reason for name, (_, reason) in bad.items()
    }


def pointcloud_files() -> tuple[dict[str, bytes], dict[str, str]]:
    cloud = np.random.default_rng(0).random((64, 3)).astype(np.float32)
    nan = cloud.copy()
    nan[7, 1] = np.nan
    off = b"OFF\n4 2 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n3 0 1 3\n"
    files = {f"good-{n}.npy": array(cloud + n) for n in range(180)}
    files |= {
        "10-points.npy": array(cloud[:10]),
        "mesh.off": off,
        "doubles.npy": array(cloud + 0.1),
    }
    bad = {
        "0-bytes.npy": (b"", "empty"),
        "nan.npy": (array(nan), "NaN"),
        "none.npy": (array(cloud[:0]), "no points"),
        "flat.npy": (array(cloud.ravel()), "an \\(n, 3\\) array"),
        "pickled.npy": (array(np.array([{}], dtype=object), allow_pickle=True), "unpickling"),
        "pickle.npy": (pickle.dumps({"x": 1}), "unpickling"),
        "cut.npy": (array(cloud)[:-50], "unpickling"),
        "text.ply": (b"no points", "not a .ply"),
        "cut.off": (off[:-20], "cut short"),
    }
    return files | {name: content for name, (content, _) in bad.items()}, {
        name: reason.replace("\\", "") for name, (_, reason) in bad.items()
    }


def text_files() -> tuple[dict[str, bytes], dict[str, str]]:
    files = {f"good-{n}.txt": f"number {n}".encode() for n in range(180)}
    return files | {"0-bytes.txt": b"", "latin-1.txt": b"caf\xe9", "blank.txt": b" \n"}, {
        "0-bytes.txt": "empty",
        "latin-1.txt": "codec can't decode",
        "blank.txt": "empty",
    }


@pytest.mark.parametrize(
    ("modality", "files"),
    [
        ("audio", audio_files),
        ("image", image_files),
        ("pointcloud", pointcloud_files),
        ("text", text_files),
    ],
)
def test_of_many_files_every_good_one_is_embedded_and_every_bad_one_recorded(
    tmp_path: Path,
    encoder: Encoder,
    modality: Modality,
    files: Callable[[], tuple[dict[str, bytes], dict[str, str]]],
) -> None:
    content, bad = files()
    suffix = next(iter(bad)).rpartition(".")[2]
    folder = write(tmp_path / "media", content)
    os.mkfifo(folder / f"pipe.{suffix}")
    (folder / f"dangling.{suffix}").symlink_to("nowhere")
    (folder / f"folder.{suffix}").mkdir()
    (folder / f"folder.{suffix}" / "up").symlink_to(folder)
    bad |= {f"pipe.{suffix}": "a pipe", f"dangling.{suffix}": "No such file"}
    rows, failures = extracted(tmp_path, encoder, modality, folder)
    assert [row["id"] for row in rows] == sorted(content.keys() - bad.keys())
    assert failures.keys() == bad.keys()
    for name, reason in bad.items():
        assert reason in failures[name], name
        assert " at 0x" not in failures[name]


# Folders


def test_names_that_are_not_utf8_are_embedded(tmp_path: Path, encoder: Encoder) -> None:
    folder = tmp_path / "media" / "class"
    folder.mkdir(parents=True)
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.wav")).write_bytes(wav())
    rows, failures = extracted(tmp_path, encoder, "audio", tmp_path / "media")
    assert ([row["id"] for row in rows], failures) == (["class/caf\\xe9.wav"], {})


def test_links_that_go_round_in_circles_end(tmp_path: Path) -> None:
    for name in "abcdefgh":
        write(tmp_path / "media" / name, {"x.wav": wav()})
        for other in "abcdefgh":
            (tmp_path / "media" / name / f"to-{other}").symlink_to(tmp_path / "media" / other)
    elsewhere = write(tmp_path / "elsewhere", {"y.wav": wav()})
    (tmp_path / "media" / "linked").symlink_to(elsewhere)
    ids = [item.id for item in open_source("audio", str(tmp_path / "media")).items()]
    assert ids == [*(f"{name}/x.wav" for name in "abcdefgh"), "linked/y.wav"]


def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"open/x.wav": wav(), "shut/y.wav": wav()})
    scandir = os.scandir

    def refusing(path: str) -> Any:  # the tests may run as root, whom nothing is refused
        if os.fspath(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(SourceError, match="cannot be listed: Permission denied") as caught:
        open_source("audio", str(tmp_path))
    assert str(caught.value.where).endswith("shut")


def test_a_text_beside_point_clouds_is_none(tmp_path: Path, encoder: Encoder) -> None:
    points = np.random.default_rng(0).normal(size=(20, 3))
    text = "".join(" ".join(map(str, point)) + "\n" for point in points).encode()
    files = {f"{number}.npy": array(points) for number in range(3)}
    folder = write(
        tmp_path / "media",
        files | {"a.txt": b"# x y z\n" + text, "README.txt": b"Three clouds.\n", "empty.txt": b""},
    )
    source = open_source("pointcloud", str(folder))
    assert [item.id for item in source.items()] == ["0.npy", "1.npy", "2.npy", "a.txt"]
    assert (source.total, dict(source.skipped)) == (4, {".txt": 2})
    captions = {f"{number}.txt": b"a chair" for number in range(3)}
    packed = write(tmp_path / "packed", files | captions)
    subprocess.run(["tar", "--sort=name", "-cf", "x.tar", "-C", packed, "."], check=True,
                   cwd=tmp_path)  # fmt: skip
    rows, failures = extracted(tmp_path, encoder, "pointcloud", tmp_path / "x.tar")
    assert ([row["id"] for row in rows], failures) == (["0", "1", "2"], {})


# Manifests


def lines(tmp_path: Path, name: str, content: str | bytes) -> list[tuple[str, Any]]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    source = open_source("text", str(path))
    items = [(item.id, item.content) for item in source.items()]
    assert source.total == len(items)
    return items


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_marks_and_line_ends_are_no_part_of_a_text(tmp_path: Path, bom: str, end: str) -> None:
    assert lines(tmp_path, "x.txt", f"{bom}a{end}{end}b{end}") == [("0", "a"), ("2", "b")]
    for name, rows in (
        ("x.csv", ["id,text", "1,a", '2,"b, c"', '2,"d', 'e"']),
        ("x.tsv", ["id\ttext", "1\ta", "2\tb, c", '2\t"d', 'e"']),
        ("x.jsonl", ['{"id": 1, "text": "a"}', "", '{"id": 2, "text": "b, c"}']),
    ):
        found = lines(tmp_path, name, bom + end.join(rows) + end)
        assert found[:2] == [("1", "a"), ("2", "b, c")]
        assert found[2:] in ([], [("2", f"d{end}e")])


def test_labels_groups_and_columns_of_any_kind(tmp_path: Path, encoder: Encoder) -> None:
    table = [
        {"text": "a", "label": ["dog", None, "cat"], "group": 7, "uri": "http", "n": 1.5},
        {"text": "b", "label": "dog", "group": None, "tags": {"x": [1, "é"]}},
        {"text": "half \ud83d of it", "label": "", "id": "", "n": float("nan")},
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, table)))
    rows, failures = extracted(tmp_path, encoder, "text", tmp_path / "x.jsonl")
    assert [(row["id"], row["label"], row["group"]) for row in rows] == [
        ("0", ["dog", "cat"], "7"),
        ("1", ["dog"], None),
        ("2", None, None),
    ]
    assert [(row["uri_"], row["n"], row["tags"]) for row in rows] == [
        ("http", "1.5", None),
        (None, None, '{"x": [1, "é"]}'),
        (None, None, None),
    ]
    assert rows[2]["text"] == "half \ufffd\ufffd\ufffd of it"
    assert failures == {}


@pytest.mark.parametrize("name", ["x.tsv", "x.csv"])
def test_a_list_of_texts_without_a_header_keeps_its_first_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('a dog runs\n"a cat, sitting"\nrain\n')
    source = open_source("text", str(tmp_path / name))
    assert source.total == 3
    assert [item.content for item in source.items()] == ["a dog runs", "a cat, sitting", "rain"]
    assert [item.id for item in source.items()] == ["0", "1", "2"]
    for lines in ("title\na dog runs\n", "a dog\thttp://x\na cat\thttp://y\n"):
        (tmp_path / "y.tsv").write_text(lines)
        with pytest.raises(UsageError, match="no column text or caption") as caught:
            open_source("text", str(tmp_path / "y.tsv"))
        assert "write one as the first line" in str(caught.value)
    (tmp_path / "z.csv").write_text("a photo\nx.png\n")
    with pytest.raises(UsageError, match="no column path"):
        open_source("image", str(tmp_path / "z.csv"))


def test_a_row_without_a_path_is_a_failure_and_the_rest_goes_on(
    tmp_path: Path, encoder: Encoder
) -> None:
    write(tmp_path, {"sound/x.wav": wav()})
    paths = ["sound/x.wav", None, "", str(tmp_path / "sound" / "x.wav"), "sound", "\0", "y" * 999]
    table = pa.table({"path": paths, "vector": [[1.0]] * 7, "raw": [b"\xff"] * 7, "n": range(7)})
    pq.write_table(table, tmp_path / "x.parquet")
    assert open_source("audio", str(tmp_path / "x.parquet")).columns == ("n",)
    rows, failures = extracted(tmp_path, encoder, "audio", tmp_path / "x.parquet")
    assert [(row["id"], row["n"]) for row in rows] == [("0", "0"), ("3", "3")]
    assert failures["1"] == failures["2"] == "the row has no path"
    assert "a folder" in failures["4"]
    assert "null" in failures["5"]
    assert "too long" in failures["6"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b'text\n"never closed\n' + b"a,b\n" * 50_000, "quotation mark left open"),
        ("x.csv", b"text\n" + b"x" * 200_000, "after line 1: field larger than field limit"),
        ("x.csv", "text\na\n".encode("utf-16"), "cannot be read"),
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', "line 2: "),
        ("x.jsonl", b"[" * 100_000, "cannot be read"),
        ("x.txt", b"", "lists nothing"),
        ("x.parquet", b"PAR1" + bytes(99) + b"PAR1", "cannot be read"),
    ],
)
def test_a_list_that_cannot_be_read_says_where(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        lines(tmp_path, name, content)


@pytest.mark.parametrize("name", ["x.txt", "x.csv", "x.jsonl"])
def test_a_line_without_end_is_not_held_in_memory(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as file:
        file.write(b"text\n")
        file.truncate(1 << 30)  # a gigabyte of zeros, of which the disk keeps none
    tracemalloc.start()
    with pytest.raises(SourceError, match=r"longer than 16 Mi|cannot be read"):
        open_source("text", str(tmp_path / name))
    assert tracemalloc.get_traced_memory()[1] < 200 << 20
    tracemalloc.stop()


# webdataset


def tar(path: Path, members: Mapping[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


SAMPLES = {
    "dog/0001.cls": b"5\n",
    "dog/0001.wav": wav(900),
    "dog/0002.json": b'{"label": ["dog", "bark"], "group": "g", "id": "second", "city": "Rome"}',
    "dog/0002.txt": "ein Hund bellt ü\n".encode(),
    "dog/0002.wav": wav(700),
    "./0003.json": b'{"caption": "rain", "year": 1999, "city": null}',
    "./0003.left.WAV": wav(600),
    "./0003.right.WAV": wav(500),
    "0004.txt": b"only a text",
    ".hidden/._0005.wav": b"of a Mac",
    "0006.wav": b"no wave",
    "0007.json": b"{no json",
    "0007.wav": wav(),
    "0008.wav": b"",
    "9" * 300 + ".wav": wav(400),
}


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tgz"])
def test_a_tar_gives_samples_with_what_lies_beside_them(
    tmp_path: Path, encoder: Encoder, name: str
) -> None:
    path = tar(tmp_path / name, SAMPLES, "w" if name == "x.tar" else "w:gz")
    source = open_source("audio", str(path))
    assert (source.name, source.total, source.columns) == ("x", 8, ("city", "year"))
    rows, failures = extracted(tmp_path, encoder, "audio", path)
    assert [(row["id"], row["label"], row["city"], row["year"]) for row in rows] == [
        ("dog/0001", ["5"], None, None),
        ("second", ["dog", "bark"], "Rome", None),
        ("0003.left", None, None, "1999"),
        ("0003.right", None, None, "1999"),
        ("9" * 300, None, None, None),
    ]
    assert rows[1]["group"] == "g"
    assert failures.keys() == {"0006", "0007", "0008"}
    assert "0007.json cannot be read" in failures["0007"]
    assert "empty" in failures["0008"]
    texts = open_source("text", str(path))
    assert [(item.id, item.content) for item in texts.items()] == [
        ("second", "ein Hund bellt ü"),
        ("0003", "rain"),
        ("0004", "only a text"),
    ]


def test_a_list_of_texts_in_a_tar_is_a_row_each_and_one_group(tmp_path: Path) -> None:
    """AudioSet-style captions as LAION packs them: a sound is found by each of its texts."""
    members = {
        "a.json": b'{"text": ["a dog barks", "barking", null], "label": "dog"}',
        "a.wav": wav(),
        "b.json": b'{"text": ["rain"], "id": "wet"}',
        "b.wav": wav(),
        "c.json": b'{"text": "alone"}',
        "c.wav": wav(),
        "d.json": b'{"caption": ["one", "two"], "group": "g"}',
        "d.wav": wav(),
        "e.json": b'{"text": []}',
        "e.wav": wav(),
    }
    path = tar(tmp_path / "x.tar", members)
    source = open_source("text", str(path))
    texts = [(item.id, item.content, item.group) for item in source.items()]
    assert source.total == len(texts)
    assert texts == [
        ("a#0", "a dog barks", "a"), ("a#1", "barking", "a"), ("wet", "rain", "wet"),
        ("c", "alone", None), ("d#0", "one", "g"), ("d#1", "two", "g"),
    ]  # fmt: skip
    sounds = list(open_source("audio", str(path)).items())
    assert [sound.group for sound in sounds] == ["a", "wet", None, "g", "e"]
    assert [sound.label for sound in sounds][:2] == [("dog",), ()]


def test_tar_and_folder_give_the_same_embeddings(tmp_path: Path, encoder: Encoder) -> None:
    clouds = {f"{n}.npy": array(np.full((9, 3), n, np.float32)) for n in range(9)}
    clouds |= {"x.off": b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"}
    folder = write(tmp_path / "media", clouds)
    for where, dataset in ((tar(tmp_path / "media.tar", clouds), "tar"), (folder, "folder")):
        source = open_source("pointcloud", str(where))
        extract(tmp_path / "store", encoder, source, dataset, workers=0)
    data = [
        open_dataset(tmp_path / "store", Key("bytes", "pointcloud", dataset))
        for dataset in ("tar", "folder")
    ]
    np.testing.assert_array_equal(data[0].embeddings(), data[1].embeddings())


def test_a_folder_of_nothing_but_tars_is_read_in_their_order(tmp_path: Path) -> None:
    for shard in (1, 0):
        members = {f"{shard}{n}.wav": wav() for n in range(3)}
        tar(tmp_path / f"part-{shard}.tar", members)
    source = open_source("audio", str(tmp_path))
    assert [item.id for item in source.items()] == ["00", "01", "02", "10", "11", "12"]
    assert source.total == 6
    write(tmp_path, {"loose.wav": wav()})
    assert [item.id for item in open_source("audio", str(tmp_path)).items()] == ["loose.wav"]


def test_another_content_is_another_description(tmp_path: Path) -> None:
    def described(members: Mapping[str, bytes]) -> Any:
        path = tar(tmp_path / "x.tar", members)
        os.utime(path, (0, 0))
        return open_source("audio", str(path)).description

    first = described({"a.wav": wav()})
    assert described({"a.wav": wav()}) == first
    assert described({"b.wav": wav()}) != first


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_a_tar_that_is_cut_names_what_keeps_the_items_before_the_cut(
    tmp_path: Path, name: str
) -> None:
    noise = np.random.default_rng(0)
    members = {f"{n}.npy": array(noise.random((200, 3))) for n in range(9)}
    whole = tar(tmp_path / name, members, "w" if name == "x.tar" else "w:gz").read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match=r"cut short or damaged after \d whole") as caught:
        open_source("pointcloud", str(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value)
    command = str(caught.value.fix).partition("keep what is whole: ")[2]
    subprocess.run(command, shell=True, cwd=tmp_path, check=True, stderr=subprocess.DEVNULL)
    saved = open_source("pointcloud", str((tmp_path / "WHOLE.tar").rename(tmp_path / "y.tar")))
    items = list(saved.items())
    assert [item.id for item in items] == [str(n) for n in range(5 if name == "x.tar" else 4)]
    assert [decode("pointcloud", item).shape for item in items] == [(200, 3)] * len(items)


def test_a_damaged_header_is_not_the_end_of_the_tar(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", {f"{n}.npy": bytes(512) for n in range(3)})
    content = bytearray(path.read_bytes())
    content[2 * 1024 + 20] ^= 255
    path.write_bytes(content)
    with pytest.raises(SourceError, match="after 1 whole samples: a damaged header"):
        open_source("pointcloud", str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a tar that can be read"),
        (b"this is no tar" * 99, "not a tar that can be read"),
        ({"a.txt": b"a text"}, "holds no audio files"),
        ({"a.wav": wav(), "b.wav": wav(), "a.json": b"{}", "b.json": b"{}"}, "lies beside"),
    ],
)
def test_a_tar_that_is_none_is_refused(
    tmp_path: Path, content: bytes | Mapping[str, bytes], message: str
) -> None:
    path = tmp_path / "x.tar"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        tar(path, content)
    with pytest.raises(SourceError, match=message):
        open_source("audio", str(path))


def test_a_long_tar_is_read_in_little_memory(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", {f"{n:05}.npy": bytes(20_000) for n in range(1_000)})
    tracemalloc.start()
    source = open_source("pointcloud", str(path))
    assert sum(1 for _ in source.items()) == source.total == 1_000
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_captions_of_one_id_are_sound(tmp_path: Path, encoder: Encoder) -> None:
    (tmp_path / "captions.csv").write_text("id,text\na,a dog\na,it barks\nb,rain\n")
    rows, _ = extracted(tmp_path, encoder, "text", tmp_path / "captions.csv")
    assert [row["id"] for row in rows] == ["a", "a", "b"]
    assert [verdict.problem for verdict in verify_store(tmp_path / "store")] == [None]


# What is told of a folder


def test_files_passed_over_are_counted_by_suffix(tmp_path: Path, encoder: Encoder) -> None:
    names = ("a.txt", "b.TXT", "c/d.docx", "README", ".hidden", ".git/x.txt")
    write(tmp_path / "media", {"a.wav": wav(), **dict.fromkeys(names, b"")})
    source = open_source("audio", str(tmp_path / "media"))
    assert source.skipped == {"": 1, ".docx": 1, ".txt": 2}
    summary = extract(tmp_path / "store", encoder, source, "t", workers=0)
    assert "skipped: 2 .txt, 1 without suffix, 1 .docx" in str(summary)
    assert summary.as_dict()["skipped"] == source.skipped
    with pytest.raises(SourceError, match=r"no image files, but 2 .txt, 1 without suffix"):
        open_source("image", str(tmp_path / "media"))


def test_a_text_beside_clouds_is_no_cloud(tmp_path: Path, encoder: Encoder) -> None:
    """Only a .txt that begins with points is one; the rest is passed over and counted."""
    lines = "\ufeff# x y z\n\n0,0,0\n1,0,0\n0,1,0\n" + "0.5 0.5 0.25\n" * 500
    texts = {"README.txt": b"Five clouds.\n1 2 3\n", "labels.txt": b"0\n1\n", "empty.txt": b""}
    clouds = {"a.npy": array(np.eye(3)), "b.txt": lines.encode(), "c.TXT": b"1 2 3 4 5 6\n"}
    write(tmp_path / "media", {**texts, **clouds})
    os.mkfifo(tmp_path / "media/pipe.txt")
    (tmp_path / "media/dangling.txt").symlink_to("nowhere")
    source = open_source("pointcloud", str(tmp_path / "media"))
    assert source.skipped == {".txt": 3}
    rows, failures = extracted(tmp_path, encoder, "pointcloud", tmp_path / "media")
    assert [row["id"] for row in rows] == sorted(clouds)
    assert failures.keys() == {"pipe.txt", "dangling.txt"}


def test_a_captions_text_in_a_tar_is_no_cloud(tmp_path: Path) -> None:
    """Not even one that is made of numbers."""
    members = {f"{n}.{kind}": content for n in range(3) for kind, content in
               {"npy": array(np.eye(3)), "txt": b"1 2 3"}.items()}  # fmt: skip
    path = str(tar(tmp_path / "clouds.tar", members))
    assert [item.id for item in open_source("pointcloud", path).items()] == ["0", "1", "2"]
    assert [item.content for item in open_source("text", path).items()] == ["1 2 3"] * 3


def test_a_pattern_may_span_folders(tmp_path: Path) -> None:
    places = ("car/train/1.npy", "car/test/2.npy", "bus/test/1.npy", "loose.npy")
    write(tmp_path, dict.fromkeys(places, array(np.ones((4, 3), np.float32))))
    pattern = "(?P<label>[^/]+)/(?P<split>train|test)/"
    source = open_source("pointcloud", str(tmp_path), pattern)
    assert source.columns == ("split",)
    assert [(item.id, item.label, item.extra) for item in source.items()] == [
        ("loose.npy", (), {}),
        ("bus/test/1.npy", ("bus",), {"split": "test"}),
        ("car/test/2.npy", ("car",), {"split": "test"}),
        ("car/train/1.npy", ("car",), {"split": "train"}),
    ]
    assert source.pattern == "the pattern matches 3 of 4 (first that it does not: loose.npy)"


def test_a_pattern_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "media", {"a-1.wav": wav()})
    with pytest.raises(UsageError, match=r"matches none of 1 files, such as a-1.wav"):
        open_source("audio", str(tmp_path / "media"), r"^(?P<label>\d+)-")
    (tmp_path / "x.csv").write_text("path\na.wav\n")
    with pytest.raises(UsageError, match="names of files in a folder"):
        open_source("audio", str(tmp_path / "x.csv"), ".")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"\d+-.*", r"names no group, so it reads nothing\n  fix:   such as \(\?P<label>"),
        (r"(?P<label", r"is not a regular expression: .*\n  fix:   such as \(\?P<label>"),
    ],
)
def test_a_pattern_that_reads_nothing_is_refused(
    tmp_path: Path, pattern: str, message: str
) -> None:
    write(tmp_path, {"1-a.wav": wav()})
    with pytest.raises(UsageError, match=message):
        open_source("audio", str(tmp_path), pattern)


def test_meshes_and_lists_of_points_are_read(tmp_path: Path, encoder: Encoder) -> None:
    import trimesh

    box = trimesh.creation.box((1.0, 2.0, 3.0))
    whole = {kind: box.export(file_type=kind) for kind in ("stl", "glb")}
    ascii = box.export(file_type="stl_ascii").encode()
    bad = {
        "cut.stl": (whole["stl"][:-30], "cut short"),
        "cut-ascii.stl": (ascii[:-30], "cut short"),
        "cut.glb": (whole["glb"][:-30], "cut short"),
        "text.glb": (b"this is no mesh", "not a .glb"),
        "two.xyz": (b"1 2\n3 4\n", "three coordinates"),
        "names.xyz": (b"airplane\ncar\n", "not a list of points"),
        "later.txt": (b"0 0 0\n" * 999 + b"car\n", "not a list of points"),
        "nothing.xyz": (b"\n", "no points"),
    }
    good = {
        "a.stl": whole["stl"],
        "b.stl": ascii,
        "c.glb": whole["glb"],
        "d.xyz": b"# x y z\n0 0 0\n1 2 3\n",
        "e.txt": b"0,0,0,0,0,1\n1,2,3,0,1,0\n",
    }
    files = good | {name: content for name, (content, _) in bad.items()}
    rows, why = extracted(tmp_path, encoder, "pointcloud", write(tmp_path / "media", files))
    assert [row["id"] for row in rows] == list(good)
    assert why.keys() == bad.keys()
    for name, (_, reason) in bad.items():
        assert reason in why[name], name


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    tmp_path: Path, encoder: Encoder
) -> None:
    files = {f"{'dog' if n % 3 else 'cat'}/{n}.wav": wav(100 + n) for n in range(7)}
    media = write(tmp_path / "media", files | {"dog/0.wav": b"", "notes.txt": b""})
    source = open_source("audio", str(media))
    preview = preview_extraction(tmp_path / "store", encoder, source, "t", part_rows=3, workers=1)
    assert not (tmp_path / "store").exists()
    assert (preview.items, preview.parts, preview.labels) == (8, 3, {"cat": 3, "dog": 5})
    assert preview.skipped == {".txt": 1}
    assert [item["id"] for item in preview.first] == ["cat/0.wav", "cat/3.wav", "cat/6.wav"]
    assert preview.bytes == 8 * 8 * (2 + 4)
    assert preview.seconds > 0
    assert "1 the file is empty (first: dog/0.wav)" in str(preview)
    assert json.loads(json.dumps(preview.as_dict()))["state"] == "nothing is there yet"
    extract(tmp_path / "store", encoder, source, "t", part_rows=3, workers=0, max_failures=1.0)
    (media / "dog/1.wav").unlink()
    source = open_source("audio", str(media))
    preview = preview_extraction(tmp_path / "store", encoder, source, "t", part_rows=3, workers=1)
    assert "1 gone (first: dog/1.wav)" in preview.state
