"""Parquet files that hold the media themselves, as `datasets` writes them for the Hub."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cmcr.embeddings import open_dataset
from cmcr.embeddings.parts import read_failures
from cmcr.errors import MismatchError, SourceError
from cmcr.extract import Encoder, extract, find_media, open_regions, open_source, write_plan
from cmcr.extract.engine.content import digest

OPTIONS: dict[str, Any] = {"workers": 0, "index": None, "max_failures": 1.0}
NAMES = ["cat", "dog"]


def pictures(folder: Path, count: int = 5) -> list[Path]:
    """Pictures in class folders."""
    paths = []
    for number in range(count):
        path = folder / NAMES[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 40 * number + 9).save(path)
        paths.append(path)
    return paths


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """What `datasets` writes: two files, a row group for two rows, a class for a number."""
    import datasets

    paths = pictures(tmp_path / "photos")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES),
         "city": datasets.Value("string")}
    )  # fmt: skip
    media = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    for number, rows in enumerate((range(3), range(3, 5))):
        columns = {"image": [media[row] for row in rows], "label": [row % 2 for row in rows],
                   "city": [f"city {row}" for row in rows]}  # fmt: skip
        (tmp_path / "data").mkdir(exist_ok=True)
        made = datasets.Dataset.from_dict(columns, features=features)
        made.to_parquet(tmp_path / f"data/train-{number}.parquet", batch_size=2)
    return tmp_path / "data"


def test_media_in_a_column_are_those_of_the_files(
    table: Path, encoder: Encoder, tmp_path: Path
) -> None:
    source = open_source("image", str(table))
    assert source.columns == ("city",)
    made = extract(tmp_path / "s", encoder, source, "t", **OPTIONS)
    dataset = open_dataset(tmp_path / "s", made.key)
    rows = dataset.table(["id", "label", "city", "uri"]).to_pylist()
    assert [row["id"] for row in rows] == [f"{number}.png" for number in range(5)]
    assert [row["label"] for row in rows] == [[NAMES[number % 2]] for number in range(5)]
    assert rows[3]["city"] == "city 3"
    assert rows[3]["uri"] == f"{table}/train-1.parquet#0"
    files = extract(
        tmp_path / "s", encoder, open_source("image", str(tmp_path / "photos")), "f", **OPTIONS
    )
    of_files = open_dataset(tmp_path / "s", files.key)
    order = np.argsort([os.path.basename(row["id"]) for row in of_files.table(["id"]).to_pylist()])
    np.testing.assert_array_equal(dataset.embeddings(), of_files.embeddings()[order])
    found = find_media("image", [row["uri"] for row in rows])
    assert [int(np.asarray(one)[0, 0].max()) for one in found.values()] == [9, 49, 89, 129, 169]


def test_by_a_plan_and_as_regions_they_are_the_same(
    table: Path, encoder: Encoder, tmp_path: Path
) -> None:
    source = open_regions(open_source("image", str(table)), "grid:2", tmp_path, "cpu")
    made = [extract(tmp_path / "one", encoder, source, "t", part_rows=7, **OPTIONS)]
    write_plan(tmp_path / "t.plan.parquet", source, 7)
    planned = open_source("image", str(tmp_path / "t.plan.parquet"))
    made.append(extract(tmp_path / "two", encoder, planned, "t", **OPTIONS))
    one, two = (sorted(each.folder.glob("part-*.parquet")) for each in made)
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert len(one) == 8
    pq.write_table(pq.read_table(table / "train-1.parquet")[::-1], table / "train-1.parquet")
    with pytest.raises(SourceError, match="changed since it was planned"):
        extract(tmp_path / "three", encoder, planned, "t", **OPTIONS)


def test_a_row_group_that_no_worker_could_hold_is_refused_when_it_is_opened(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmcr.extract.sources.manifests.LARGEST_GROUP", 1 << 20)
    path = table / "train-1.parquet"
    content = pq.read_table(path)
    noise = np.random.default_rng(0).bytes(600 << 10)
    cells = [{"bytes": noise + bytes([row]), "path": None} for row in range(2)]
    field = content.schema.field("image")
    content = content.set_column(0, field, [pa.array(cells, field.type)])
    pq.write_table(content, path)
    with pytest.raises(SourceError, match="row group 0 holds 1 MiB of media in 2 rows") as error:
        open_source("image", str(table))
    assert "row_group_size=100" in (error.value.fix or "")
    pq.write_table(content, path, row_group_size=1)
    assert open_source("image", str(table)).total == 5


def test_threads_that_ask_for_one_row_group_read_it_once(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, seen = pq.ParquetFile.read_row_group, []

    def slow(self: pq.ParquetFile, group: int, **asked: Any) -> pa.Table:
        seen.append(group)
        time.sleep(0.05)
        return read(self, group, **asked)

    items = list(open_source("image", str(table)).items())
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", slow)
    with ThreadPoolExecutor(4) as pool:
        contents = list(pool.map(digest, items[:2] * 2))
    assert seen == [0]
    assert contents[:2] == contents[2:]
    assert len(set(contents)) == 2


def test_a_plan_beside_the_files_is_none_of_them_and_a_list_is_told(table: Path) -> None:
    source = open_source("image", str(table))
    write_plan(table / "train.plan.parquet", source, 5)
    again = open_source("image", str(table))
    assert (again.total, again.description) == (source.total, source.description)
    pq.write_table(pa.table({"path": ["a.png"]}), table / "a-list.parquet")
    with pytest.raises(SourceError, match="in a column image, this one holds none") as error:
        open_source("image", str(table))
    assert error.value.where == str(table / "a-list.parquet")


@pytest.mark.parametrize("info", [b"null", b'{"info": null}', b'{"info": {"features": null}}'])
def test_what_says_nothing_of_classes_says_nothing(table: Path, info: bytes) -> None:
    path = table / "train-0.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata({b"huggingface": info}), path)
    assert [item.label for item in open_source("image", str(path)).items()][:2] == [("0",), ("1",)]


def test_one_row_is_looked_up_without_those_before_it(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = (table / "train-0.parquet").rename(table / "train-0.PARQUET")
    read, seen = pq.ParquetFile.read_row_group, []

    def noted(self: pq.ParquetFile, group: int, **asked: Any) -> pa.Table:
        seen.append(group)
        return read(self, group, **asked)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    found = list(find_media("image", [f"{path}#2", f"{path}#3", f"{path}#x"]).values())
    assert int(np.asarray(found[0])[0, 0].max()) == 89
    assert seen == [1]
    assert [type(one) for one in found[1:]] == [SourceError] * 2


def test_rows_without_media_fail_alone_and_changed_ones_are_noticed(
    table: Path, encoder: Encoder, tmp_path: Path
) -> None:
    path = table / "train-1.parquet"
    content = pq.read_table(path)
    image = content["image"].to_pylist()

    def write(*cells: Any) -> None:
        kind = content.schema.field("image").type
        changed = content.set_column(0, content.schema.field("image"), [pa.array(cells, kind)])
        pq.write_table(changed, path)

    broken = {"bytes": b"no picture " * 10, "path": "broken.png"}
    write(None, broken)
    made = extract(tmp_path / "s", encoder, open_source("image", str(table)), "t", **OPTIONS)
    assert (made.rows, made.failures) == (3, 2)
    failures = read_failures(made.folder)
    assert [one["id"] for one in failures] == ["train-1-0", "broken.png"]
    assert failures[0]["message"] == "the row has no media"
    write(None, {**image[0], "path": "broken.png"})
    source = open_source("image", str(table))
    with pytest.raises(MismatchError, match="1 changed"):
        extract(tmp_path / "s", encoder, source, "t", **OPTIONS)
    again = extract(tmp_path / "s", encoder, source, "t", update=True, **OPTIONS)
    assert (again.rows, again.failures, again.taken) == (4, 1, 3)
