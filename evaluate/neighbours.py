"""The nearest gallery items of every query, by an exact FAISS search: who found whom.

    write_neighbours(folder / "neighbours.parquet", connection, (speech, photos))   # both ways

The search is exact, so the share of queries with a `match` among their ten is `hit_rate@10`.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from cmcr.connect import Connection
from cmcr.evaluate.relevance import find_matches
from cmcr.evaluate.retrieval import Items
from cmcr.files import replacing
from cmcr.typed import typed

NEIGHBOURS = 10

_BLOCK_QUERIES = 65_536
_PLACE = pa.dictionary(pa.int32(), pa.string())
_SCHEMA = pa.schema(
    {
        "query": _PLACE,
        "query_id": pa.string(),
        "gallery": _PLACE,
        "gallery_id": pa.string(),
        "rank": pa.int32(),
        "cosine": pa.float32(),
        "match": pa.bool_(),
    }
)


@typed
def search(
    queries: Float[np.ndarray, "queries dim"], gallery: Float[np.ndarray, "gallery dim"], k: int
) -> tuple[Float[np.ndarray, "queries k"], Int[np.ndarray, "queries k"]]:
    """Inner products and rows of the `k` nearest gallery items, or of all where there are fewer."""
    import faiss

    scores, rows = faiss.knn(
        queries, gallery, min(k, len(gallery)), metric=faiss.METRIC_INNER_PRODUCT
    )  # (queries, k), (queries, k)
    return scores, rows


def write_neighbours(path: Path, model: Connection, both: tuple[Items, Items]) -> None:
    """Write who found whom: first of `both` in the second, then the second in the first.

    One row a query and neighbour: both datasets and ids, rank from 1, cosine, and `match`.
    """
    vectors = [items.projected(model).numpy() for items in both]  # (items, joint) each
    with replacing(path) as unfinished, pq.ParquetWriter(unfinished, _SCHEMA) as writer:
        for asked, found in ((0, 1), (1, 0)):
            for table in _tables(both[asked], vectors[asked], both[found], vectors[found]):
                writer.write_table(table)


def _tables(
    query: Items, queries: np.ndarray, gallery: Items, vectors: np.ndarray
) -> Iterator[pa.Table]:
    """The neighbours of a block of queries after the other."""
    matches = find_matches(query.table, gallery.table)
    for start in range(0, len(queries), _BLOCK_QUERIES):
        block = queries[start : start + _BLOCK_QUERIES]
        scores, found = search(block, vectors, NEIGHBOURS)  # (block, k), (block, k)
        count, k = found.shape
        asked = start + np.repeat(np.arange(count), k)  # (block · k,)
        columns = {
            "query": pa.repeat(str(query.key), count * k).dictionary_encode(),
            "query_id": query.table["id"].take(asked),
            "gallery": pa.repeat(str(gallery.key), count * k).dictionary_encode(),
            "gallery_id": gallery.table["id"].take(found.ravel()),
            "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), count),
            "cosine": scores.ravel(),
            "match": matches.pairs(asked, found.ravel()),
        }
        yield pa.table(columns, schema=_SCHEMA)
