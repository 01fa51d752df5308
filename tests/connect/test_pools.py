"""Pools: pairs are found in them, kept where held-out pairs become more likely, and told of."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cmcr
from cmcr.connect.methods import pools as pools_module
from cmcr.connect.methods.pools import mutual
from cmcr.connect.spaces.pairs import Rows
from cmcr.errors import MismatchError, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")

KNOWN, POOL, LATENT = 40, 400, 20
DIMS = {"see": 32, "hear": 24}


def shown(space: str, latent: np.ndarray) -> np.ndarray:
    random = np.random.default_rng(len(space))
    noise = np.random.default_rng(len(latent)).standard_normal((len(latent), 32))[:, : DIMS[space]]
    view = random.standard_normal((LATENT, DIMS[space]))
    return np.asarray(latent @ view + 1.5 * noise, dtype=np.float32)


def world(common: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Known pairs, and pools that have the first `common` items in common, each in an order of its
    own.
    """
    random = np.random.default_rng(1)
    items = random.standard_normal((KNOWN + 2 * POOL - common, LATENT))
    rest = items[KNOWN:]
    cut = {"see": rest[:POOL], "hear": np.roll(rest, -common, axis=0)[-POOL:]}
    if common:
        cut["hear"] = np.concatenate([rest[:common], rest[POOL:]])
    spaces = {space: {"text": shown(space, items[:KNOWN])} for space in DIMS}
    return spaces, {space: random.permutation(shown(space, cut[space])) for space in DIMS}


def as_they_are(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(rows.copy())


def test_pools_of_the_same_items_are_kept_and_those_without_any_in_common_are_not() -> None:
    for common in (POOL, 0):
        spaces, pools = world(common)
        made = cmcr.fit(spaces, via="text", pools=pools, method="cca")
        alone = cmcr.fit(spaces, via="text", method="cca")
        said, record = made.record.pools, made.record
        assert (record.pairs, record.held_out, alone.record.pools) == (KNOWN, 0, {})
        assert said["kept"] == bool(common)
        assert (said["with"] > said["without"]) == bool(common)
        assert bool(said["found"]) == bool(common)
        assert (made.record.model_sha256 == alone.record.model_sha256) == (not common)


def test_a_trained_method_is_given_the_pairs_too(tmp_path: Path) -> None:
    spaces, pools = world(POOL)
    made = cmcr.fit(spaces, via="text", pools=pools, method="c-mcr", epochs=1, joint_dim=4)
    made.save(tmp_path)
    assert made.record.pools["found"] > POOL / 2
    assert "found in the pools" in (tmp_path / "README.md").read_text()


def test_neighbours_are_mutual_and_corrected_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    one, two = (random.standard_normal((count, 6)) for count in (50, 40))
    one, two = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (one, two))
    cosines = one @ two.T
    r1, r2 = (np.sort(c, axis=1)[:, -5:].mean(axis=1) for c in (cosines, cosines.T))
    there, back = (2 * cosines - r2).argmax(axis=1), (2 * cosines.T - r1).argmax(axis=1)
    expected = {(i, int(j)) for i, j in enumerate(there) if back[j] == i}
    rows = [Rows([x.astype(np.float32)]) for x in (one, two)]
    monkeypatch.setattr(pools_module, "BLOCK_ROWS", 7)
    found = mutual(*rows, (as_they_are, as_they_are))
    assert set(zip(*(numbers.tolist() for numbers in found), strict=True)) == expected


def test_pools_that_cannot_be_used_are_refused() -> None:
    spaces, pools = world(POOL)
    with pytest.raises(UsageError, match="pools are of both spaces"):
        cmcr.fit(spaces, via="text", pools={"see": pools["see"]})
    same = {space: one["text"] for space, one in spaces.items()}
    with pytest.raises(MismatchError, match="no rows but those of known pairs"):
        cmcr.fit(spaces, via="text", pools=same)
