"""The store: layout, zero-copy reading, refusal of what is damaged or does not belong, import."""

import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmcr.embeddings import (
    Dataset,
    Description,
    Key,
    build_index,
    import_embeddings,
    list_datasets,
    open_dataset,
    open_index,
    verify_store,
)
from cmcr.embeddings.parts import write_part
from cmcr.embeddings.reader import check_part
from cmcr.embeddings.schema import all_finite
from cmcr.embeddings.writer import (
    begin,
    begin_fresh,
    claim,
    finish,
    is_complete,
    put_in_place,
)
from cmcr.errors import CmcrError, EncoderError, MismatchError, SourceError, StoreError, UsageError

KEY = Key("clip", "image", "photos")


def unit(rows: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    array = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def describe(**changes: object) -> Description:
    fields = {
        "space": KEY.space,
        "modality": KEY.modality,
        "dataset": KEY.dataset,
        "dim": 8,
        "part_rows": 5,
        "columns": ("camera",),
        "encoder": {"encoder": "clip", "checkpoint_sha256": "ab", "libraries": {"torch": "2"}},
        "source": {"kind": "test", "sha256": "cd"},
    }
    return Description.model_validate(fields | changes)


def write(store: Path, rows: np.ndarray, description: Description | None = None) -> Dataset:
    """Write `rows` in parts of five, as extract does."""
    description = description or describe()
    folder = begin(store, description)
    parts = -(-len(rows) // 5)
    for part in range(parts):
        block = rows[part * 5 : part * 5 + 5]
        ids = [f"photo-{part * 5 + row}" for row in range(len(block))]
        columns = {"id": ids, "label": [["cat", "pet"]] * len(ids), "camera": ["x100"] * len(ids)}
        failures = [{"id": f"bad-{part}", "uri": "u", "error": "OSError", "message": "cut"}]
        with claim(folder, part) as mine:
            assert mine
            write_part(folder, description, part, columns, block, failures)
    assert finish(folder, description, parts) is not None
    return open_dataset(store, description.key)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 40),
    dim=st.integers(1, 33),
    precision=st.sampled_from(["float16", "float32"]),
    seed=st.integers(0, 9),
)
def test_what_is_written_is_read_back_without_a_copy(
    tmp_path_factory: pytest.TempPathFactory, rows: int, dim: int, precision: str, seed: int
) -> None:
    store = tmp_path_factory.mktemp("store")
    array = unit(rows, dim, seed)
    description = describe(dim=dim, precision=precision, part_rows=100)
    folder = begin(store, description)
    write_part(folder, description, 0, {"id": [str(row) for row in range(rows)]}, array)
    finish(folder, description, 1)
    dataset = open_dataset(store, KEY)
    view = dataset.embeddings()
    assert isinstance(view, np.memmap)
    assert view.dtype == precision
    np.testing.assert_array_equal(view, array.astype(precision))
    column = pq.read_table(folder / "part-00000.parquet")["embedding"].combine_chunks()
    np.testing.assert_array_equal(column.flatten().to_numpy().reshape(rows, dim), view)


def test_parts_stream_in_order_and_carry_their_columns(tmp_path: Path) -> None:
    array = unit(12)
    dataset = write(tmp_path, array)
    assert [len(block) for block in dataset.parts()] == [5, 5, 2]
    assert [len(block) for block in dataset.batches(3)] == [3, 2, 3, 2, 2]
    np.testing.assert_array_equal(np.concatenate(list(dataset.batches(3))), dataset.embeddings())
    np.testing.assert_array_equal(dataset.embeddings(), array.astype(np.float16))
    assert dataset.ids() == [f"photo-{row}" for row in range(12)]
    assert dataset.table(["label", "camera"])[0].to_pylist() == [["cat", "pet"]] * 12
    failures = pq.read_table(dataset.folder / "failures.parquet")
    assert failures["id"].to_pylist() == ["bad-0", "bad-1", "bad-2"]
    assert dataset.manifest.failures == 3


def test_columns_of_numbers_are_numbers_and_change_no_other_dataset(tmp_path: Path) -> None:
    # The identity and the description as they were before a column could be of numbers.
    assert describe().identity == (
        "590dfa6534dc8698fdb1a37034cf65678628c5c2661fcc9570171598559b18ab"
    )
    assert "numbers" not in describe().model_dump_json()
    placed = describe(columns=("camera", "x0"), numbers=("x0",), part_rows=3)
    assert placed.identity != describe(columns=("camera", "x0"), part_rows=3).identity
    folder = begin(tmp_path, placed)
    columns = {"id": ["a", "b", "c"], "camera": ["x", None, "y"], "x0": [1 / 3, None, 0]}
    write_part(folder, placed, 0, columns, unit(3))
    finish(folder, placed, 1)
    dataset = open_dataset(tmp_path, KEY)
    assert dataset.manifest.numbers == ("x0",)
    table = dataset.table(["camera", "x0"])
    assert table.schema.types == [pa.string(), pa.float64()]
    assert table["x0"].to_pylist() == [1 / 3, None, 0]


def test_other_tools_read_the_store(tmp_path: Path) -> None:
    write(tmp_path, unit(12))
    files = sorted(map(str, tmp_path.glob("space=*/modality=*/dataset=*/part-*.parquet")))
    table = pa.dataset.dataset(files, partitioning="hive").to_table()
    assert table.num_rows == 12
    assert set(table["space"].to_pylist()) == {"clip"}
    assert set(table["dataset"].to_pylist()) == {"photos"}


def test_the_index_holds_the_same_vectors_and_follows_the_manifest(tmp_path: Path) -> None:
    dataset = write(tmp_path, unit(12))
    with pytest.raises(StoreError, match="no index"):
        open_index(dataset)
    build_index(dataset)
    index = open_index(dataset)
    np.testing.assert_array_equal(
        index.reconstruct_n(0, 12), dataset.embeddings().astype(np.float32)
    )
    with pytest.raises(UsageError, match="FAISS cannot build"):
        build_index(dataset, "IVF4096,PQ99")
    about = json.loads((dataset.folder / "index.json").read_text())
    about["manifest_sha256"] = "0"
    (dataset.folder / "index.json").write_text(json.dumps(about))
    with pytest.raises(StoreError, match="no index of its present rows"):
        open_index(dataset)
    (problem,) = [verdict.problem for verdict in verify_store(tmp_path)]
    assert problem is not None
    assert "index is of other rows" in problem.what


def test_rows_of_two_makings_never_mix(tmp_path: Path) -> None:
    write(tmp_path, unit(12))
    for change in (
        {"encoder": {"encoder": "clip", "checkpoint_sha256": "other"}},
        {"source": {"kind": "test", "sha256": "other"}},
        {"part_rows": 6},
        {"precision": "float32"},
    ):
        with pytest.raises(MismatchError) as caught:
            begin(tmp_path, describe(**change))
        assert next(iter(change)) in caught.value.what
        assert "delete that folder" in str(caught.value)
    begin(tmp_path, describe(encoder={**describe().encoder, "libraries": {"torch": "3"}}))


def test_an_unfinished_dataset_refuses_another_making_too(tmp_path: Path) -> None:
    begin(tmp_path, describe())
    with pytest.raises(MismatchError, match=r"encoder\.checkpoint_sha256"):
        begin(tmp_path, describe(encoder={"encoder": "clip", "checkpoint_sha256": "other"}))
    with pytest.raises(StoreError, match="unfinished"):
        open_dataset(tmp_path, KEY)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "missing"),
        (truncate, "not the one that was written"),
        (flip, "not the one that was written"),
    ],
)
def test_a_damaged_part_is_named_with_its_cure(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    dataset = write(tmp_path, unit(12))
    damage(dataset.folder / "part-00001.parquet")
    with pytest.raises(StoreError, match=message) as caught:
        open_dataset(tmp_path, KEY)
    assert "part-00001.parquet" in str(caught.value)
    assert "run the command that made" in str(caught.value)
    (verdict,) = verify_store(tmp_path)
    assert verdict.problem is not None
    assert message in verdict.problem.what


def test_a_foreign_part_and_a_damaged_manifest_are_refused(tmp_path: Path) -> None:
    ours = write(tmp_path / "a", unit(12))
    other = describe(encoder={"encoder": "clip", "checkpoint_sha256": "other"})
    theirs = write(tmp_path / "b", unit(12), other)
    foreign = (theirs.folder / "part-00000.parquet").read_bytes()
    (ours.folder / "part-00000.parquet").write_bytes(foreign)
    (ours.folder / "manifest.json").unlink()
    begin(tmp_path / "a", describe())
    with pytest.raises(StoreError, match="built with other settings"):
        finish(ours.folder, describe(), 3)
    truncate(theirs.folder / "manifest.json")
    with pytest.raises(StoreError, match="manifest cannot be read"):
        open_dataset(tmp_path / "b", KEY)


def test_a_dataset_without_its_manifest_still_says_what_it_is_made_from(tmp_path: Path) -> None:
    dataset = write(tmp_path, unit(12))
    truncate(dataset.folder / "part-00001.parquet")
    assert not is_complete(dataset.folder)
    assert not (dataset.folder / "manifest.json").exists()
    with pytest.raises(MismatchError, match=r"source\.sha256"):
        begin(tmp_path, describe(source={"kind": "test", "sha256": "other"}))
    again = write_missing(tmp_path, unit(12))
    assert again.fingerprint == dataset.fingerprint


def write_missing(store: Path, rows: np.ndarray) -> Dataset:
    folder = begin(store, describe())
    with claim(folder, 1) as mine:
        assert mine
        ids = [f"photo-{row}" for row in range(5, 10)]
        columns = {"id": ids, "label": [["cat", "pet"]] * 5, "camera": ["x100"] * 5}
        failures = [{"id": "bad-1", "uri": "u", "error": "OSError", "message": "cut"}]
        write_part(folder, describe(), 1, columns, rows[5:10], failures)
    assert finish(folder, describe(), 3) is not None
    return open_dataset(store, KEY)


def test_a_damaged_list_of_failures_is_written_again_as_verify_says(tmp_path: Path) -> None:
    dataset = write(tmp_path, unit(12))
    truncate(dataset.folder / "failures.parquet")
    (verdict,) = verify_store(tmp_path)
    assert verdict.problem is not None
    assert "delete it and run" in str(verdict.problem)
    Path(str(verdict.problem.where)).unlink()
    assert not is_complete(dataset.folder)
    assert finish(dataset.folder, describe(), 3) is not None
    assert [verdict.problem for verdict in verify_store(tmp_path)] == [None]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"encoder": "clip", "size": (224, 224), "parts": {1: None}}, None),
        ({"encoder": "clip", "size": [224, 224.0], "parts": {"1": None}}, "encoder.size"),
        ({"encoder": "clip", "size": [224, 224], "parts": {"1": None}, "n": None}, "encoder.n"),
    ],
    ids=["the same in JSON", "a float", "a null more"],
)
def test_descriptions_are_compared_as_json(
    tmp_path: Path, changed: dict[str, object], named: str | None
) -> None:
    first = describe(encoder={"encoder": "clip", "size": (224, 224), "parts": {1: None}})
    begin(tmp_path, first)
    again = describe(encoder=changed)
    if named is None:
        begin(tmp_path, again)
        write(tmp_path, unit(7), first)
        begin(tmp_path, again)
        assert open_dataset(tmp_path, KEY).manifest.encoder == again.encoder
    else:
        with pytest.raises(MismatchError, match=rf"built with different settings: {named}\n"):
            begin(tmp_path, again)
        assert first.identity != again.identity


@pytest.mark.parametrize("value", [Path("x"), float("nan"), {"a set"}], ids=["path", "nan", "set"])
def test_a_fingerprint_that_is_no_json_is_named(value: object) -> None:
    with pytest.raises(EncoderError, match="fingerprint of my-clip cannot be written") as caught:
        describe(encoder={"encoder": "my-clip", "preprocessing": value})
    assert "strings, finite numbers" in str(caught.value)
    with pytest.raises(SourceError, match="description of a source"):
        describe(source={"kind": value})


def test_nan_is_never_written_and_never_read(tmp_path: Path) -> None:
    array = unit(5)
    array[3, 2] = np.nan
    folder = begin(tmp_path, describe())
    with pytest.raises(StoreError, match="NaN"):
        write_part(folder, describe(), 0, {"id": list("abcde")}, array)
    assert not list(folder.glob("part-*"))


@given(st.lists(st.floats(width=16), min_size=1, max_size=8))
def test_all_finite_agrees_with_numpy(values: list[float]) -> None:
    for dtype in (np.float16, np.float32):
        array = np.array([values], dtype=dtype)
        assert all_finite(array) == np.isfinite(array).all()


def test_a_store_without_the_dataset_says_what_there_is(tmp_path: Path) -> None:
    write(tmp_path, unit(3))
    assert list_datasets(tmp_path) == [KEY]
    with pytest.raises(UsageError, match="no dataset") as caught:
        open_dataset(tmp_path, Key("clap", "audio", "esc50"))
    assert "clip/image:photos" in str(caught.value)


@pytest.mark.parametrize(
    ("space", "modality"), [("../up", "image"), ("clip", "Smell"), ("clip", "a_b"), ("", "text")]
)
def test_keys_are_checked(space: str, modality: str) -> None:
    with pytest.raises(UsageError):
        Key(space, modality, "photos")  # type: ignore[arg-type]


# Read while it changes


def replace_dataset(store: Path, rows: np.ndarray) -> None:
    """As an update does: another dataset is made aside and takes this one's name."""
    fresh = begin_fresh(store, KEY)
    write(fresh, rows, describe(source={"kind": "test", "sha256": "ef"}))
    put_in_place(store, KEY)


def test_a_reader_never_sees_two_datasets_mixed(tmp_path: Path) -> None:
    write(tmp_path, unit(12))
    dataset = open_dataset(tmp_path, KEY)
    blocks = dataset.parts()
    next(blocks)
    replace_dataset(tmp_path, unit(12, seed=1))
    for read in (lambda: next(blocks), dataset.embeddings, dataset.ids):
        with pytest.raises(StoreError, match="changed while it was read"):
            read()
    replace_dataset(tmp_path, unit(3))
    with pytest.raises(StoreError, match="changed while it was read"):
        dataset.ids()


def test_two_updates_share_the_folders_above_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir, twice = os.mkdir, iter([True, True])

    def racing(path: Any, *mode: Any) -> None:
        if Path(path).name == "dataset=photos" and next(twice, False):
            shutil.rmtree(tmp_path / ".update", ignore_errors=True)  # as where another one ends
        mkdir(path, *mode)

    monkeypatch.setattr(os, "mkdir", racing)
    place = begin_fresh(tmp_path, KEY)
    assert (KEY.folder(place) / ".fresh").exists()


def test_a_dataset_that_is_replaced_while_it_is_opened_is_opened_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, unit(12))
    later = iter([unit(12, seed=1)])

    def check(*given: Any) -> None:
        if (rows := next(later, None)) is not None:
            replace_dataset(tmp_path, rows)
        check_part(*given)

    monkeypatch.setattr("cmcr.embeddings.reader.check_part", check)
    dataset = open_dataset(tmp_path, KEY)
    assert dataset.manifest.source["sha256"] == "ef"
    np.testing.assert_array_equal(dataset.embeddings(), unit(12, seed=1).astype(np.float16))


def test_an_update_that_was_not_finished_is_named(tmp_path: Path) -> None:
    write(tmp_path, unit(12))
    begin_fresh(tmp_path, KEY)
    unfinished, sound = verify_store(tmp_path)
    assert sound.problem is None
    assert "update was not finished" in str(unfinished.problem)
    assert ".update" in str(unfinished.problem)


def test_as_many_parts_as_there_are_need_few_open_files(tmp_path: Path) -> None:
    write(tmp_path, unit(200))  # forty parts
    dataset = open_dataset(tmp_path, KEY)
    opened = len(os.listdir("/proc/self/fd"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 20, limits[1]))
    try:
        assert dataset.embeddings().shape == (200, 8)
        build_index(dataset, "IVF1,Flat")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# cmcr import


def save_npz(path: Path, array: np.ndarray) -> None:
    np.savez(path, embeddings=array, other=array[:1])


def save_safetensors(path: Path, array: np.ndarray) -> None:
    from safetensors.numpy import save_file

    save_file({"embeddings": array}, path)


def save_parquet(path: Path, array: np.ndarray) -> None:
    pq.write_table(pa.table({"embedding": array.tolist()}), path)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("x.npy", np.save),
        ("x.npz", save_npz),
        ("x.safetensors", save_safetensors),
        ("x.parquet", save_parquet),
    ],
)
def test_import_takes_each_format_and_makes_unit_vectors(
    tmp_path: Path, name: str, save: Callable[[Path, np.ndarray], None]
) -> None:
    array = unit(7) * 3
    save(tmp_path / name, array)
    dataset = import_embeddings(tmp_path / "store", KEY, tmp_path / name)
    np.testing.assert_allclose(dataset.embeddings(), array / 3, atol=1e-3)
    assert dataset.ids() == [str(row) for row in range(7)]
    assert [verdict.problem for verdict in verify_store(tmp_path / "store")] == [None]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_import_takes_metadata(tmp_path: Path, suffix: str) -> None:
    np.save(tmp_path / "x.npy", unit(2))
    rows = [{"id": "a", "label": "cat", "year": "1999"}, {"id": "b", "label": "dog", "year": "7"}]
    path = tmp_path / f"m.{suffix}"
    if suffix == "csv":
        path.write_text("id,label,year\na,cat,1999\nb,dog,7\n")
    elif suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    dataset = import_embeddings(tmp_path / "store", KEY, tmp_path / "x.npy", path)
    table = dataset.table(["id", "label", "year"]).to_pylist()
    assert table == [row | {"label": [row["label"]]} for row in rows]


def bad_array(tmp_path: Path, kind: str) -> Path:
    array = unit(4)
    path = tmp_path / "x.npy"
    if kind == "NaN":
        array[2, 1] = np.nan
    elif kind == "zero":
        array[1] = 0
    elif kind == "pickled":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        return path
    elif kind == "cut":
        np.save(path, array)
        truncate(path)
        return path
    elif kind == "integers":
        array = np.ones((3, 3), dtype=np.int64)
    elif kind == "flat":
        array = array.ravel()
    np.save(path, array)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("NaN", "1 of 4 rows hold NaN .* the first is row 2"),
        ("zero", "the first is row 1"),
        ("pickled", "cannot be read"),
        ("cut", "cannot be read"),
        ("integers", "array of floats"),
        ("flat", "array of floats"),
    ],
)
def test_import_refuses_what_is_no_array_of_vectors(
    tmp_path: Path, kind: str, message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        import_embeddings(tmp_path / "store", KEY, bad_array(tmp_path, kind))
    assert not list((tmp_path / "store").rglob("*.parquet"))


@pytest.mark.parametrize(
    ("ids", "stored"),
    [
        (pa.array(["a", "b", "c"]).dictionary_encode(), ["a", "b", "c"]),
        (pa.array(["a", "b", "c"], pa.string_view()), ["a", "b", "c"]),
        (pa.array([3, 1, 2]), ["3", "1", "2"]),
    ],
)
def test_import_takes_ids_of_many_types(tmp_path: Path, ids: pa.Array, stored: list[str]) -> None:
    np.save(tmp_path / "x.npy", unit(3))
    pq.write_table(pa.table({"id": ids}), tmp_path / "m.parquet")
    made = import_embeddings(tmp_path / "s", KEY, tmp_path / "x.npy", tmp_path / "m.parquet")
    assert made.ids() == stored


def test_import_refuses_metadata_that_does_not_fit(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", unit(3))
    metadata = tmp_path / "m.csv"
    metadata.write_text("id\na\nb\n")
    with pytest.raises(SourceError, match="3 embeddings, but metadata for 2"):
        import_embeddings(tmp_path / "s", KEY, tmp_path / "x.npy", metadata)
    metadata.write_text("id\na\nb\nb\n")
    with pytest.raises(SourceError, match="occur twice"):
        import_embeddings(tmp_path / "s", KEY, tmp_path / "x.npy", metadata)
    pq.write_table(pa.table({"id": [[1], [2], [3]]}), tmp_path / "m.parquet")
    with pytest.raises(SourceError, match="ids are not read from list"):
        import_embeddings(tmp_path / "s", KEY, tmp_path / "x.npy", tmp_path / "m.parquet")
    for missing in (tmp_path / "no.npy", tmp_path / "x.csv"):
        with pytest.raises(CmcrError):
            import_embeddings(tmp_path / "s", KEY, missing)


def test_import_refuses_vectors_of_another_length_than_the_space_has(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", unit(3))
    np.save(tmp_path / "y.npy", unit(3, dim=6))
    import_embeddings(tmp_path / "s", KEY, tmp_path / "x.npy")
    other = Key(KEY.space, "image", "other")
    with pytest.raises(MismatchError, match=f"of 8 values, as in {KEY}, these have 6"):
        import_embeddings(tmp_path / "s", other, tmp_path / "y.npy")
    assert list_datasets(tmp_path / "s") == [KEY]
