"""Aggregation agrees with its equation, however the memory is cut."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cmcr.connect import aggregate
from cmcr.errors import MismatchError


def reference(queries: Tensor, memory: Tensor, temperature: float) -> Tensor:
    """ã_i = Σ_k softmax_k(cos(b_i, a_k)/τ1) a_k in float64."""
    b, a = queries.double(), memory.double()
    cosine = (b @ a.T) / b.norm(dim=1)[:, None] / a.norm(dim=1)[None]  # (q, m)
    weight = (cosine / temperature).exp()
    return weight @ a / weight.sum(dim=1, keepdim=True)


def rows(generator: torch.Generator, count: int, dim: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=generator), dim=1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 40),
    memory=st.integers(1, 300),
    dim=st.integers(2, 96),
    temperature=st.sampled_from([0.01, 0.02, 0.1, 1.0]),
    chunk=st.integers(1, 128),
)
def test_aggregate_is_the_equation(
    seed: int, queries: int, memory: int, dim: int, temperature: float, chunk: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    b, a = rows(generator, queries, dim), rows(generator, memory, dim)
    expected = reference(b, a, temperature)
    whole = aggregate(b, a, temperature)
    chunked = aggregate(b, a, temperature, chunk_rows=chunk)
    streamed = aggregate(b, (block.numpy() for block in a.split(chunk)), temperature)
    for result in (whole, chunked, streamed):
        assert result.dtype == torch.float32
        # Relative to the memory's unit norm: a sum of opposite vectors may be close to zero.
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-5)


def test_half_precision_is_accumulated_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    b, a = rows(generator, 20, 64).half(), rows(generator, 5000, 64).half()
    result = aggregate(b, a, 0.01, chunk_rows=100)
    torch.testing.assert_close(result.double(), reference(b, a, 0.01), rtol=0, atol=1e-5)


def test_extreme_temperature_neither_overflows_nor_underflows() -> None:
    memory = torch.eye(8)
    opposite = -torch.ones(1, 8)
    assert aggregate(memory, memory, 1e-4, chunk_rows=3).equal(memory)
    torch.testing.assert_close(aggregate(opposite, memory, 1e-4), torch.full((1, 8), 0.125))


def test_a_read_only_memory_map_is_read(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("memory") / "a.npy"
    np.save(path, np.eye(4, dtype=np.float16))
    memory = np.load(path, mmap_mode="r")
    assert aggregate(torch.eye(4), [memory], 0.001).equal(torch.eye(4))


def test_a_memory_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(MismatchError, match="no rows"):
        aggregate(torch.eye(4), [], 0.01)
    with pytest.raises(MismatchError, match="4 dimensions, the memory has 5"):
        aggregate(torch.eye(4), [torch.eye(5)], 0.01)
