"""The closed forms recover what was planted, and agree with numpy's least squares."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cmcr.connect.methods.closed_forms import mean_embedding, moments, procrustes, ridge


def unit(count: int, dim: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, dim, dtype=torch.float64, generator=generator)
    return torch.nn.functional.normalize(x, dim=1)


def origin(dim: int) -> Tensor:
    return torch.zeros(dim, dtype=torch.float64)


@pytest.mark.parametrize("dims", [(16, 16), (8, 16)])
def test_procrustes_recovers_a_planted_rotation(dims: tuple[int, int]) -> None:
    x = unit(200, dims[0])
    planted = torch.linalg.qr(unit(dims[1], dims[0], seed=2)).Q.T
    w = procrustes(moments(x, x @ planted, origin(dims[0]), origin(dims[1])))
    torch.testing.assert_close(w, planted, rtol=0, atol=1e-10)


def test_procrustes_into_fewer_dimensions_has_orthonormal_columns() -> None:
    w = procrustes(moments(unit(100, 16), unit(100, 8, seed=1), origin(16), origin(8)))
    torch.testing.assert_close(w.T @ w, torch.eye(8, dtype=torch.float64))


@pytest.mark.parametrize("strength", [1e-6, 1e-3, 0.5])
def test_ridge_is_least_squares_with_a_penalty(strength: float) -> None:
    x, y = unit(150, 12), unit(150, 7, seed=1)
    penalty = np.sqrt(len(x) * strength) * np.eye(12)
    expected, *_ = np.linalg.lstsq(
        np.vstack([x.numpy(), penalty]), np.vstack([y.numpy(), np.zeros((12, 7))]), rcond=None
    )
    w = ridge(moments(x, y, origin(12), origin(7)), strength)
    np.testing.assert_allclose(w.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_moments_are_the_same_in_blocks_and_of_scaled_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = unit(50, 6), unit(50, 5, seed=1)
    means = mean_embedding([x], 6), mean_embedding([y], 5)
    whole = moments(x, y, *means)
    monkeypatch.setattr("cmcr.connect.methods.closed_forms.BLOCK_ROWS", 7)
    cut = moments(3 * x, y, *means)
    torch.testing.assert_close(whole.auto, cut.auto)
    torch.testing.assert_close(whole.cross, cut.cross)
    np.testing.assert_allclose(whole.auto.numpy(), np.cov(x.numpy().T, bias=True), atol=1e-12)


def test_the_mean_streams() -> None:
    x = unit(20, 4).numpy()
    mean = mean_embedding([x[:7], 2 * x[7:]], 4)
    np.testing.assert_allclose(mean.numpy(), x.mean(axis=0), atol=1e-7)
