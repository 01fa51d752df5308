"""Shards as people read them: other libraries give the vectors that cmcr does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmcr.embeddings import open_dataset
from cmcr.embeddings.schema import Precision
from cmcr.extract import Encoder, extract, open_source

Read = tuple[list[Any], list[str]]


def by_duckdb(store: Path) -> Read:
    import duckdb

    found = duckdb.sql(
        f"select id, embedding, space from read_parquet('{store}/space*/*/*/part-*.parquet', "
        "hive_partitioning=true) order by filename, file_row_number"
    ).fetchall()
    assert {space for _, _, space in found} == {"bytes"}
    return [vector for _, vector, _ in found], [id for id, _, _ in found]


def by_polars(store: Path) -> Read:
    import polars

    parts = f"{store}/space*/*/*/part-*.parquet"
    table = polars.scan_parquet(parts, hive_partitioning=True).collect()
    assert table["space"].unique().to_list() == ["bytes"]
    return table["embedding"].to_list(), table["id"].to_list()


def by_datasets(store: Path) -> Read:
    import datasets

    parts = sorted(map(str, store.glob("space*/*/*/part-*.parquet")))
    table = datasets.Dataset.from_parquet(parts, cache_dir=str(store / "cache"))
    return table["embedding"][:], table["id"][:]


@pytest.mark.parametrize("precision", ["float16", "float32"])
@pytest.mark.parametrize("read", [by_duckdb, by_polars, by_datasets])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_another_library_gives_the_same_vectors(
    read: Callable[[Path], Read], precision: Precision, encoder: Encoder, tmp_path: Path
) -> None:
    (tmp_path / "t.txt").write_text("".join(f"text {number}\n" for number in range(25)))
    source = open_source("text", str(tmp_path / "t.txt"))
    made = extract(tmp_path / "s", encoder, source, "t", workers=0, index=None, part_rows=10,
                   precision=precision)  # fmt: skip
    vectors, ids = read(tmp_path / "s")
    assert ids == [str(number) for number in range(25)]
    expected = open_dataset(tmp_path / "s", made.key).embeddings()
    np.testing.assert_array_equal(np.asarray(vectors, precision), expected)
