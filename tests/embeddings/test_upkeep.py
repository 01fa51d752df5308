"""Renamed, merged and removed: by a command, by hand, and killed in between."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from cmcr.embeddings import (
    Dataset,
    Description,
    Key,
    build_index,
    describe_store,
    import_embeddings,
    list_datasets,
    open_dataset,
    open_index,
    stray_folders,
    verify_store,
)
from cmcr.embeddings.inventory import Input, read_inputs, write_inputs
from cmcr.embeddings.parts import read_failures, write_part
from cmcr.embeddings.schema import Part
from cmcr.embeddings.upkeep import merge as merging
from cmcr.embeddings.upkeep import rename as renaming
from cmcr.embeddings.upkeep.merge import merge_datasets
from cmcr.embeddings.upkeep.remove import REMOVED, remove_dataset
from cmcr.embeddings.upkeep.rename import rename_dataset
from cmcr.embeddings.upkeep.sizes import measure_sizes
from cmcr.embeddings.writer import begin, claim, finish, is_complete
from cmcr.errors import MismatchError, MovedError, StoreError, UsageError

A, B, ALL = (Key("clip", "image", name) for name in ("a", "b", "all"))
OTHER = Key("clip", "image", "other")


def describe(key: Key, **changes: Any) -> Description:
    fields = {
        "space": key.space, "modality": key.modality, "dataset": key.dataset,
        "dim": 8, "part_rows": 4, "encoder": {"encoder": "clip"},
        "source": {"kind": "test", "sha256": key.dataset},
    }  # fmt: skip
    return Description.model_validate(fields | changes)


def write_parts(folder: Path, description: Description, parts: range, prefix: str) -> None:
    """Parts of four inputs each, the last of which failed."""
    draw = np.random.default_rng(len(prefix))
    for part in parts:
        ids = [f"{prefix}{part}{row}" for row in range(4)]
        vectors = draw.normal(size=(3, 8))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        with claim(folder, part) as mine:
            assert mine
            inputs = [Input(id, f"/{id}", 1, 1, "0" * 64, failed=id == ids[3]) for id in ids]
            write_inputs(folder, part, inputs)
            failed = {"id": ids[3], "uri": f"/{ids[3]}", "error": "OSError", "message": "cut"}
            write_part(folder, description, part, {"id": ids[:3]}, vectors, [failed])


def write(store: Path, key: Key, parts: int = 2, prefix: str = "", **changes: Any) -> Dataset:
    description = describe(key, **changes)
    folder = begin(store, description)
    write_parts(folder, description, range(parts), prefix or key.dataset)
    finish(folder, description, parts)
    return open_dataset(store, key)


def problems(store: Path) -> list[object]:
    return [verdict.problem for verdict in verify_store(store) if verdict.problem]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# Renaming


def test_a_renamed_dataset_is_the_same_under_another_name(tmp_path: Path) -> None:
    before = write(tmp_path, A)
    build_index(before)
    made = contents(before.folder)

    assert rename_dataset(tmp_path, A, B)

    after = open_dataset(tmp_path, B)
    assert list_datasets(tmp_path) == [B]
    assert not problems(tmp_path)
    np.testing.assert_array_equal(after.embeddings(), np.load(_saved(tmp_path, made)))
    assert open_index(after).ntotal == 6
    assert not rename_dataset(tmp_path, A, B)  # it is done
    rename_dataset(tmp_path, B, A)
    assert contents(A.folder(tmp_path)) == made  # as if nothing had been


def _saved(tmp_path: Path, made: dict[str, bytes]) -> Path:
    """The embeddings of the parts in `made`, written where nothing renames them."""
    apart = tmp_path / "apart" / "space=clip" / "modality=image" / "dataset=a"
    apart.mkdir(parents=True)
    for name, content in made.items():
        (apart / name).write_bytes(content)
    file = tmp_path / "apart" / "x.npy"
    np.save(file, open_dataset(tmp_path / "apart", A).embeddings())
    return file


def test_an_unfinished_dataset_goes_on_under_its_new_name(tmp_path: Path) -> None:
    description = describe(A)
    write_parts(begin(tmp_path, description), description, range(1), "a")

    rename_dataset(tmp_path, A, B)
    renamed = describe(B, source=description.source)
    folder = begin(tmp_path, renamed)
    write_parts(folder, renamed, range(1, 2), "a")

    assert finish(folder, renamed, 2) is not None
    assert open_dataset(tmp_path, B).rows == 6
    assert not problems(tmp_path)


def test_a_part_lost_after_renaming_is_made_again(tmp_path: Path) -> None:
    source = write(tmp_path, A).manifest.source
    rename_dataset(tmp_path, A, B)
    renamed = describe(B, source=source)
    folder = begin(tmp_path, renamed)
    (folder / "part-00001.parquet").unlink()

    assert not is_complete(folder)
    write_parts(folder, renamed, range(1, 2), "a")
    finish(folder, renamed, 2)

    assert not problems(tmp_path)


def test_a_moved_folder_is_told_from_a_damaged_one_and_mended(tmp_path: Path) -> None:
    write(tmp_path, A)
    build_index(open_dataset(tmp_path, A))
    os.rename(A.folder(tmp_path), B.folder(tmp_path))

    (problem,) = problems(tmp_path)
    assert isinstance(problem, MovedError)
    assert "of clip/image:a, it lies as clip/image:b" in describe_store(tmp_path)[0]["problem"]
    with pytest.raises(MovedError, match="moved or copied"):
        open_dataset(tmp_path, B)

    assert rename_dataset(tmp_path, A, B)
    assert not problems(tmp_path)


def test_a_copy_is_mended_under_the_name_that_it_lies_under(tmp_path: Path) -> None:
    write(tmp_path, A)
    shutil.copytree(A.folder(tmp_path), B.folder(tmp_path))

    assert rename_dataset(tmp_path, B, B)

    assert not problems(tmp_path)
    assert list_datasets(tmp_path) == [A, B]


def test_a_dataset_copied_from_another_store_is_one_of_this(tmp_path: Path) -> None:
    write(tmp_path / "there", A)
    write(tmp_path / "here", B)
    shutil.copytree(A.folder(tmp_path / "there"), A.folder(tmp_path / "here"))

    assert [line["rows"] for line in describe_store(tmp_path / "here")] == [6, 6]
    assert not problems(tmp_path / "here")


@pytest.mark.parametrize("step", ["write_json", "write_text"])
def test_a_killed_rename_is_ended_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    build_index(write(tmp_path, A))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(renaming, step, killed)
        with pytest.raises(KeyboardInterrupt):
            rename_dataset(tmp_path, A, B)
    assert isinstance(problems(tmp_path)[0], MovedError)

    assert rename_dataset(tmp_path, A, B)
    assert not problems(tmp_path)
    assert open_index(open_dataset(tmp_path, B)).ntotal == 6


def test_what_cannot_be_renamed_is_refused_and_left(tmp_path: Path) -> None:
    write(tmp_path, A)
    write(tmp_path, B)
    write(tmp_path, Key("clap", "image", "a"), encoder={"encoder": "clap"})
    refused: list[tuple[Key, Key, type[Exception], str]] = [
        (A, B, UsageError, "already"),
        (OTHER, ALL, UsageError, "no dataset"),
        (A, Key("clip", "audio", "a"), UsageError, "embedded as image"),
        (A, Key("clap", "image", "b"), MismatchError, "another encoder"),
    ]
    for old, new, kind, words in refused:
        with pytest.raises(kind, match=words):
            rename_dataset(tmp_path, old, new)
    assert not problems(tmp_path)
    assert not (tmp_path / "space=clip" / "modality=audio").exists()
    assert len(list_datasets(tmp_path)) == 3


# Merging


def test_a_merged_dataset_has_the_parts_of_both(tmp_path: Path) -> None:
    one, two = write(tmp_path, A), write(tmp_path, B, parts=3)
    build_index(one)

    merged = merge_datasets(tmp_path, [A, B], ALL)

    assert (merged.linked, merged.copied, merged.fresh) == (5, 0, True)
    whole = open_dataset(tmp_path, ALL)
    assert whole.ids() == one.ids() + two.ids()
    np.testing.assert_array_equal(
        whole.embeddings(), np.concatenate([one.embeddings(), two.embeddings()])
    )
    assert [part.name for part in whole.manifest.parts] == [
        f"part-{n:05}.parquet" for n in range(5)
    ]
    failed = [one["id"] for one in read_failures(whole.folder)]
    assert failed == ["a03", "a13", "b03", "b13", "b23"]
    inputs = [
        id for part in read_inputs(whole.folder, range(5)) if part for id in part.column("id")
    ]
    assert inputs[:5] == ["a00", "a01", "a02", "a03", "a10"]
    assert len(inputs) == 20
    assert open_index(whole).ntotal == 15
    assert not problems(tmp_path)
    assert not merge_datasets(tmp_path, [A, B], ALL).fresh
    files = sorted(map(str, tmp_path.glob("space=*/*/*/part-*.parquet")))
    table = pyarrow.dataset.dataset(files, partitioning="hive").to_table(columns=["dataset"])
    assert table["dataset"].to_pylist().count("all") == 15


def test_what_was_merged_stays_when_its_sources_go(tmp_path: Path) -> None:
    write(tmp_path, A)
    write(tmp_path, B)
    merge_datasets(tmp_path, [A, B], ALL)
    rename_dataset(tmp_path, ALL, OTHER)

    remove_dataset(tmp_path, A)
    remove_dataset(tmp_path, B)

    assert open_dataset(tmp_path, OTHER).rows == 12
    assert not problems(tmp_path)
    assert not (tmp_path / REMOVED).exists()


def test_without_hard_links_parts_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, A)
    write(tmp_path, B)
    monkeypatch.setattr(os, "link", _refuse)

    assert merge_datasets(tmp_path, [A, B], ALL).copied == 4
    assert not problems(tmp_path)


def _refuse(*_: object) -> None:
    raise OSError(18, "Invalid cross-device link")


@pytest.mark.parametrize("step", range(4))
def test_a_killed_merge_loses_nothing_and_is_ended_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    write(tmp_path, A)
    write(tmp_path, B)
    function = ["link_or_copy", "write_failures", "join_inputs", "write_text"][step]
    before = getattr(merging, function)
    calls: list[object] = []

    def killed(*arguments: Any) -> Any:
        calls.append(arguments)
        if step or len(calls) == 3:
            raise KeyboardInterrupt
        return before(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(merging, function, killed)
        with pytest.raises(KeyboardInterrupt):
            merge_datasets(tmp_path, [A, B], ALL)
    with pytest.raises(StoreError, match="unfinished"):
        open_dataset(tmp_path, ALL)
    assert open_dataset(tmp_path, A).rows == open_dataset(tmp_path, B).rows == 6

    assert merge_datasets(tmp_path, [A, B], ALL).dataset.rows == 12
    assert not problems(tmp_path)


def test_a_merge_that_was_killed_before_its_index_says_that_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, A)
    build_index(write(tmp_path, B))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(merging, "build_index", killed)
        with pytest.raises(KeyboardInterrupt):
            merge_datasets(tmp_path, [A, B], ALL)
    again = merge_datasets(tmp_path, [A, B], ALL)
    assert str(again).startswith(f"its index made: {ALL}")
    assert (again.indexed, again.fresh) == (True, False)
    assert str(merge_datasets(tmp_path, [A, B], ALL)).startswith("up to date")


def test_imports_whose_ids_are_row_numbers_are_told_to_bring_ids(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(4, 8))
    ids = {"one": None, "two": None, "ids": [f"x{row}" for row in range(4)]}
    keys = [Key("mine", "image", name) for name in ids]
    np.save(tmp_path / "rows.npy", rows)
    for key, own in zip(keys, ids.values(), strict=True):
        if own:
            pq.write_table(pa.table({"id": own}), tmp_path / "ids.parquet")
        metadata = tmp_path / "ids.parquet" if own else None
        import_embeddings(tmp_path / "S", key, tmp_path / "rows.npy", metadata, index=None)
    with pytest.raises(MismatchError, match="4 ids are in") as refused:
        merge_datasets(tmp_path / "S", keys[:2], Key("mine", "image", "all"))
    assert "import mine/image:two again with --metadata" in (refused.value.fix or "")
    assert merge_datasets(tmp_path / "S", keys[1:], Key("mine", "image", "all")).dataset.rows == 8


def test_what_does_not_go_together_is_not_merged(tmp_path: Path) -> None:
    write(tmp_path, A)
    write(tmp_path, B)
    write(tmp_path, OTHER, prefix="a")
    third = Key("clip", "image", "third")
    write(tmp_path, third, encoder={"encoder": "clip", "checkpoint_sha256": "ff"})
    fourth = Key("clip", "image", "fourth")
    write(tmp_path, fourth, columns=["year"])
    refused: list[tuple[list[Key], Key, type[Exception], str]] = [
        ([A, OTHER], ALL, MismatchError, "6 ids are in clip/image:a and in clip/image:other"),
        ([A, third], ALL, MismatchError, "two different encoders"),
        ([A, fourth], ALL, MismatchError, "differ in columns: none and year"),
        ([A, B], A, UsageError, "one of those"),
        ([A, B], OTHER, UsageError, "already"),
        ([A, A], ALL, UsageError, "two different"),
        ([A, Key("clip", "text", "b")], ALL, UsageError, "one space and modality"),
    ]
    for keys, into, kind, words in refused:
        with pytest.raises(kind, match=words):
            merge_datasets(tmp_path, keys, into)
    assert not ALL.folder(tmp_path).exists()


# Removing, and sizes


def test_removing_takes_what_an_earlier_one_left(tmp_path: Path) -> None:
    write(tmp_path, A)
    (tmp_path / REMOVED / "0123").mkdir(parents=True)
    (tmp_path / REMOVED / "0123" / "part-00000.parquet").write_bytes(b"left")
    assert [size.kind for size in measure_sizes(tmp_path)] == ["dataset", "leftovers"]

    remove_dataset(tmp_path, A)

    assert not list_datasets(tmp_path)
    assert not (tmp_path / REMOVED).exists()
    with pytest.raises(UsageError, match="no dataset"):
        remove_dataset(tmp_path, A)


def test_where_datasets_were_removed_or_renamed_nothing_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, A)
    remove_dataset(tmp_path, A)
    old = Key("old", "image", "a")
    write(tmp_path, old)
    rename_dataset(tmp_path, old, B)

    assert not stray_folders(tmp_path)


def test_sizes_count_a_part_once_whatever_its_names(tmp_path: Path) -> None:
    build_index(write(tmp_path, A))
    write(tmp_path, B)
    merge_datasets(tmp_path, [A, B], ALL)
    (tmp_path / "report.html").write_text("x" * 100)

    sizes = {(size.kind, size.name): size for size in measure_sizes(tmp_path)}

    parts: list[Part] = open_dataset(tmp_path, A).manifest.parts
    assert sizes["dataset", str(A)].bytes > sum(part.bytes for part in parts)
    assert sum(size.shared for size in sizes.values()) == sum(
        part.bytes for part in open_dataset(tmp_path, ALL).manifest.parts
    )
    assert sizes["other", "report.html"].bytes == 100
    assert sizes["index", str(ALL)].bytes > 0
