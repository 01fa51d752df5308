"""What lies behind the numbers, as files beside the results of a task.

write_neighbours(folder / NEIGHBOURS_FILE, connection, (sounds, photos), matches)
find_neighbours(connection, sounds, photos, matches, bank)    # one direction, corrected for hubs
write_per_query(folder / PER_QUERY_FILE, [table, ...])        # of `per_query`

neighbours.parquet   who found whom, by the connection
per-query.parquet    how well each query did, by every model
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cmcr.connect import JointSpace
from cmcr.embeddings.index import search
from cmcr.embeddings.search.hubness import NNN, Bank, correction, with_correction, with_one
from cmcr.evaluate.inputs.items import Items
from cmcr.evaluate.ranking.matches import Matches
from cmcr.files import replacing

NEIGHBOURS_FILE = "neighbours.parquet"
PER_QUERY_FILE = "per-query.parquet"
PER_QUERY_FILES = {  # by task; two tasks of one pair share a folder
    "retrieval": PER_QUERY_FILE,
    "zero-shot": "zero-shot-per-query.parquet",
}
TOP_K = 10

_BLOCK_QUERIES = 65_536
_NAME = pa.dictionary(pa.int32(), pa.string())
_SCHEMA = pa.schema(
    {
        "query": _NAME,
        "query_id": pa.string(),
        "gallery": _NAME,
        "gallery_id": pa.string(),
        "rank": pa.int32(),
        "cosine": pa.float32(),
        "match": pa.bool_(),
        "hubness": _NAME,
        "score": pa.float32(),
    }
)


def write_neighbours(
    path: Path,
    model: JointSpace,
    both: tuple[Items, Items],
    matches: Matches,
    banks: Sequence[Bank] = (),
) -> None:
    """Write who found whom: first of `both` in the second, then the second in the first.

    One row a query and neighbour: both datasets and ids, rank from 1, cosine, and `match`, which is
    null where nothing says what matches. With a bank for each way follow the neighbours of the
    corrected search, `hubness` "nnn"; `score` is what ranks them, 2 cosine - r. Of the others it is
    the cosine.
    """
    ways = ((*both, matches), (*both[::-1], matches.reverse()))
    with replacing(path) as unfinished, pq.ParquetWriter(unfinished, _SCHEMA) as writer:
        for corrected in (False, True) if banks else (False,):
            for number, (query, gallery, relevant) in enumerate(ways):
                bank = banks[number] if corrected else None
                for table in find_neighbours(model, query, gallery, relevant, bank):
                    writer.write_table(table)


def find_neighbours(
    model: JointSpace, query: Items, gallery: Items, matches: Matches, bank: Bank | None = None
) -> Iterator[pa.Table]:
    """The neighbours of a block of queries after the other, in the columns of the file."""
    queries, vectors = query.projected(model), gallery.projected(model)  # (items, joint) each
    r = np.zeros(len(vectors), np.float32)  # (gallery,)
    if bank is not None:
        corrections = correction(vectors, bank.blocks(model.project))
        queries, vectors = with_one(queries), with_correction(vectors, corrections)
        r = corrections.numpy()
    for start in range(0, len(queries), _BLOCK_QUERIES):
        block = queries[start : start + _BLOCK_QUERIES]
        products, found = search(block.numpy(), vectors.numpy(), TOP_K)  # (block, k), (block, k)
        count, k = found.shape
        asked = start + np.repeat(np.arange(count), k)  # (block · k,)
        cosines = (products + r[found] / 2).ravel()
        columns = {
            "query": _all(str(query.key), count * k),
            "query_id": query.table["id"].take(asked),
            "gallery": _all(str(gallery.key), count * k),
            "gallery_id": gallery.table["id"].take(found.ravel()),
            "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), count),
            "cosine": cosines,
            "match": matches.pairs(asked, found.ravel())
            if matches.truth
            else pa.nulls(count * k, pa.bool_()),
            "hubness": _all("none" if bank is None else NNN, count * k),
            "score": cosines if bank is None else 2 * products.ravel(),
        }
        yield pa.table(columns, schema=_SCHEMA)


def _all(name: str, rows: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), [name])


def write_per_query(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write tables of the same columns into one file, whole or not at all."""
    with replacing(path) as unfinished:
        writer = None
        try:
            for table in tables:
                writer = writer or pq.ParquetWriter(unfinished, table.schema)
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()
