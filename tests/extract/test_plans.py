"""A source laid out by parts: the same bytes, and no shard reads what is not its own."""

import os
import re
import shlex
import string
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image
from shell import succeed

from cmcr.embeddings import Key, verify_store
from cmcr.errors import MismatchError, SourceError, UsageError
from cmcr.extract import (
    Encoder,
    Source,
    extract,
    open_regions,
    open_source,
    open_spans,
    write_plan,
)
from cmcr.files import UNFINISHED, sha256_file

PAGE = Path(__file__).parents[2] / "docs/scale.md"


def parts(folder: Path) -> dict[str, str]:
    """The sha256 of every part, and of what is gathered from them."""
    names = [*folder.glob("part-*.parquet"), folder / "inputs.parquet", folder / "failures.parquet"]
    return {path.name: sha256_file(path) for path in names}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in class folders, two of them broken, sounds, a tar of the pictures, and points."""
    folder = tmp_path_factory.mktemp("media")
    draw = np.random.default_rng(0)
    for number in range(7):
        path = folder / f"photos/{number % 2}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (24, 24), dtype=np.uint8)).save(path)
    (folder / "photos/1/broken.png").write_bytes(b"no picture")
    (folder / "photos/0/empty.png").touch()
    for name in ("sounds", "shapes"):
        (folder / name).mkdir()
    for number in range(3):
        soundfile.write(folder / f"sounds/{number}.wav", 0.1 * draw.standard_normal(6000), 8000)
        np.save(folder / f"shapes/{number}.npy", draw.normal(size=(30, 3)))
    with tarfile.open(folder / "photos.tar", "w") as tar:
        tar.add(folder / "photos", "photos")
    rows = [f"{number % 3}\tg{number}\ta text of number {number}" for number in range(23)]
    (folder / "texts.tsv").write_text("\n".join(["label\tgroup\ttext", *rows, "1\tg\t"]) + "\n")
    return folder


def photos(media: Path) -> Source:
    return open_source("image", str(media / "photos"), r"(?P<label>\d)/(?P<name>[a-z0-9]+)")


SOURCES: dict[str, Callable[[Path], Source]] = {
    "folder": photos,
    "tar": lambda media: open_source("image", str(media / "photos.tar")),
    "texts": lambda media: open_source("text", str(media / "texts.tsv")),
    "regions": lambda media: open_regions(photos(media), "grid:2", media, "cpu"),
    "windows": lambda media: open_spans("audio", str(media / "sounds"), window=0.2, folder=media),
    "points": lambda media: open_source("pointcloud", str(media / "shapes"), up="z"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_by_a_plan_two_shards_make_the_bytes_of_a_run_without(
    kind: str, media: Path, encoder: Encoder, tmp_path: Path
) -> None:
    source = SOURCES[kind](media)
    rest: dict[str, Any] = {"workers": 0, "index": None, "max_failures": 1.0}
    one = extract(tmp_path / "one", encoder, source, "d", part_rows=5, **rest)
    path = tmp_path / "d.plan.parquet"
    digest = write_plan(path, source, 5)
    planned = open_source(source.modality, str(path))
    assert [type(item) for item in planned.items()] == [type(item) for item in source.items()]
    for shard in (1, 0):
        many = extract(
            tmp_path / "many", encoder, planned, "d", shard_index=shard, num_shards=2, **rest
        )
    assert many.finished
    assert (many.rows, many.failures) == (one.rows, one.failures)
    assert parts(many.folder) == parts(one.folder)
    assert write_plan(path, source, 5) == digest
    assert extract(tmp_path / "one", encoder, planned, "d", **rest).made == 0
    assert extract(tmp_path / "many", encoder, source, "d", part_rows=5, **rest).made == 0


def test_a_shard_reads_no_rows_but_its_own(media: Path, encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "texts.plan.parquet"
    write_plan(path, SOURCES["texts"](media), 10)
    column = pq.read_metadata(path).row_group(0).column(0)
    with path.open("r+b") as file:
        file.seek(column.data_page_offset)
        file.write(b"\xff" * column.total_compressed_size)
    source = open_source("text", str(path))
    limit: dict[str, Any] = {"workers": 0, "index": None, "max_failures": 1.0, "num_shards": 3}
    for shard in (1, 2, 1):
        extract(tmp_path / "store", encoder, source, "t", shard_index=shard, **limit)
    with pytest.raises(SourceError, match="plan cannot be read"):
        extract(tmp_path / "store", encoder, source, "t", shard_index=0, **limit)


def test_what_no_plan_can_be_or_be_used_for_is_refused(
    media: Path, encoder: Encoder, tmp_path: Path
) -> None:
    path = tmp_path / "photos.plan.parquet"
    write_plan(path, photos(media), 5)
    planned = open_source("image", str(path))
    asked = tmp_path, encoder, planned, "d"
    refused: list[tuple[str, Callable[[], object]]] = [
        ("5 inputs in a part, not 9", lambda: extract(*asked, part_rows=9)),
        ("follows the source itself", lambda: extract(*asked, update=True)),
        ("plan of image, not of audio", lambda: open_source("audio", str(path))),
        ("a plan says already", lambda: open_source("image", str(path), "(?P<label>x)")),
        ("plan of pictures has no regions", lambda: open_regions(planned, "grid", tmp_path, "cpu")),
    ]
    for message, work in refused:
        with pytest.raises(UsageError, match=message):
            work()
    with tarfile.open(tmp_path / "photos.tar.gz", "w:gz") as tar:
        tar.add(media / "photos", "photos")
    with pytest.raises(UsageError, match="no worker can read by themselves"):
        write_plan(path, open_source("image", str(tmp_path / "photos.tar.gz")), 5)
    items = iter(planned.items())
    next(items)
    write_plan(path, photos(media), 4)
    with pytest.raises(SourceError, match="another plan was written there"):
        list(items)


def test_shards_of_two_plans_of_one_source_are_not_mixed(
    media: Path, encoder: Encoder, tmp_path: Path
) -> None:
    """The rows say where their media lie, so a moved source has another plan."""
    path = tmp_path / "texts.plan.parquet"
    limit: dict[str, Any] = {"workers": 0, "index": None, "max_failures": 1.0, "num_shards": 2}
    write_plan(path, SOURCES["texts"](media), 10)
    extract(tmp_path / "store", encoder, open_source("text", str(path)), "t", **limit)
    (tmp_path / "texts.tsv").write_bytes((media / "texts.tsv").read_bytes())
    write_plan(path, SOURCES["texts"](tmp_path), 10)
    moved = open_source("text", str(path))
    with pytest.raises(MismatchError, match=r"source\.plan"):
        extract(tmp_path / "store", encoder, moved, "t", shard_index=1, **limit)


def test_nor_are_they_where_the_dataset_was_begun_without_one(
    media: Path, encoder: Encoder, tmp_path: Path
) -> None:
    limit: dict[str, Any] = {"workers": 0, "index": None, "max_failures": 1.0, "num_shards": 3}
    planned = []
    for folder in (media, tmp_path):
        (tmp_path / "texts.tsv").write_bytes((media / "texts.tsv").read_bytes())
        write_plan(tmp_path / f"{folder.name}.plan.parquet", SOURCES["texts"](folder), 10)
        planned.append(open_source("text", str(tmp_path / f"{folder.name}.plan.parquet")))
    asked = tmp_path / "store", encoder
    extract(*asked, SOURCES["texts"](media), "t", part_rows=10, **limit)
    extract(*asked, planned[0], "t", shard_index=1, **limit)
    with pytest.raises(MismatchError, match=r"source\.plan"):
        extract(*asked, planned[1], "t", shard_index=2, **limit)
    assert extract(*asked, planned[0], "t", shard_index=2, **limit).finished


def test_media_that_changed_since_their_part_was_made_are_noticed_by_their_shard(
    encoder: Encoder, tmp_path: Path
) -> None:
    for number in range(4):
        (tmp_path / f"texts/{number}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / f"texts/{number}.txt").write_text(f"text {number}")
    path = tmp_path / "t.plan.parquet"
    write_plan(path, open_source("text", str(tmp_path / "texts")), 2)
    source = open_source("text", str(path))
    again: dict[str, Any] = {"workers": 0, "index": None, "num_shards": 2}
    for shard in (0, 1):
        extract(tmp_path / "s", encoder, source, "t", shard_index=shard, **again)
    (tmp_path / "texts/3.txt").write_text("text X")
    assert extract(tmp_path / "s", encoder, source, "t", shard_index=0, **again).made == 0
    with pytest.raises(MismatchError, match=r"1 changed \(first: 3.txt\)"):
        extract(tmp_path / "s", encoder, source, "t", shard_index=1, **again)


@pytest.mark.parametrize("kind", ["image", "regions"])
def test_a_tar_that_was_packed_anew_since_it_was_planned_is_refused(
    kind: str, encoder: Encoder, tmp_path: Path
) -> None:
    """Members of one size in another order: every row would have another's vector."""

    def pack(*names: str) -> None:
        with tarfile.open(tmp_path / "t.tar", "w") as tar:
            for name in names:
                tar.add(tmp_path / name, name)

    for name, shade in (("a.bmp", 9), ("b.bmp", 200)):
        Image.new("L", (8, 8), shade).save(tmp_path / name)
    pack("a.bmp", "b.bmp")
    source = open_source("image", str(tmp_path / "t.tar"))
    if kind == "regions":
        source = open_regions(source, "grid:2", tmp_path, "cpu")
    write_plan(tmp_path / "t.plan.parquet", source, 5)
    planned = open_source("image", str(tmp_path / "t.plan.parquet"))
    before = (tmp_path / "t.tar").stat()
    pack("b.bmp", "a.bmp")
    assert (tmp_path / "t.tar").stat().st_size == before.st_size
    with pytest.raises(SourceError, match="its time of change is another") as error:
        extract(tmp_path / "s", encoder, planned, "t", workers=0, index=None)
    assert error.value.where == str(tmp_path / "t.tar")
    pack("a.bmp", "b.bmp")
    os.utime(tmp_path / "t.tar", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert extract(tmp_path / "s", encoder, planned, "t", workers=0, index=None).finished


# As processes

# What `cmcr` does where the file system keeps no locks, and with two that finish at one moment.
WITHOUT_LOCKS = """
import errno, fcntl, os, pathlib, sys, time
from cmcr.cli.app import main
from cmcr.extract import embed

def refused(*_):
    raise OSError(errno.ENOLCK, "no locks")

def together(*given, finish=embed.finish):
    (pathlib.Path("at") / str(os.getpid())).touch()
    while len(os.listdir("at")) < 2:
        time.sleep(0.001)
    return finish(*given)

fcntl.flock, embed.finish = refused, together
main()
"""


WORDS = ["extract", "--encoder", "digits-clip", "--no-pipeline", "--index", "none"]
LIMIT = ["--max-failures", "1"]
TEXTS = Key("digits-clip", "text", "texts")


@pytest.fixture(scope="module")
def alone(media: Path) -> dict[str, str]:
    """The parts of one process without a plan; the plan lies beside the media."""
    listed = ["--source", "text=texts.tsv", "--part-rows", "5"]
    succeed(*WORDS, *LIMIT, *listed, "--workers", "0", "--store", "one", cwd=media)
    succeed("plan", *listed, cwd=media)
    return parts(TEXTS.folder(media / "one"))


def test_two_that_make_and_finish_the_same_without_locks_end_with_its_bytes(
    media: Path, alone: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "at").mkdir()
    words = [*WORDS, *LIMIT, "--source", f"text={media / 'texts.plan.parquet'}", "--workers", "0"]
    running = [
        forked.Process("-c", WITHOUT_LOCKS, *words, "--store", "two", cwd=tmp_path)
        for _ in range(2)
    ]
    for process in running:
        done = process.done()
        assert done.returncode == 0, done.stderr
    folder = TEXTS.folder(tmp_path / "two")
    assert parts(folder) == alone
    assert not any(found.problem for found in verify_store(tmp_path / "two"))
    assert not [path for path in folder.iterdir() if UNFINISHED.fullmatch(path.name)]


def test_the_slurm_script_makes_the_bytes_of_one_machine(
    media: Path, alone: dict[str, str], tmp_path: Path
) -> None:
    script = PAGE.read_text(encoding="utf-8").partition("```sh\n")[2].partition("```")[0]
    (line,) = [one for one in script.replace("\\\n", "").splitlines() if one.startswith("srun ")]
    (last,) = re.findall(r"--array=0-(\d+)", script)
    assert f"SHARDS={int(last) + 1}\n" in script
    running = []
    for task in range(2):
        told = {
            "SLURM_ARRAY_TASK_ID": task,
            "SHARDS": 2,
            "SLURM_CPUS_PER_TASK": 0,
            "STORE": "two",
            "PLAN": f"text={media / 'texts.plan.parquet'}",
            "ENCODER": "digits-clip",
        }
        filled = string.Template(line.replace('"$@"', " ".join(LIMIT))).substitute(told)
        running.append(forked.Process("-m", *shlex.split(filled)[1:], cwd=tmp_path))
    for process in running:
        done = process.done()
        assert done.returncode == 0, done.stderr
    assert parts(TEXTS.folder(tmp_path / "two")) == alone
