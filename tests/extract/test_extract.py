"""Media in, embedding shards out: sources, failures, resume, and many processes at once."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from PIL import Image
from shell import below

from cmcr.embeddings import Dataset, Key, Modality, open_dataset, verify_store
from cmcr.errors import CmcrError, MismatchError, SourceError, UsageError
from cmcr.extract import Encoder, extract, load_encoder, open_source


def write_tone(path: Path, pitch: float, rate: int = 8000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.5 * np.sin(np.arange(1600) * pitch / rate * 6.28), rate)


def write_picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), shade).save(path)


def visible(folder: Path) -> dict[str, bytes]:
    """Every file of a dataset that is not hidden, by name."""
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")
    }


def rows(dataset: Dataset, *columns: str) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = dataset.table(columns).to_pylist()
    return table


# Sources


def test_a_folder_of_class_folders_gives_labels(tmp_path: Path, encoder: Encoder) -> None:
    for place in ("dog/a.wav", "dog/b.WAV", "rain/a.wav", "top.flac", ".hidden/x.wav"):
        write_tone(tmp_path / "media" / place, 440)
    (tmp_path / "media" / "notes.txt").write_text("not audio")
    source = open_source("audio", str(tmp_path / "media"))
    assert source.total == 4
    extract(tmp_path / "store", encoder, source, "media", workers=0)
    dataset = open_dataset(tmp_path / "store", Key("bytes", "audio", "media"))
    assert rows(dataset, "id", "label") == [
        {"id": "top.flac", "label": None},
        {"id": "dog/a.wav", "label": ["dog"]},
        {"id": "dog/b.WAV", "label": ["dog"]},
        {"id": "rain/a.wav", "label": ["rain"]},
    ]


def test_file_names_of_a_known_collection_give_labels_and_columns(tmp_path: Path) -> None:
    for name in ("0_george_0.wav", "7_lucas_12.wav"):
        write_tone(tmp_path / name, 440)
    source = open_source("audio", str(tmp_path))
    assert source.columns == ("speaker", "take")
    last = list(source.items())[-1]
    assert last.label == ("7",)
    assert last.extra == {"speaker": "lucas", "take": "12"}


def test_a_pattern_for_file_names_gives_labels_groups_and_columns(tmp_path: Path) -> None:
    write_tone(tmp_path / "1-100032-A-0.wav", 440)
    pattern = r"(?P<fold>\d)-(?P<group>\d+)-[A-Z]-(?P<label>\d+)"
    source = open_source("audio", str(tmp_path), pattern)
    (item,) = source.items()
    assert (item.label, item.group, item.extra) == (("0",), "100032", {"fold": "1"})
    with pytest.raises(UsageError, match="not a regular expression"):
        open_source("audio", str(tmp_path), "(")


def manifest(folder: Path, suffix: str, table: list[dict[str, Any]]) -> Path:
    path = folder / f"items.{suffix}"
    if suffix in ("csv", "tsv"):
        comma = "," if suffix == "csv" else "\t"
        lines = [comma.join(table[0])] + [comma.join(map(str, row.values())) for row in table]
        path.write_text("\n".join(lines) + "\n")
    elif suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, table)) + "\n\n")
    else:
        pq.write_table(pa.Table.from_pylist(table), path)
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_manifest_names_files_beside_it_and_carries_columns(
    tmp_path: Path, encoder: Encoder, suffix: str
) -> None:
    write_tone(tmp_path / "sound" / "a.wav", 440)
    table = [
        {"id": "first", "path": "sound/a.wav", "label": "dog", "group": "g1", "city": "Rome"},
        {"id": "again", "path": str(tmp_path / "sound/a.wav"), "label": "dog", "group": "g2",
         "city": "Oslo"},
    ]  # fmt: skip
    source = open_source("audio", str(manifest(tmp_path, suffix, table)))
    extract(tmp_path / "store", encoder, source, "items", workers=0)
    dataset = open_dataset(tmp_path / "store", Key("bytes", "audio", "items"))
    assert rows(dataset, "id", "label", "group", "city") == [
        {"id": "first", "label": ["dog"], "group": "g1", "city": "Rome"},
        {"id": "again", "label": ["dog"], "group": "g2", "city": "Oslo"},
    ]
    first, second = dataset.embeddings()
    np.testing.assert_array_equal(first, second)


def test_texts_come_from_lines_and_from_a_caption_column(tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("a dog\n\n  a cat \n", encoding="utf-8")
    assert [(item.id, item.content) for item in open_source("text", str(lines)).items()] == [
        ("0", "a dog"),
        ("2", "a cat"),
    ]
    captions = tmp_path / "captions.tsv"
    captions.write_text("image_id\tcaption\n7\tA dog.\n", encoding="utf-8")
    source = open_source("text", str(captions))
    assert [(item.content, item.extra) for item in source.items()] == [
        ("A dog.", {"image_id": "7"})
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"text": "a"}\n[1]\n', "not a JSON object"),
        ("x.jsonl", '{"text": ', "cannot be read"),
        ("x.csv", "text,label\na\n", "number of fields"),
        ("x.csv", "", "lists nothing"),
        ("x.csv", "sentence\na dog\n", "no column text or caption; it has sentence"),
        ("x.txt", b"\xff\xfe\x00", "cannot be read"),
        ("x.parquet", b"PAR1", "cannot be read"),
        ("x.docx", b"PK", "not read from .docx"),
    ],
)
def test_a_file_that_is_no_list_of_texts_is_refused(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CmcrError, match=message):
        open_source("text", str(path))


def test_an_empty_folder_and_a_missing_one_say_so(tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("nothing here")
    with pytest.raises(SourceError, match="holds no audio files") as caught:
        open_source("audio", str(tmp_path))
    assert ".wav" in str(caught.value)
    with pytest.raises(UsageError, match="no such folder or file"):
        open_source("audio", str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="builtin:digits/speech-test"):
        open_source("audio", "builtin:digits/nothing")


# Bad media


def bad_media(folder: Path) -> None:
    """Two good recordings and every bad one."""
    write_tone(folder / "good-1.wav", 440)
    write_tone(folder / "good-2.wav", 880)
    whole = (folder / "good-1.wav").read_bytes()
    (folder / "cut-data.wav").write_bytes(whole[:-1000])
    (folder / "cut-header.wav").write_bytes(whole[:20])
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("this is no recording")
    soundfile.write(folder / "no-frames.wav", np.zeros(0), 8000)
    soundfile.write(folder / "nan.wav", np.array([0.1, np.nan]), 8000, subtype="FLOAT")
    soundfile.write(folder / "slow.wav", np.zeros(100), 10)


def test_bad_media_are_recorded_and_the_rest_goes_on(tmp_path: Path, encoder: Encoder) -> None:
    folder = tmp_path / "media"
    folder.mkdir()
    bad_media(folder)
    source = open_source("audio", str(folder))
    with pytest.raises(SourceError, match="7 of 9 inputs could not be embedded"):
        extract(tmp_path / "store", encoder, source, "media", workers=0)
    summary = extract(tmp_path / "store", encoder, source, "media", workers=0, max_failures=1.0)
    assert (summary.rows, summary.failures, summary.made) == (2, 7, 0)
    dataset = open_dataset(tmp_path / "store", Key("bytes", "audio", "media"))
    assert dataset.ids() == ["good-1.wav", "good-2.wav"]
    failures = pq.read_table(dataset.folder / "failures.parquet").to_pylist()
    why = {row["id"]: row["message"] for row in failures}
    assert "cut short" in why["cut-data.wav"]
    assert "empty" in why["empty.wav"]
    assert "no samples" in why["no-frames.wav"]
    assert "NaN" in why["nan.wav"]
    assert "10 Hz" in why["slow.wav"]
    assert {"cut-header.wav", "text.wav"} < why.keys()


def test_pictures_that_are_none_are_recorded(tmp_path: Path, encoder: Encoder) -> None:
    folder = tmp_path / "media"
    write_picture(folder / "good.png", 90)
    (folder / "text.png").write_text("this is no picture")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:900])
    Image.new("1", (12_000, 12_000)).save(folder / "bomb.png")
    source = open_source("image", str(folder))
    extract(tmp_path / "store", encoder, source, "media", workers=0, max_failures=1.0)
    dataset = open_dataset(tmp_path / "store", Key("bytes", "image", "media"))
    failures = pq.read_table(dataset.folder / "failures.parquet").to_pylist()
    assert dataset.ids() == ["good.png"]
    assert [(row["id"], row["error"]) for row in failures] == [
        ("bomb.png", "DecompressionBombWarning"),
        ("cut.jpg", "OSError"),
        ("text.png", "UnidentifiedImageError"),
    ]


def test_a_manifest_of_missing_files_records_each_and_keeps_the_rest(
    tmp_path: Path, encoder: Encoder
) -> None:
    write_tone(tmp_path / "here.wav", 440)
    (tmp_path / "items.csv").write_text("path\nhere.wav\ngone.wav\n")
    source = open_source("audio", str(tmp_path / "items.csv"))
    with pytest.raises(SourceError, match="1 of 2 inputs") as caught:
        extract(tmp_path / "store", encoder, source, "items", workers=0)
    assert "failures.parquet" in str(caught.value)
    dataset = open_dataset(tmp_path / "store", Key("bytes", "audio", "items"))
    (failure,) = pq.read_table(dataset.folder / "failures.parquet").to_pylist()
    assert failure["error"] == "FileNotFoundError"
    assert dataset.rows == 1


def test_a_bad_source_stops_after_the_first_bad_part(tmp_path: Path, encoder: Encoder) -> None:
    (tmp_path / "items.csv").write_text("path\n" + "gone.wav\n" * 100)
    source = open_source("audio", str(tmp_path / "items.csv"))
    with pytest.raises(SourceError, match="10 of 10 inputs"):
        extract(tmp_path / "store", encoder, source, "items", workers=0, part_rows=10)


def test_a_vector_that_is_not_finite_is_a_failure(tmp_path: Path, encoder: Encoder) -> None:
    (tmp_path / "lines.txt").write_text("good\nbad\n")
    whole = encoder.encode

    def broken(modality: Any, batch: Any) -> Any:
        vectors = whole(modality, batch)
        vectors[1] = float("nan")
        return vectors

    encoder.encode = broken  # type: ignore[method-assign]
    source = open_source("text", str(tmp_path / "lines.txt"))
    summary = extract(tmp_path / "store", encoder, source, "t", workers=0, max_failures=0.5)
    assert (summary.rows, summary.failures) == (1, 1)


# Doing it again


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"this is line {n}\n" for n in range(100)))
    return path


def test_the_same_command_again_does_nothing(tmp_path: Path, encoder: Encoder, lines: Path) -> None:
    source = open_source("text", str(lines))
    first = extract(tmp_path / "store", encoder, source, "t", workers=0, part_rows=30)
    folder = Key("bytes", "text", "t").folder(tmp_path / "store")
    before = visible(folder)
    again = extract(tmp_path / "store", encoder, source, "t", workers=0, part_rows=30)
    assert (first.made, again.made, again.rows) == (100, 0, 100)
    assert visible(folder) == before


@pytest.mark.parametrize("damage", ["missing", "cut", "no manifest", "no index"])
def test_what_is_lost_is_made_again_with_the_same_bytes(
    tmp_path: Path, encoder: Encoder, lines: Path, damage: str
) -> None:
    source = open_source("text", str(lines))
    extract(tmp_path / "store", encoder, source, "t", workers=0, part_rows=30, batch_size=7)
    folder = Key("bytes", "text", "t").folder(tmp_path / "store")
    before = visible(folder)
    part = folder / "part-00002.parquet"
    if damage == "missing":
        part.unlink()
    elif damage == "cut":
        part.write_bytes(part.read_bytes()[:-100])
    elif damage == "no manifest":
        (folder / "manifest.json").unlink()
    else:
        (folder / "index.faiss").unlink()
    summary = extract(
        tmp_path / "store", encoder, source, "t", workers=0, part_rows=30, batch_size=7
    )
    assert summary.made == (30 if damage in ("missing", "cut") else 0)
    assert visible(folder) == before


def test_a_changed_source_or_checkpoint_is_refused(
    tmp_path: Path, encoder: Encoder, lines: Path
) -> None:
    store = tmp_path / "store"
    extract(store, encoder, open_source("text", str(lines)), "t", workers=0)
    lines.write_text(lines.read_text() + "one more\n")
    with pytest.raises(MismatchError, match=r"1 new \(first: 100\), 0 changed, 0 gone"):
        extract(store, encoder, open_source("text", str(lines)), "t", workers=0)
    lines.write_text(lines.read_text().removesuffix("one more\n"))
    other = type(encoder)("1" * 64)  # type: ignore[call-arg]
    with pytest.raises(MismatchError, match=r"encoder\.checkpoint_sha256"):
        extract(store, other, open_source("text", str(lines)), "t", workers=0)


def test_a_moved_source_is_the_same_source(tmp_path: Path, encoder: Encoder, lines: Path) -> None:
    extract(tmp_path / "store", encoder, open_source("text", str(lines)), "t", workers=0)
    moved = lines.rename(tmp_path / "moved.txt")
    summary = extract(tmp_path / "store", encoder, open_source("text", str(moved)), "t", workers=0)
    assert summary.made == 0


def test_shards_of_a_cluster_make_the_same_dataset(
    tmp_path: Path, encoder: Encoder, lines: Path
) -> None:
    source = open_source("text", str(lines))
    extract(tmp_path / "one", encoder, source, "t", workers=0, part_rows=10)
    finished = [
        extract(
            tmp_path / "many", encoder, source, "t", workers=0, part_rows=10,
            shard_index=shard, num_shards=3,
        ).finished
        for shard in (2, 0, 1)
    ]  # fmt: skip
    assert finished == [False, False, True]
    key = Key("bytes", "text", "t")
    assert visible(key.folder(tmp_path / "one")) == visible(key.folder(tmp_path / "many"))
    with pytest.raises(UsageError, match="no shard 3 of 3"):
        extract(tmp_path / "x", encoder, source, "t", shard_index=3, num_shards=3)


def test_an_encoder_takes_only_its_modalities(tmp_path: Path, lines: Path) -> None:
    from cmcr.extract import load_encoder

    encoder = load_encoder("digits-clap")
    write_picture(tmp_path / "x.png", 9)
    source = open_source("image", str(tmp_path))
    with pytest.raises(UsageError, match="takes no image"):
        extract(tmp_path, encoder, source, "t")
    with pytest.raises(UsageError, match="no encoder named 'clop'"):
        load_encoder("clop")


# Killed, and twice at once: through the command line, with worker processes


def command(store: Path, lines: Path) -> list[str]:
    return [
        "-m", "cmcr", "extract", "--encoder", "digits-clip", "--source", f"text={lines}",
        "--store", str(store), "--part-rows", "200", "--batch-size", "32", "--workers", "1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A source of 3,000 texts, and the files of an undisturbed run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    lines = folder / "lines.txt"
    lines.write_text("".join(f"a photo of the number {n}\n" for n in range(3000)))
    subprocess.run(
        [sys.executable, *command(folder / "store", lines)], check=True, capture_output=True
    )
    return lines, visible(Key("digits-clip", "text", "lines").folder(folder / "store"))


def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    tmp_path: Path, undisturbed: tuple[Path, dict[str, bytes]]
) -> None:
    lines, expected = undisturbed
    folder = Key("digits-clip", "text", "lines").folder(tmp_path)
    chance = random.Random(0)
    for kill in range(2):
        process = forked.Process(*command(tmp_path, lines), session=True)
        _wait_for(lambda parts=3 * kill: len(list(folder.glob("part-*"))) > parts, process)
        time.sleep(chance.uniform(0, 0.1))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (folder / "manifest.json").exists(), "the kill came too late to test anything"
    done = forked.run(*command(tmp_path, lines))
    assert done.returncode == 0, done.stderr
    assert visible(folder) == expected


def test_two_processes_at_once_share_the_work(
    tmp_path: Path, undisturbed: tuple[Path, dict[str, bytes]]
) -> None:
    lines, expected = undisturbed
    for process in [forked.Process(*command(tmp_path, lines)) for _ in range(2)]:
        done = process.done()
        assert done.returncode == 0, done.stderr
    assert visible(Key("digits-clip", "text", "lines").folder(tmp_path)) == expected


def _wait_for(condition: Callable[[], bool], process: forked.Process) -> None:
    for _ in range(6000):
        if condition() or process.poll() is not None:
            return
        time.sleep(0.01)
    raise AssertionError("nothing happened for a minute")


def test_an_index_that_faiss_does_not_know_is_refused_before_anything_is_embedded(
    tmp_path: Path, encoder: Encoder
) -> None:
    (tmp_path / "lines.txt").write_text("a\nb\n")
    source = open_source("text", str(tmp_path / "lines.txt"))
    with pytest.raises(UsageError, match="knows no index 'Foo': could not parse index string Foo"):
        extract(tmp_path / "store", encoder, source, "t", workers=0, index="Foo")
    assert not (tmp_path / "store").exists()


def test_captions_that_share_an_id_are_sound(tmp_path: Path, encoder: Encoder) -> None:
    (tmp_path / "captions.csv").write_text("id,text\na,one dog\na,a dog\nb,a cat\n")
    source = open_source("text", str(tmp_path / "captions.csv"))
    extract(tmp_path / "store", encoder, source, "t", workers=0)
    assert [verdict.problem for verdict in verify_store(tmp_path / "store")] == [None]


def test_a_worker_gives_way_and_does_not_starve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder("digits-clip")
    whole, priorities = type(encoder).encode, set()

    def encode(self: Encoder, modality: Modality, batch: torch.Tensor) -> torch.Tensor:
        priorities.update(os.getpriority(os.PRIO_PROCESS, pid) for pid in below(os.getpid()))
        return whole(self, modality, batch)

    monkeypatch.setattr(type(encoder), "encode", encode)
    (tmp_path / "lines.txt").write_text("".join(f"{n}\n" for n in range(40)))
    source = open_source("text", str(tmp_path / "lines.txt"))
    extract(tmp_path / "store", encoder, source, "t", workers=1, batch_size=4)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert max(priorities) > own
    assert max(priorities) <= own + 5
