"""Pools of which no pair is known: all are found, or nothing is connected."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shell import refuse, succeed

import cmcr
from cmcr.connect.matching import unordered
from cmcr.embeddings import Key, import_embeddings
from cmcr.errors import MismatchError, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")

ITEMS, LATENT = 120, 30
DIMS = {"see": 192, "hear": 128}


def pools(common: bool) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The same items, or others, in an order of each space's own; and the partner of each."""
    random = np.random.default_rng(3)
    items = random.standard_t(4, (2 * ITEMS, LATENT)) * np.arange(1, LATENT + 1) ** -0.4
    cut = {"see": items[:ITEMS], "hear": items[:ITEMS] if common else items[ITEMS:]}
    order = {space: random.permutation(ITEMS) for space in DIMS}
    found = {}
    for space, dim in DIMS.items():
        shown = cut[space] @ random.standard_normal((LATENT, dim)) / dim**0.5
        noise = 0.05 * random.standard_normal(shown.shape)
        found[space] = (shown + noise)[order[space]].astype(np.float32)
    return found, np.argsort(order["hear"])[order["see"]]


@pytest.fixture(autouse=True)
def fewer_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unordered, "STARTS", 12)
    monkeypatch.setattr(unordered, "CHANCE_STARTS", 1)
    monkeypatch.setattr(unordered, "BEAM", 1_000)


def memory(random: np.random.Generator) -> dict[str, dict[str, Any]]:
    return {space: {kind: random.standard_normal((30, DIMS[space]))}
            for space, kind in (("see", "image"), ("hear", "audio"))}  # fmt: skip


def test_the_same_items_in_any_order_are_connected_and_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unordered, "ANCHORS", ITEMS - 10)  # the rounds after it find the others
    monkeypatch.setattr("cmcr.connect.methods.pools.FAR_ROWS", 32)
    given, partner = pools(common=True)
    spaces = memory(np.random.default_rng(0))
    made = cmcr.fit(spaces, via="text", pools=given, blind=True, method="cca")
    made.save(tmp_path)
    one, two = (made.project(space, given[space], "text") for space in DIMS)
    assert ((one @ two.T).argmax(dim=1).numpy() == partner).mean() > 0.9
    record, said = cmcr.load_connection(tmp_path).record, made.record.pools
    assert record.blind
    assert record.pools == said
    assert record.pairs == said["found"] > 0.9 * ITEMS
    assert said["agreement"] > said["chance"]
    assert record.unmatched == (ITEMS - record.pairs, ITEMS - record.pairs)
    assert "none was known" in (tmp_path / "README.md").read_text()


def test_pools_of_other_items_are_not_connected_and_the_search_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, _ = pools(common=False)
    for space, rows in given.items():
        np.save(tmp_path / "x.npy", rows)
        key = Key(space, "text", "all")
        import_embeddings(tmp_path / "S", key, tmp_path / "x.npy", None, index=None)
    asked = ["connect", "--via", "text", "--spaces", "see,hear", "--blind", "--store",
             str(tmp_path / "S"), "--pool", "see/text:all", "--pool", "hear/text:all",
             "--no-pipeline", "--name", "no"]  # fmt: skip
    told = refuse(1, *asked)
    assert "nothing is connected" in told
    assert not list((tmp_path / "S/connections/no").glob("[!.]*"))
    monkeypatch.setattr("cmcr.connect.methods.pools.find_pairs", None)
    assert refuse(1, *asked) == told
    with pytest.raises(TypeError):  # another seed is another search
        refuse(1, *asked, "--set", "seed=1")
    (match,) = (tmp_path / "S/matches").glob("*.json")
    match.write_text(match.read_text().replace('"agreed": 0', '"agreed": 4'))
    with pytest.raises(TypeError):  # it is searched again
        refuse(1, *asked)


def test_what_was_made_of_known_pairs_is_not_overwritten(tmp_path: Path) -> None:
    store = tmp_path / "S"
    for space, rows in pools(common=True)[0].items():
        np.save(tmp_path / "x.npy", rows)
        key = Key(space, "text", "all")
        import_embeddings(store, key, tmp_path / "x.npy", None, index=None)
    asked = ["connect", "--via", "text", "--spaces", "see,hear", "--store", str(store),
             "--no-pipeline", "--name", "c"]  # fmt: skip
    succeed(*asked, "--train", "all", "--method", "procrustes")
    told = refuse(2, *asked, "--blind", "--pool", "all", "--method", "procrustes")
    assert "blind: False → True" in told


def test_a_beam_that_is_wide_enough_finds_the_best_and_its_agreement_is_a_correlation() -> None:
    random = np.random.default_rng(1)
    x, y = (random.standard_normal((6, 3)) for _ in range(2))
    items = [2, 0, 5]
    k1, k2 = x @ x.T, y @ y.T
    costs = {
        (a, b, c): ((k1[np.ix_(items, items)] - k2[np.ix_((a, b, c), (a, b, c))]) ** 2).sum()
        for a in range(6) for b in range(6) for c in range(6) if len({a, b, c}) == 3
    }  # fmt: skip
    ends = unordered.beam(torch.from_numpy(k1), torch.from_numpy(k2), items)
    assert [tuple(end) for end in ends.tolist()] == sorted(costs, key=lambda one: costs[one])
    there, off = random.permutation(6), ~np.eye(6, dtype=bool)
    expected = np.corrcoef(k1[off], (y[there] @ y[there].T)[off])[0, 1]
    found = unordered.agreement(torch.from_numpy(x), torch.from_numpy(y), there)
    assert found == pytest.approx(expected, abs=1e-9)


def test_the_rows_that_lie_farthest_out_are_told_block_by_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = np.random.default_rng(4).standard_normal((90, 6)) * np.arange(1, 7) + 1
    assert list(unordered.far_out(lambda: [rows[:50], rows[50:]])) == list(range(90))
    monkeypatch.setattr(unordered, "ANCHORS", 20)
    monkeypatch.setattr(unordered, "RANK", 4)
    x = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    x -= x.mean(axis=0)
    values, axes = np.linalg.eigh(x.T @ x)
    lengths = ((x @ axes[:, 2:]) ** 2 * values[2:] ** -0.5).sum(axis=1)
    found = unordered.far_out(lambda: (rows[at : at + 7] for at in range(0, 90, 7)))
    assert found.tolist() == sorted(np.argsort(lengths)[-20:])


def test_rows_and_columns_of_what_is_annealed_sum_alike() -> None:
    scores = torch.from_numpy(np.random.default_rng(2).standard_normal((5, 7)))
    p = unordered.doubly_stochastic(scores, 2.0, rounds=200)
    assert torch.allclose(p.sum(dim=1), p.new_ones(5))
    assert torch.allclose(p.sum(dim=0), p.new_full((7,), 5 / 7))
    logs = p.log() - 2 * scores  # a number a row plus a number a column
    assert torch.allclose(logs - logs[:1] - logs[:, :1] + logs[0, 0], torch.zeros(5, 7).double())


def test_what_goes_with_no_pairs_is_checked() -> None:
    given, _ = pools(common=True)
    spaces = memory(np.random.default_rng(0))
    with pytest.raises(UsageError, match="blind"):
        cmcr.fit(spaces, via="text", blind=True)
    with pytest.raises(UsageError, match="blind=True knows no pairs"):
        cmcr.fit({s: spaces[s] | {"text": x} for s, x in given.items()}, via="text", pools=given,
                 blind=True)  # fmt: skip
    few = given | {"see": given["see"][:9]}
    with pytest.raises(MismatchError, match="the pool of see has 9 rows"):
        cmcr.fit(spaces, via="text", pools=few, blind=True)
