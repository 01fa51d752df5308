"""What is larger than memory is what it would be in memory."""

import resource
from collections import Counter
from collections.abc import Iterator
from tempfile import gettempdir

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmcr.large import arrays, tables
from cmcr.large.arrays import LARGE, flatnonzero, numbers, room_for, shuffled, taken
from cmcr.large.tables import mapped, most_repeated, partners

TEXTS = st.lists(st.one_of(st.none(), st.text("abc", max_size=3)), max_size=60)


@pytest.fixture(scope="module")
def everything_is_large() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "LARGE", 1)
        patch.setattr(tables, "LARGE", 1)
        patch.setattr(arrays, "_BLOCK", 7)
        patch.setattr(tables, "PART_ROWS", 9)
        yield


def _column(texts: list[str | None], cut: int) -> pa.ChunkedArray:
    chunks = [texts[start : start + cut] for start in range(0, len(texts), cut)]
    return pa.chunked_array([pa.array(chunk, pa.string()) for chunk in chunks], pa.string())


def test_a_large_array_lies_in_a_file_that_goes_with_it() -> None:
    def mapped() -> str:
        with open("/proc/self/maps") as maps:
            return "".join(line for line in maps if f" {gettempdir()}/" in line)

    before = mapped()
    array = room_for((LARGE // 8, 2))
    assert mapped() != before
    array[-1] = 3
    assert (array.dtype, array.sum()) == (np.float32, 6)
    del array
    assert mapped() == before
    assert not room_for((3, 0), np.int64).size
    assert mapped() == before


def test_a_file_that_there_is_no_room_for_is_told_of() -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGE // 2, before[1]))
    try:
        with pytest.raises(OSError, match=gettempdir()):
            room_for((LARGE,), np.uint8)
        with pytest.raises(OSError, match=gettempdir()):
            mapped(iter([pa.table({"id": ["x" * LARGE]})]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("everything_is_large")
@settings(deadline=None, max_examples=40)
@given(TEXTS, TEXTS, st.integers(1, 20))
def test_partners_are_rows_of_the_same_text(
    texts: list[str | None], others: list[str | None], cut: int
) -> None:
    found = partners(_column(texts, cut), _column(others, 5))
    for text, row in zip(texts, found, strict=True):
        if text is None or text not in others:
            assert row == -1
        else:
            assert others[row] == text


@pytest.mark.usefixtures("everything_is_large")
@settings(deadline=None, max_examples=40)
@given(TEXTS)
def test_equal_columns_are_partners_row_by_row(texts: list[str | None]) -> None:
    known = [text for text in texts if text is not None]
    assert partners(_column(known, 4), _column(known, 7)).tolist() == list(range(len(known)))


@pytest.mark.usefixtures("everything_is_large")
@settings(deadline=None, max_examples=40)
@given(TEXTS, st.integers(1, 20))
def test_the_text_that_is_there_most_often(texts: list[str | None], cut: int) -> None:
    most = most_repeated(_column(texts, cut))
    times = Counter(texts)
    if most is None:
        assert max(times.values(), default=1) == 1
    else:
        assert times[most[0]] == most[1] == max(times.values()) > 1


@pytest.mark.usefixtures("everything_is_large")
def test_tables_in_a_file_are_those_in_memory() -> None:
    one = pa.table({"id": ["a", None, "c"], "label": pa.array([["x"], None, []])})
    several = [one, one.slice(1), one.slice(0, 0)]
    table = mapped(iter(several))
    assert table.equals(pa.concat_tables(several))


@pytest.mark.usefixtures("everything_is_large")
@settings(deadline=None, max_examples=40)
@given(st.integers(0, 40), st.integers(0, 9))
def test_numbers_are_those_of_numpy(count: int, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(count)
    assert np.array_equal(shuffled(count, np.random.default_rng(seed)), order)
    assert np.array_equal(numbers(count), np.arange(count))
    assert np.array_equal(flatnonzero(order % 3 == 0), np.flatnonzero(order % 3 == 0))
    assert np.array_equal(taken(order, order[: count // 2]), order[order[: count // 2]])
    assert not room_for((count, 2)).any()
