"""Sources that change: told without a flag, followed with --update, whatever is killed."""

import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from cmcr.embeddings import Key, Modality, open_dataset, writer
from cmcr.embeddings.inventory import Input, Inputs, Record
from cmcr.errors import MismatchError, SourceError, UsageError
from cmcr.extract import Encoder, Summary, extract, open_regions, open_source
from cmcr.files import locked, sha256_file

KEY = Key("bytes", "audio", "t")


def write_tone(path: Path, pitch: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.5 * np.sin(np.arange(1600) * pitch / 1200), 8000)


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """Ten recordings in two class folders, one of which is none."""
    for number in range(9):
        write_tone(tmp_path / "media" / ("dog" if number % 2 else "rain") / f"{number}.wav", number)
    (tmp_path / "media" / "rain" / "bad.wav").write_text("this is no recording")
    return tmp_path / "media"


@pytest.fixture
def decoded(encoder: Encoder) -> list[Any]:
    """What the encoder has preprocessed, from now on."""
    seen: list[Any] = []
    whole = encoder.preprocess

    def counting(modality: Modality, item: Any) -> Any:
        seen.append(item)
        return whole(modality, item)

    encoder.preprocess = counting  # type: ignore[method-assign]
    return seen


def run(store: Path, encoder: Encoder, media: Path, **options: Any) -> Summary:
    source = open_source("audio", str(media), options.pop("pattern", None))
    chosen = {"part_rows": 4, "workers": 0, "max_failures": 1.0, "batch_size": 2} | options
    return extract(store, encoder, source, "t", **chosen)


def files(store: Path) -> dict[str, bytes]:
    """Every file of the dataset that is not hidden."""
    folder = KEY.folder(store)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


def change(media: Path) -> None:
    """One mended, one of other content but the same size, one new at the front, one gone."""
    write_tone(media / "rain" / "bad.wav", 50)
    write_tone(media / "dog" / "3.wav", 51)
    write_tone(media / "a-first" / "new.wav", 52)
    (media / "rain" / "4.wav").unlink()


def fresh(tmp_path: Path, encoder: Encoder, media: Path, **options: Any) -> dict[str, bytes]:
    run(tmp_path / "fresh", encoder, media, **options)
    return files(tmp_path / "fresh")


def leftovers(store: Path) -> list[str]:
    """What lies in the store beside the one dataset."""
    return [path.name for path in store.iterdir() if path.name != "space=bytes"]


def test_touching_changes_nothing_and_is_read_once(
    tmp_path: Path, encoder: Encoder, media: Path, decoded: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run(tmp_path / "store", encoder, media)
    before = files(tmp_path / "store")
    decoded.clear()
    for path in media.rglob("*.wav"):
        os.utime(path, (1, 1))
    again = run(tmp_path / "store", encoder, media)
    assert (again.made, again.taken, decoded) == (0, 0, [])
    after = files(tmp_path / "store")
    assert after.pop("inputs.parquet") != before.pop("inputs.parquet")
    assert after == before

    def refuse(item: Any) -> str:
        raise AssertionError(f"{item.id} was read")

    monkeypatch.setattr("cmcr.extract.engine.changes.digest", refuse)
    assert run(tmp_path / "store", encoder, media).made == 0


def test_without_the_flag_what_changed_is_counted(
    tmp_path: Path, encoder: Encoder, media: Path
) -> None:
    run(tmp_path / "store", encoder, media)
    before = files(tmp_path / "store")
    change(media)
    with pytest.raises(MismatchError) as caught:
        run(tmp_path / "store", encoder, media)
    assert (
        "1 new (first: a-first/new.wav), 2 changed (first: dog/3.wav), 1 gone (first: rain/4.wav)"
    ) in str(caught.value)
    assert "--update" in str(caught.value)
    assert files(tmp_path / "store") == before


def test_an_update_embeds_what_is_new_and_ends_with_the_bytes_of_a_fresh_extraction(
    tmp_path: Path, encoder: Encoder, media: Path, decoded: list[Any]
) -> None:
    run(tmp_path / "store", encoder, media)
    change(media)
    expected = fresh(tmp_path, encoder, media)
    decoded.clear()
    summary = run(tmp_path / "store", encoder, media, update=True)
    assert (summary.rows, summary.failures) == (10, 0)
    assert (summary.made, summary.taken, len(decoded)) == (3, 7, 3)
    assert files(tmp_path / "store") == expected
    assert leftovers(tmp_path / "store") == []
    assert run(tmp_path / "store", encoder, media).made == 0
    assert run(tmp_path / "store", encoder, media, update=True).taken == 0


def test_an_update_tries_again_what_failed(
    tmp_path: Path, encoder: Encoder, media: Path, decoded: list[Any]
) -> None:
    whole, broken = encoder.encode, [True]

    def encode(modality: Modality, batch: Any) -> Any:
        vectors = whole(modality, batch)
        return vectors * float("nan") if broken else vectors

    encoder.encode = encode  # type: ignore[method-assign]
    first = run(tmp_path / "store", encoder, media)
    assert (first.rows, first.failures) == (0, 10)
    broken.clear()
    assert run(tmp_path / "store", encoder, media).failures == 10
    second = run(tmp_path / "store", encoder, media, update=True)
    assert (second.rows, second.failures, second.taken) == (9, 1, 0)
    written = KEY.folder(tmp_path / "store").stat().st_ino
    third = run(tmp_path / "store", encoder, media, update=True)
    assert (third.made, third.taken, third.failures) == (0, 0, 1)
    assert KEY.folder(tmp_path / "store").stat().st_ino == written  # what still fails is no reason
    assert files(tmp_path / "store") == fresh(tmp_path, encoder, media)


def test_moved_and_renamed_files_are_known_by_their_content(
    tmp_path: Path, encoder: Encoder, media: Path, decoded: list[Any]
) -> None:
    run(tmp_path / "store", encoder, media)
    media = media.rename(tmp_path / "elsewhere")
    decoded.clear()
    assert run(tmp_path / "store", encoder, media).made == 0
    summary = run(tmp_path / "store", encoder, media, update=True)
    assert (summary.made, summary.taken) == (0, 9)
    uris = open_dataset(tmp_path / "store", KEY).table(["uri"])["uri"].to_pylist()
    assert all(Path(uri).is_file() for uri in uris)
    (media / "dog" / "1.wav").rename(media / "rain" / "one.wav")
    shutil.copy(media / "dog" / "3.wav", media / "dog" / "copy.wav")
    decoded.clear()
    summary = run(tmp_path / "store", encoder, media, update=True)
    assert (summary.made, summary.taken, decoded) == (0, 10, [])
    assert files(tmp_path / "store") == fresh(tmp_path, encoder, media)


def test_another_encoder_is_refused_by_an_update_too(
    tmp_path: Path, encoder: Encoder, media: Path
) -> None:
    run(tmp_path / "store", encoder, media)
    change(media)
    other = type(encoder)("1" * 64)  # type: ignore[call-arg]
    with pytest.raises(MismatchError, match=r"encoder\.checkpoint_sha256"):
        run(tmp_path / "store", other, media, update=True)
    with pytest.raises(MismatchError, match="part_rows"):
        run(tmp_path / "store", encoder, media, update=True, part_rows=5)
    with pytest.raises(UsageError, match="one process"):
        run(tmp_path / "store", encoder, media, update=True, num_shards=2)


def test_labels_and_columns_come_fresh_from_the_source(
    tmp_path: Path, encoder: Encoder, decoded: list[Any]
) -> None:
    lists = tmp_path / "items.csv"
    lists.write_text("id,text,label\na,one dog,dog\nb,a cat,cat\n")
    key = Key("bytes", "text", "t")

    def rerun(**options: Any) -> Summary:
        source = open_source("text", str(lists))
        return extract(tmp_path / "store", encoder, source, "t", workers=0, **options)

    rerun()
    decoded.clear()
    lists.write_text("id,text,label,mood\nb,a cat,pet,calm\na,one dog,pet,\nc,a cow,,\n")
    with pytest.raises(MismatchError, match="1 new"):
        rerun()
    summary = rerun(update=True)
    assert (summary.made, summary.taken, decoded) == (1, 2, ["a cow"])
    columns = ("id", "label", "mood")
    assert [tuple(row.values()) for row in
            open_dataset(tmp_path / "store", key).table(columns).to_pylist()] == [
        ("b", ["pet"], "calm"), ("a", ["pet"], ""), ("c", None, ""),
    ]  # fmt: skip


def test_texts_of_a_dataset_without_an_inventory_are_known(
    tmp_path: Path, encoder: Encoder, decoded: list[Any]
) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("one\ntwo\n")
    extract(tmp_path / "store", encoder, open_source("text", str(lines)), "t", workers=0)
    (Key("bytes", "text", "t").folder(tmp_path / "store") / "inputs.parquet").unlink()
    source = open_source("text", str(lines))
    assert extract(tmp_path / "store", encoder, source, "t", workers=0).made == 0
    lines.write_text("one\ntwo\nthree\n")
    source = open_source("text", str(lines))
    with pytest.raises(MismatchError, match="not on record"):
        extract(tmp_path / "store", encoder, source, "t", workers=0)
    summary = extract(tmp_path / "store", encoder, source, "t", workers=0, update=True)
    assert (summary.made, summary.taken) == (1, 2)


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_a_tar_is_known_by_its_members_bytes(
    tmp_path: Path, encoder: Encoder, media: Path, decoded: list[Any], name: str
) -> None:
    def pack() -> None:
        subprocess.run(
            ["tar", "--sort=name", "-caf", name, "-C", str(media), "."], check=True, cwd=tmp_path
        )

    pack()
    run(tmp_path / "store", encoder, tmp_path / name)
    decoded.clear()
    pack()
    assert run(tmp_path / "store", encoder, tmp_path / name).made == 0
    change(media)
    pack()
    with pytest.raises(MismatchError, match=r"1 new .* 2 changed .* 1 gone"):
        run(tmp_path / "store", encoder, tmp_path / name)
    decoded.clear()
    summary = run(tmp_path / "store", encoder, tmp_path / name, update=True)
    assert (summary.made, summary.taken) == (3, 7)
    assert files(tmp_path / "store") == fresh(tmp_path, encoder, tmp_path / name)


def test_regions_are_known_by_their_picture_and_box(
    tmp_path: Path, encoder: Encoder, decoded: list[Any]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for shade, name in enumerate("bcd"):
        Image.new("L", (40, 30), 50 * shade).save(photos / f"{name}.png")

    def rerun(store: str, **options: Any) -> Summary:
        source = open_source("image", str(photos))
        source = open_regions(source, "grid", Path("unused"), "cpu")
        return extract(tmp_path / store, encoder, source, "t", workers=0, **options)

    each = rerun("store").rows // 3
    decoded.clear()
    Image.new("L", (40, 30), 200).save(photos / "a.png")
    (photos / "c.png").unlink()
    summary = rerun("store", update=True)
    assert (summary.made, summary.taken, len(decoded)) == (each, 2 * each, each)
    rerun("fresh")
    folders = [Key("bytes", "image", "t").folder(tmp_path / store) for store in ("store", "fresh")]
    for name in ("part-00000.parquet", "manifest.json", "inputs.parquet"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def write_boxes(file: Path, boxes: dict[str, tuple[float, ...]]) -> None:
    rows = [
        {"image": name, **dict(zip(("x0", "y0", "x1", "y1"), box, strict=True))}
        for name, box in boxes.items()
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_region_whose_box_changed_is_embedded_anew(
    tmp_path: Path, encoder: Encoder, decoded: list[Any]
) -> None:
    photos, boxes = tmp_path / "photos", tmp_path / "boxes.jsonl"
    photos.mkdir()
    for shade, name in enumerate("abc"):
        Image.fromarray(
            np.random.default_rng(shade).integers(0, 255, (30, 40), dtype=np.uint8)
        ).save(photos / f"{name}.png")

    def rerun(store: str, **options: Any) -> Summary:
        source = open_source("image", str(photos))
        source = open_regions(source, str(boxes), Path("unused"), "cpu")
        return extract(tmp_path / store, encoder, source, "t", workers=0, **options)

    write_boxes(boxes, {"a.png": (0, 0, 0.5, 0.5), "b.png": (0, 0, 1, 1), "c.png": (0, 0, 1, 0.5)})
    rerun("store")
    decoded.clear()
    write_boxes(boxes, {"a.png": (0.5, 0.5, 1, 1), "b.png": (0, 0, 1, 1), "c.png": (0, 0, 1, 0.5)})
    with pytest.raises(MismatchError, match=r"1 changed \(first: a.png#0\)"):
        rerun("store")
    summary = rerun("store", update=True)
    assert (summary.made, summary.taken, len(decoded)) == (1, 2, 1)
    rerun("fresh")
    folders = [Key("bytes", "image", "t").folder(tmp_path / store) for store in ("store", "fresh")]
    for name in ("part-00000.parquet", "manifest.json", "inputs.parquet"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


# Failing


def test_an_update_in_which_too_much_fails_leaves_the_dataset(
    tmp_path: Path, encoder: Encoder
) -> None:
    store, media, rows = tmp_path / "store", tmp_path / "media", tmp_path / "rows.csv"
    for number in range(12):
        write_tone(media / f"{number}.wav", number)
    rows.write_text("path\n" + "".join(f"media/{number}.wav\n" for number in range(12)))
    run(store, encoder, rows, max_failures=0.01, part_rows=8192)
    before = files(store)
    away = media.rename(tmp_path / "unmounted")
    for _ in range(2):
        with pytest.raises(SourceError, match="12 of 12 inputs") as caught:
            run(store, encoder, rows, max_failures=0.01, part_rows=8192, update=True)
        assert Path(str(caught.value.where)).exists()
        assert files(store) == before
    away.rename(media)
    assert run(store, encoder, rows, update=True, part_rows=8192).failures == 0
    assert open_dataset(store, KEY).rows == 12
    assert leftovers(store) == []


def test_what_failed_in_an_update_that_was_refused_is_tried_again(
    tmp_path: Path, encoder: Encoder, media: Path
) -> None:
    store = tmp_path / "store"
    run(store, encoder, media)
    change(media)
    whole = encoder.encode
    encoder.encode = lambda modality, batch: whole(modality, batch) * float("nan")  # type: ignore
    with pytest.raises(SourceError, match="2 of 4"):
        run(store, encoder, media, update=True, max_failures=0.1)
    encoder.encode = whole  # type: ignore[method-assign]
    run(store, encoder, media, update=True, max_failures=0.1)
    assert files(store) == fresh(tmp_path, encoder, media)
    assert leftovers(store) == []


def test_another_folder_of_that_name_is_told_from_one_that_changed(
    tmp_path: Path, encoder: Encoder, media: Path
) -> None:
    write_tone(tmp_path / "other" / "media" / "a.wav", 3)
    run(tmp_path / "store", encoder, media)
    with pytest.raises(MismatchError) as caught:
        run(tmp_path / "store", encoder, tmp_path / "other" / "media")
    assert f"made from {media}, this is {tmp_path / 'other' / 'media'}" in caught.value.what
    assert str(caught.value.fix).startswith("give another source another --dataset")


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_a_dataset_that_was_made_when_times_counted_is_up_to_date(
    tmp_path: Path, encoder: Encoder, media: Path, decoded: list[Any], kind: str
) -> None:
    where = media
    if kind == "tar":
        where = tmp_path / "x.tar"
        subprocess.run(["tar", "--sort=name", "-cf", where, "-C", media, "."], check=True)
    now = open_source("audio", str(where))
    before = replace(now, description={**now.description, "sha256": now.former})
    options = {"workers": 0, "part_rows": 4, "max_failures": 1.0}
    extract(tmp_path / "store", encoder, before, "t", **options)
    (KEY.folder(tmp_path / "store") / "inputs.parquet").unlink()
    manifest = (KEY.folder(tmp_path / "store") / "manifest.json").read_bytes()
    decoded.clear()
    for update in (False, True):
        assert extract(tmp_path / "store", encoder, now, "t", update=update, **options).made == 0
    assert decoded == []
    assert (KEY.folder(tmp_path / "store") / "manifest.json").read_bytes() == manifest
    if kind == "folder":
        os.utime(media / "dog" / "1.wav", (1, 1))
        with pytest.raises(MismatchError, match="not on record"):
            run(tmp_path / "store", encoder, media)


# Of any size


def counted(patched: pytest.MonkeyPatch, name: str) -> list[tuple[Any, ...]]:
    """The arguments of each call of a function, from now on."""
    calls: list[tuple[Any, ...]] = []
    whole = _named(name)

    def call(*given: Any, **options: Any) -> Any:
        calls.append(given)
        return whole(*given, **options)

    patched.setattr(name, call)
    return calls


def test_what_is_up_to_date_is_found_so_without_reading_parts_or_making_rows(
    tmp_path: Path, encoder: Encoder, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    run(store, encoder, media, part_rows=1)
    hashed = counted(monkeypatch, "cmcr.embeddings.reader.sha256_file")
    inputs = counted(monkeypatch, "cmcr.embeddings.inventory.Input")
    manifests = counted(monkeypatch, "cmcr.embeddings.writer.read_manifest")
    listed = counted(monkeypatch, "cmcr.extract.embed.failures_so_far")
    opened = counted(monkeypatch, "pyarrow.parquet.ParquetFile")
    summary = run(store, encoder, media, part_rows=1)
    assert (summary.made, summary.failures) == (0, 1)
    assert (hashed, listed, inputs) == ([], [], [])
    assert len(opened) == 1
    assert len(manifests) < 5  # of ten parts


def test_a_file_in_front_of_all_others_makes_rows_of_what_is_new_alone(
    tmp_path: Path, encoder: Encoder, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "store", encoder, media, part_rows=1)
    write_tone(media / "a-first" / "new.wav", 52)
    opened = counted(monkeypatch, "pyarrow.parquet.ParquetFile")
    with pytest.raises(MismatchError, match=r"1 new .*, 0 changed, 0 gone"):
        run(tmp_path / "store", encoder, media, part_rows=1)
    assert len(opened) == 1


def test_repeated_ids_are_compared_in_their_order() -> None:
    record = Record()
    for ids in (["a", "b"], ["a", "c", "a"]):
        inputs = [Input(id, f"{id}{at}", at, None, None) for at, id in enumerate(ids)]
        record.add(Inputs(pa.Table.from_pylist([asdict(known) for known in inputs])))
    assert [record.find(id) for id in "abcd"] == [[0, 2, 4], [1], [3], []]
    assert [record[number].uri for number in range(len(record))] == ["a0", "b1", "a0", "c1", "a2"]


def test_an_update_of_many_parts_opens_few_files_at_a_time(
    tmp_path: Path, encoder: Encoder
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("id,text\n" + "".join(f"{number},text {number}\n" for number in range(60)))

    def rerun(**options: Any) -> Summary:
        source = open_source("text", str(rows))
        return extract(
            tmp_path / "store", encoder, source, "t", workers=0, part_rows=1, index=None, **options
        )

    rerun()
    rows.write_text(rows.read_text().replace("\n0,text 0\n", "\n"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, limits[1]))
    try:
        assert rerun(update=True).taken == 59
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# Killed


class KilledError(BaseException):
    """As if the process had ended here."""


STEPS = [
    "cmcr.extract.engine.local.write_inputs",
    "cmcr.extract.engine.local.write_part",
    "cmcr.embeddings.writer.gather_inputs",
    "cmcr.embeddings.writer.drop_sidecars",
    "cmcr.extract.embed.build_index",
    "cmcr.extract.embed.put_in_place",
    "cmcr.embeddings.writer._exchange",
    "cmcr.embeddings.writer.discard_fresh",
]


def test_an_update_killed_while_it_takes_away_the_old_one_leaves_nothing_of_that(
    tmp_path: Path, encoder: Encoder, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    run(store, encoder, media)
    change(media)
    with monkeypatch.context() as patched:
        patched.setattr("cmcr.embeddings.writer.gather_inputs", _kill)
        with pytest.raises(KilledError):
            run(store, encoder, media, update=True)
    write_tone(media / "dog" / "5.wav", 60)  # what was made so far is of another source
    expected = fresh(tmp_path, encoder, media)

    def kill(folder: Path) -> None:
        (folder / "part-00000.parquet").unlink(missing_ok=True)
        (folder / ".description.json").unlink(missing_ok=True)
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr("cmcr.embeddings.writer.shutil.rmtree", kill)
        with pytest.raises(KilledError):
            run(store, encoder, media, update=True)
    run(store, encoder, media, update=True)
    assert files(store) == expected
    assert leftovers(store) == []


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_an_update_killed_anywhere_leaves_the_old_dataset_or_the_new_one(
    tmp_path: Path, encoder: Encoder, media: Path, monkeypatch: pytest.MonkeyPatch,
    step: str, when: str,
) -> None:  # fmt: skip
    store = tmp_path / "store"
    run(store, encoder, media)
    old = files(store)
    change(media)
    new = fresh(tmp_path, encoder, media)
    with monkeypatch.context() as patched:
        whole, calls = _named(step), iter(range(100))

        def kill(*values: Any, **named: Any) -> Any:
            last = next(calls) == (1 if step.startswith("cmcr.extract.engine.local") else 0)
            if last and when == "before":
                raise KilledError
            result = whole(*values, **named)
            if last:
                raise KilledError
            return result

        patched.setattr(step, kill)
        with pytest.raises(KilledError):
            run(store, encoder, media, update=True)
    open_dataset(store, KEY)
    assert files(store) in (old, new)
    run(store, encoder, media, update=True)
    assert files(store) == new
    assert leftovers(store) == []


def _named(step: str) -> Any:
    module, _, name = step.rpartition(".")
    __import__(module)
    return getattr(sys.modules[module], name)


def test_what_an_update_had_embedded_is_not_embedded_again(
    tmp_path: Path, encoder: Encoder, media: Path, decoded: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run(tmp_path / "store", encoder, media)
    change(media)
    with monkeypatch.context() as patched:
        patched.setattr("cmcr.embeddings.writer.gather_inputs", _kill)
        with pytest.raises(KilledError):
            run(tmp_path / "store", encoder, media, update=True)
    decoded.clear()
    run(tmp_path / "store", encoder, media, update=True)
    assert decoded == []


@pytest.mark.parametrize(
    "step", ["cmcr.extract.engine.local.write_part", "cmcr.embeddings.writer.discard_fresh"]
)
def test_a_process_that_ends_at_once_leaves_nothing_that_stays(
    tmp_path: Path, encoder: Encoder, media: Path, step: str
) -> None:
    store = tmp_path / "store"
    run(store, encoder, media)
    old = files(store)
    change(media)
    new = fresh(tmp_path, encoder, media)
    module = step.rpartition(".")[0]
    script = (
        "import os, sys\nfrom pathlib import Path\n"
        f"import {module}\nimport conftest, test_update\n"
        f"{step} = lambda *_: os._exit(9)\n"
        "test_update.run(Path(sys.argv[1]), conftest.Bytes(), Path(sys.argv[2]), update=True)\n"
    )
    path = {"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}"}
    assert forked.run("-c", script, store, media, env=path).returncode == 9
    assert files(store) in (old, new)
    run(store, encoder, media, update=True)
    assert files(store) == new
    assert leftovers(store) == []


def _kill(*_: Any) -> Any:
    raise KilledError


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_where_folders_cannot_be_exchanged_they_are_renamed(
    tmp_path: Path, encoder: Encoder, media: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    store = tmp_path / "store"
    run(store, encoder, media)
    change(media)
    new = fresh(tmp_path, encoder, media)
    rename, left = os.rename, iter(range(renames))

    def counted(one: Path, other: Path) -> None:
        if next(left, None) is None:
            raise KilledError
        rename(one, other)

    def refuse(*_: Any) -> None:
        raise OSError("not here")

    monkeypatch.setattr(writer, "_exchange", refuse)
    with monkeypatch.context() as patched:
        patched.setattr("cmcr.embeddings.writer.os.rename", counted)
        if renames < 2:
            with pytest.raises(KilledError):
                run(store, encoder, media, update=True)
        else:
            run(store, encoder, media, update=True)
    run(store, encoder, media, update=True)
    assert files(store) == new
    assert leftovers(store) == []


def test_shards_that_start_after_a_crash_put_right_one_after_the_other(
    tmp_path: Path, encoder: Encoder, media: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    run(tmp_path / "store", encoder, media)
    folder = KEY.folder(tmp_path / "store")
    recovered = counted(monkeypatch, "cmcr.embeddings.writer.recover")
    with locked(folder.with_name(f".{folder.name}.lock"), shared=True):  # another shard's
        assert run(tmp_path / "store", encoder, media).made == 0
    assert recovered == []
    assert run(tmp_path / "store", encoder, media).made == 0
    assert len(recovered) == 1
    assert caplog.messages == []


def test_what_is_waited_for_is_told(
    tmp_path: Path, encoder: Encoder, media: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path / "store", encoder, media)
    folder = KEY.folder(tmp_path / "store")
    other = folder.with_name(f".{folder.name}.lock").open("a")
    fcntl.flock(other, fcntl.LOCK_SH)
    threading.Timer(0.3, other.close).start()
    assert run(tmp_path / "store", encoder, media, update=True).made == 0
    assert caplog.messages == [f"{KEY}: waiting for another process that works on it"]


def test_an_update_that_was_killed_after_its_last_part_is_told_as_one(
    tmp_path: Path, encoder: Encoder, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "store", encoder, media)
    change(media)
    with monkeypatch.context() as patched:
        patched.setattr("cmcr.extract.embed.put_in_place", _kill)
        with pytest.raises(KilledError):
            run(tmp_path / "store", encoder, media, update=True)
    assert "updated" in str(run(tmp_path / "store", encoder, media, update=True)).splitlines()[0]


@pytest.mark.parametrize("links", [True, False])
def test_a_detectors_boxes_go_with_the_dataset_that_is_made_from_them(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    photos, store = tmp_path / "photos", tmp_path / "store"
    photos.mkdir()
    key = Key("bytes", "image", "t")
    folder = key.folder(store)

    def detect(*_: Any) -> tuple[dict[str, Any], Any]:
        return {"detector": "none"}, lambda: lambda pixels: [[0, 0, 20, 20]]

    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    def rerun(**options: Any) -> None:
        source = open_regions(open_source("image", str(photos)), "torchvision", folder, "cpu")
        extract(store, encoder, source, "t", workers=0, **options)

    monkeypatch.setattr("cmcr.extract.regions.boxes.faster_rcnn", detect)
    if not links:
        monkeypatch.setattr("cmcr.embeddings.writer.os.link", refuse)
    for number in range(3):
        Image.new("L", (40, 30), 50 * number).save(photos / f"{number}.png")
        rerun(update=number > 0)
    (boxes,) = folder.glob("regions-*.jsonl")
    used = open_dataset(store, key).manifest.source["regions"]["sha256"]
    assert sha256_file(boxes) == used


# Unfinished


@pytest.fixture
def unfinished(
    tmp_path: Path, encoder: Encoder, media: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A store whose dataset has its parts, but neither manifest nor inputs.parquet."""
    with monkeypatch.context() as patched:
        patched.setattr("cmcr.embeddings.writer.gather_inputs", _kill)
        with pytest.raises(KilledError):
            run(tmp_path / "store", encoder, media)
    return tmp_path / "store"


def test_an_unfinished_dataset_of_a_changed_source_is_not_mixed(
    tmp_path: Path, encoder: Encoder, media: Path, unfinished: Path, decoded: list[Any]
) -> None:
    write_tone(media / "dog" / "3.wav", 51)  # of the same size
    with pytest.raises(MismatchError, match=r"finished: 1 changed \(first: dog/3.wav\)"):
        run(unfinished, encoder, media)
    change(media)
    with pytest.raises(MismatchError, match="before the dataset was finished"):
        run(unfinished, encoder, media)
    decoded.clear()
    run(unfinished, encoder, media, update=True)
    assert len(decoded) == 3
    assert files(unfinished) == fresh(tmp_path, encoder, media)


def test_what_is_not_embedded_yet_may_change(
    tmp_path: Path, encoder: Encoder, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("cmcr.extract.engine.local.write_part", _kill)
        with pytest.raises(KilledError):
            run(tmp_path / "store", encoder, media)
    write_tone(media / "dog" / "3.wav", 51)  # of the same size
    run(tmp_path / "store", encoder, media)
    assert files(tmp_path / "store") == fresh(tmp_path, encoder, media)


@pytest.mark.parametrize("moment", ["appears", "vanishes"])
def test_a_source_that_changes_while_it_is_embedded_is_told(
    tmp_path: Path, encoder: Encoder, media: Path, moment: str
) -> None:
    source = open_source("audio", str(media))
    if moment == "appears":
        write_tone(media / "a-first" / "new.wav", 52)
    else:
        (media / "rain" / "4.wav").unlink()
    with pytest.raises(SourceError, match="changed while it was being embedded"):
        extract(tmp_path / "store", encoder, source, "t", workers=0, part_rows=4, max_failures=1)
    run(tmp_path / "store", encoder, media, update=True)
    assert files(tmp_path / "store") == fresh(tmp_path, encoder, media)


# Failures


def test_failures_are_told_by_kind_with_an_example_of_each(
    tmp_path: Path, encoder: Encoder, media: Path
) -> None:
    (media / "rain" / "bad-2.wav").write_text("nor is this one")
    (media / "rain" / "empty.wav").touch()
    summary = run(tmp_path / "store", encoder, media)
    told = str(summary)
    assert "3 of 12 failed: 2 " in told
    assert "(first: rain/bad-2.wav), 1 the file is empty (first: rain/empty.wav)" in told
    assert str(KEY.folder(tmp_path / "store") / "failures.parquet") in told
    kinds = json.loads(json.dumps(summary.as_dict()))["failed"]
    assert [(kind["count"], kind["first"]) for kind in kinds] == [
        (2, "rain/bad-2.wav"), (1, "rain/empty.wav"),
    ]  # fmt: skip
    again = str(run(tmp_path / "store", encoder, media))  # up to date, and told all the same
    assert again.splitlines()[-2:] == told.splitlines()[-2:]


def test_a_run_that_stops_early_tells_its_failures_and_lists_them(
    tmp_path: Path, encoder: Encoder, media: Path
) -> None:
    for number in range(6):
        (media / "a-first").mkdir(exist_ok=True)
        (media / "a-first" / f"{number}.wav").touch()
    with pytest.raises(
        SourceError, match=r"4 of 4 .*: 4 the file is empty \(first: a-first/0"
    ) as caught:
        run(tmp_path / "store", encoder, media, max_failures=0.1)
    listed = pq.read_table(caught.value.where, partitioning=None).to_pylist()
    assert [row["id"] for row in listed] == [f"a-first/{number}.wav" for number in range(4)]
