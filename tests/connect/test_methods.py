"""Every method connects; what is held out decides; and a run can be stopped at any time."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cmcr.connect import ConnectConfig, baselines, connect, load_connection, read_config
from cmcr.connect.methods import auto
from cmcr.connect.methods.held_out import FOLDED, MOST, folds, split
from cmcr.connect.methods.problem import pose
from cmcr.connect.spaces.pairs import Pairs, Rows
from cmcr.connect.training import info_nce as info_nce_module
from cmcr.connect.training import objective as objective_module
from cmcr.connect.training.batches import Batches, TrainingSet
from cmcr.connect.training.info_nce import info_nce
from cmcr.connect.training.schedule import scheduled
from cmcr.connect.training.validation import (
    FEWEST,
    TEMPERATURES,
    Held,
    Queries,
    clearly_worse,
    falls,
    groups,
    hold,
    validate,
)
from cmcr.embeddings import Dataset, Key, open_dataset
from cmcr.errors import CmcrError, StoreError, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")

MakeDataset = Callable[..., Dataset]
PAIRS, LATENT, DIM = 600, 6, 20
OTHER = {"see": "image", "hear": "audio"}
EPOCHS = 24  # of a run that is stopped after the first


@pytest.fixture(scope="module")
def whole_store(
    makers: Callable[[Path], MakeDataset], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Two spaces of equal dim in which modalities lie apart."""
    folder = tmp_path_factory.mktemp("whole")
    make_dataset = makers(folder)
    random = np.random.default_rng(3)
    maps = {space: random.normal(size=(2, LATENT, DIM)) for space in OTHER}

    def show(space: str, latent: np.ndarray, offset: float) -> np.ndarray:
        first, second = maps[space]
        noise = 0.1 * random.normal(size=(len(latent), DIM))
        return np.tanh(latent @ first) + latent @ second + offset + noise

    captions, test = random.normal(size=(PAIRS, LATENT)), random.normal(size=(150, LATENT))
    for space, modality in OTHER.items():
        ids = [str(row) for row in range(PAIRS)]
        make_dataset(f"{space}/text:captions", show(space, captions, 0.0), id=ids)
        unpaired = random.normal(size=(400, LATENT))
        make_dataset(f"{space}/{modality}:memory", show(space, unpaired, 1.5))
        make_dataset(f"{space}/{modality}:test", show(space, test, 1.5))
    return folder / "store"


@pytest.fixture
def store(whole_store: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(whole_store, tmp_path / "store")


def config(**settings: Any) -> ConnectConfig:
    section = {
        "via": "text",
        "spaces": ["hear", "see"],
        "train": ["captions"],
        "memory": ["memory"],
        "method": "c-mcr",
        "joint_dim": DIM,
        "batch_size": 180,
        "epochs": 8,
        "noise_variance": 0.02,
        "memory_temperature": 0.05,
        "bridge_temperature": 0.05,
        "pseudo_temperature": 0.05,
    }
    return read_config(section | settings)


def hit_rate(folder: Path, store: Path) -> float:
    """Share of the test sounds whose own picture is among the first five of 150."""
    connection = load_connection(folder)
    sound, picture = (
        connection.project(
            space,
            open_dataset(store, Key(space, OTHER[space], "test")).embeddings(),  # type: ignore[arg-type]
            OTHER[space],  # type: ignore[arg-type]
        )
        for space in ("hear", "see")
    )
    scores = sound @ picture.T
    rank = (scores >= scores.diagonal()[:, None]).sum(dim=1)
    return (rank <= 5).float().mean().item()


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "c-mcr", "centre": True},
        {"method": "c-mcr", "projector": "residual"},
        {"method": "ex-mcr", "epochs": 20},
        {"method": "ex-mcr", "projector": "residual"},
        {"method": "linear", "centre": True},
        {"method": "textme", "batch_size": 30},
    ],
)
def test_every_trained_method_connects(store: Path, settings: dict[str, Any]) -> None:
    made = connect(store, config(**settings), name="a")
    assert made.record.model == config(**settings).model_name
    assert hit_rate(made.path, store) > 0.2  # chance: 0.033
    assert made.record.validation.keys() == {"hit_rate@1", "mrr", "log_likelihood"}
    assert (made.record.pairs, made.record.held_out) == (PAIRS, 60)


@pytest.mark.parametrize("method", ["ex-mcr", "linear", "textme", "procrustes", "ex-cca"])
def test_the_base_space_stays_as_it_is(store: Path, method: str) -> None:
    folder = connect(store, config(method=method), name="a").path
    x = torch.randn(30, DIM)
    joint = load_connection(folder).project("see", x, "image")
    torch.testing.assert_close(joint, F.normalize(x, dim=1))


def test_ex_mcr_treats_the_modalities_of_the_leaf_in_their_own_way(store: Path) -> None:
    connection = load_connection(connect(store, config(method="ex-mcr"), name="a").path)
    x = torch.randn(30, DIM)
    text, audio = (connection.project("hear", x, modality) for modality in ("text", "audio"))
    assert not torch.allclose(text, audio)
    with pytest.raises(UsageError, match="none was named"):
        connection.project("hear", x)


def test_textme_is_trained_on_centred_text_alone(store: Path) -> None:
    made = connect(store, config(method="textme", epochs=2), name="a")
    assert not (store / "pseudo").exists()
    first, second = made.record.spaces
    assert (first.centred, second.centred) == (("text", "audio"), ())
    card = (made.path / "README.md").read_text()
    assert "[TextME](https://arxiv.org/abs/2602.03098)" in card
    assert "- `epochs`: 2\n" in card
    assert "warm_up" not in card  # as it usually is
    both = connect(store, config(method="textme", epochs=2, centre=True), name="b")
    assert both.record.model == "textme-centred"
    assert both.record.spaces[1].centred == ("text", "image")
    first_row = json.loads((made.path / "training.jsonl").read_text().splitlines()[0])
    assert first_row["loss"] == first_row["inter_bridge"] > 0


def test_a_residual_begins_as_the_closed_form_and_is_never_worse_where_it_is_judged(
    store: Path,
) -> None:
    # So hot that every epoch is worse than the start: what is left is cca on the same pairs.
    hot = {"learning_rate": 10.0, "noise_variance": 4.0, "validation": 0.2}
    made = connect(store, config(projector="residual", **hot), name="trained")
    closed = baselines(store, made.record)["cca"]
    trained = load_connection(made.path)
    for space, modality in OTHER.items():
        x = open_dataset(store, Key(space, modality, "test")).embeddings()  # type: ignore[arg-type]
        both = (one.project(space, x, modality) for one in (closed, trained))  # type: ignore[arg-type]
        torch.testing.assert_close(*both, rtol=0, atol=1e-5)
    usual = connect(store, config(projector="residual", validation=0.2), name="usual")
    assert usual.record.validation["log_likelihood"] >= usual.methods["cca"]["log_likelihood"]


def test_auto_compares_all_and_fits_what_it_takes_on_all_pairs(store: Path) -> None:
    made = connect(store, config(method="auto", epochs=3), name="a")
    closed = {"identity", "procrustes", "procrustes-centred", "ridge", "ridge-centred", "cca"}
    assert set(made.methods) >= closed | {"c-mcr-residual"}
    assert {made.methods[name]["pairs"] for name in closed} == {PAIRS}
    assert 0 < made.methods["c-mcr-residual"]["pairs"] < PAIRS / 2  # clearly behind after a fold
    likelihoods = [one["log_likelihood"] for one in made.methods.values()]
    assert likelihoods == sorted(likelihoods, reverse=True)
    best = max(closed, key=lambda name: made.methods[name]["log_likelihood"])
    assert made.methods[best]["behind"] <= 2
    assert (made.record.held_out, made.record.requested.method) == (0, "auto")
    assert made.record.validation.items() <= made.methods[made.record.model].items()
    again = connect(store, config(method="auto", epochs=3), name="a")
    assert (again.fresh, again.methods) == (False, made.methods)
    assert again.warnings == ()


def test_auto_judges_a_training_by_some_hundred_pairs_unless_it_is_clearly_behind(
    store: Path,
) -> None:
    made = connect(store, config(method="auto", epochs=10), name="a")
    assert 256 <= made.methods["c-mcr-residual"]["pairs"] < PAIRS
    assert made.methods["c-mcr"]["pairs"] < 256  # a fold is enough


def test_auto_without_validation_takes_cca_and_says_so(store: Path) -> None:
    made = connect(store, config(method="auto", validation=0), name="a")
    assert (made.record.model, made.record.validation) == ("cca", {})
    (told,) = made.warnings
    assert "auto took cca without a comparison of methods: validation=0" in told


def test_a_candidate_whose_loss_is_not_finite_does_not_end_auto(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attraction = objective_module.attraction
    monkeypatch.setattr(objective_module, "attraction", lambda *x: attraction(*x) * float("nan"))
    made = connect(store, config(method="auto", epochs=2), name="a")
    assert not load_connection(made.path).config.trained  # type: ignore[union-attr]
    assert made.methods.keys().isdisjoint({"c-mcr", "c-mcr-residual"})
    assert "c-mcr-residual is no candidate: the loss is no longer finite" in caplog.text
    assert not list(made.path.rglob("checkpoint.pt"))


def test_what_auto_trains_is_trained_again_on_all_pairs_to_the_same_epoch(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        auto, "clearly_worse", lambda one, other, errors=2: bool(other.mean() > one.mean() - 9)
    )
    monkeypatch.setattr(auto, "preferred", lambda each: "cca")
    made = connect(store, config(method="auto", epochs=6), name="a")
    assert made.record.model in ("c-mcr", "c-mcr-residual")
    rows = (made.path / "methods" / "final" / "training.jsonl").read_text().splitlines()
    assert len(rows) <= 6
    assert "validation_mrr" not in rows[-1]  # nothing is held out
    assert (made.path / "training.jsonl").exists()
    assert not list(made.path.rglob("checkpoint.pt"))
    assert hit_rate(made.path, store) > 0.2


@pytest.mark.parametrize("pairs", [2, 3, 5, 10, 40])
@pytest.mark.parametrize("memory", [[], ["memory"]])
def test_auto_connects_whatever_there_is(
    store: Path, make_dataset: MakeDataset, pairs: int, memory: list[str]
) -> None:
    random = np.random.default_rng(0)
    for space in OTHER:
        ids = [str(row) for row in range(pairs)]
        make_dataset(f"{space}/text:few", random.normal(size=(pairs, DIM)), id=ids)
    made = connect(store, config(method="auto", train=["few"], memory=memory, epochs=2), name="a")
    assert not made.record.config.trained  # type: ignore[union-attr]
    if pairs < FEWEST:  # so few show nothing else to be better
        assert made.record.model == "cca"
    (told,) = made.warnings or ("",)
    assert bool(told) == (pairs < 10) == (f"{pairs} pairs are too few" in told)
    connection = load_connection(made.path)
    # Also of a modality that nothing was told of.
    joint = connection.project("hear", random.normal(size=(3, DIM)), "audio")
    torch.testing.assert_close(joint.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("method", ["procrustes", "ridge"])
def test_what_is_centred_takes_a_modality_without_rows_as_it_is(store: Path, method: str) -> None:
    made = connect(store, config(method=method, centre=True, memory=[]), name="a")
    x = torch.randn(5, DIM)
    connection = load_connection(made.path)
    head = connection.projectors[connection.place_of("hear")].head  # type: ignore[attr-defined]
    expected = F.normalize(head(F.normalize(x)), dim=1)
    torch.testing.assert_close(connection.project("hear", x, "audio"), expected)


def test_a_named_method_that_is_behind_a_closed_form_is_told(store: Path) -> None:
    good = connect(store, config(method="ridge", centre=True), name="good")
    assert good.warnings == ()
    assert {"cca", "ridge-centred"} <= good.methods.keys()
    bad = connect(store, config(epochs=1, learning_rate=1e-6), name="bad")
    (told,) = bad.warnings
    assert bad.methods["c-mcr"]["pairs"] == bad.methods["cca"]["pairs"] == 60
    for said in ("c-mcr is behind", "first places", "held-out pairs", "--method auto"):
        assert said in told
    assert connect(store, config(epochs=1, learning_rate=1e-6), name="bad").warnings == (told,)
    assert connect(store, config(validation=0, epochs=1), name="unknown").warnings == ()


def test_a_damaged_list_of_methods_is_named(store: Path) -> None:
    folder = connect(store, config(method="ridge"), name="a").path
    for content in ("{", "[]", '{"methods": {"cca": {"mrr": 0.5}}}'):
        (folder / "methods.json").write_text(content)
        with pytest.raises(StoreError, match="held-out pairs cannot be read"):
            connect(store, config(method="ridge"), name="a")
    (folder / "methods.json").unlink()
    assert connect(store, config(method="ridge"), name="a").methods == {}


def test_an_epoch_that_is_not_clearly_worse_is_kept_and_patience_ends_the_run(store: Path) -> None:
    settings = config(epochs=60, patience=2, learning_rate=0.1, noise_variance=1.0)
    made = connect(store, settings, name="a")
    rows = [json.loads(line) for line in (made.path / "training.jsonl").read_text().splitlines()]
    name = "validation_log_likelihood"
    scores = [row[name] for row in rows if name in row]  # of 60 epochs every second
    assert len(rows) < 60
    # The last two were clearly worse than the best, the one before them was not.
    assert made.record.validation["log_likelihood"] == pytest.approx(scores[-3])


def as_pairs(x: np.ndarray) -> Pairs:
    return Pairs(Rows([x]), Rows([x]))


def test_what_is_held_out_is_told_by_the_seed_and_never_fitted() -> None:
    def cut(count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        return split(as_pairs(np.arange(count, dtype=np.float32)[:, None]), share, seed)

    seen, held = cut(1000, 0.1, seed=0)
    assert (len(held), len(np.intersect1d(seen, held)), len(seen)) == (100, 0, 900)
    assert np.array_equal(cut(1000, 0.1, seed=0)[1], held)
    assert not np.array_equal(cut(1000, 0.1, seed=1)[1], held)
    assert len(cut(100, 0.1, seed=0)[1]) == 25
    assert len(cut(10**6, 0.1, seed=0)[1]) == 2048
    assert len(cut(1000, 0.0, seed=0)[1]) == 0


def test_equal_pairs_are_held_out_together_or_not_at_all() -> None:
    random = np.random.default_rng(0)
    said = random.normal(size=(250, DIM)).astype(np.float16)
    seen, held = split(as_pairs(np.tile(said, (4, 1))), 0.1, seed=0)
    assert (len(held), len(seen)) == (100, 900)
    assert not set(held % 250) & set(seen % 250)
    # All the same: as if each said something of its own.
    assert len(split(as_pairs(np.tile(said[:1], (1000, 1))), 0.1, seed=0)[1]) == 100


def test_a_few_things_said_often_and_some_strays_are_a_few_things() -> None:
    """Each of them is in all folds, and each item counts on its own; of many things neither."""
    random = np.random.default_rng(0)

    def said(things: int, times: int, strays: int) -> np.ndarray:
        often = np.repeat(random.normal(size=(things, DIM)), times, axis=0)
        often += 0.05 * random.normal(size=often.shape)
        return np.concatenate([often, random.normal(size=(strays, DIM))]).astype(np.float32)

    few = said(6, 40, 20)
    thing = np.arange(240) // 40
    for fit, held in folds(as_pairs(few), seed=0, device="cpu"):
        assert set(thing[fit[fit < 240]]) == set(thing[held[held < 240]]) == set(range(6))
    rows = torch.from_numpy(few)
    assert len(hold((rows, rows), len(rows), (None, None)).groups.unique()) == 260
    many = said(40, 6, 20)
    thing = np.arange(240) // 6
    for fit, held in folds(as_pairs(many), seed=0, device="cpu"):
        assert not set(thing[fit[fit < 240]]) & set(thing[held[held < 240]])
    rows = torch.from_numpy(many)
    assert len(hold((rows, rows), len(rows), (None, None)).groups.unique()) == 60


def test_validation_by_hand() -> None:
    """Three items: one found at once, one second, one last of the four in the gallery."""
    bridge = torch.eye(4)
    rows = F.normalize(
        torch.tensor([[1.0, 0, 0, 0], [0.9, 0.8, 0, 0], [0.9, 0.8, 0.1, 0.7]]), dim=1
    )
    items, alone = torch.arange(3), torch.eye(3, 4).bool()
    memory = Queries(rows, items, memory=True)
    scores, each, _ = validate(as_it_is, Held((bridge, bridge), (memory, memory), alone))
    assert scores["hit_rate@1"] == pytest.approx(1 / 3)
    assert scores["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 4) / 3)
    logits = rows.double()[:, :, None] / torch.tensor(TEMPERATURES)  # (3, 4, temperatures)
    every = (logits - logits.logsumexp(dim=1, keepdim=True))[items, items]
    torch.testing.assert_close(each, every[:, every.mean(dim=0).argmax()], rtol=1e-5, atol=1e-6)
    # Item 1 says what item 0 says: to find it instead is no mistake.
    alike = alone.clone()
    alike[0, 1] = alike[1, 0] = True
    better, each, items = validate(as_it_is, Held((bridge, bridge), (memory, memory), alike))
    assert better["hit_rate@1"] == pytest.approx(2 / 3)
    torch.testing.assert_close(each, items)  # fewer than 20 things are said
    assert better["log_likelihood"] == pytest.approx(each.mean().item())
    # Of a chain of items that say the same the ends do too, whatever they are drawn after.
    chain = torch.eye(3).bool()
    chain[0, 1] = chain[1, 0] = chain[1, 2] = chain[2, 1] = True
    assert set(groups(chain.numpy())) == {0}


def test_what_is_not_a_number_never_validates_as_best() -> None:
    bridge = torch.eye(4)
    own = Queries(bridge[:3], torch.arange(3), memory=False)
    held = Held((bridge, bridge), (own, own), torch.eye(3, 4).bool())
    broken = validate(lambda side, rows, memory: rows * float("nan"), held)
    worst = validate(lambda side, rows, memory: -rows, held)
    assert broken.scores["hit_rate@1"] == 0
    assert broken.scores["log_likelihood"] < worst.scores["log_likelihood"]
    assert falls(broken.items, worst.items + torch.tensor([0, 1e-3, 2e-3]))


def test_memory_rows_are_called_by_the_item_nearest_to_them_in_their_space() -> None:
    random = torch.Generator().manual_seed(0)
    bridge = torch.randn(20, 8, generator=random), torch.randn(20, 8, generator=random)
    near = bridge[0][[3, 3, 15, 1]] + 0.01
    held = hold(bridge, 5, (near, None))
    memory, own = held.queries
    # Of the four rows three are of held-out items; items 0, 2 and 4 take what is nearest to them.
    assert sorted(memory.items.tolist()) == [0, 1, 2, 3, 3, 4]
    assert memory.rows[:3].equal(near[[0, 1, 3]])
    assert (own.memory, own.items.tolist()) == (False, list(range(5)))
    assert held.same.equal(torch.eye(5, 20).bool())
    twice = hold((torch.cat([bridge[0], bridge[0]]), torch.cat([bridge[1], bridge[1]])), 5,
                 (near, None))  # fmt: skip
    assert twice.same.equal(torch.cat([torch.eye(5, 20), torch.eye(5, 20)], dim=1).bool())


def as_it_is(side: int, rows: torch.Tensor, memory: bool) -> torch.Tensor:
    return rows


def test_folds_keep_what_says_the_same_together(store: Path, make_dataset: MakeDataset) -> None:
    random = np.random.default_rng(0)
    once = random.normal(size=(30, DIM))
    for space in OTHER:
        said = np.repeat(once, 4, axis=0) + 0.01 * random.normal(size=(120, DIM))
        make_dataset(f"{space}/text:said", said, id=[str(row) for row in range(120)])
    data = pose(store, config(train=["said"])).data.whole
    held = [fold.rows[1] for fold in data.folds]
    assert [len(one) for one in held] == [24] * 5
    assert np.array_equal(np.sort(np.concatenate(held)), np.arange(120))
    for fold in data.folds:
        assert not set(fold.rows[1] // 4) & set(fold.rows[0] // 4)


def test_the_one_fold_of_many_pairs_keeps_what_says_the_same_together(
    store: Path, make_dataset: MakeDataset
) -> None:
    random, count = np.random.default_rng(0), FOLDED + 404
    once = random.normal(size=(count // 4, DIM))
    for space in OTHER:
        said = np.repeat(once, 4, axis=0) + 0.01 * random.normal(size=(count, DIM))
        make_dataset(f"{space}/text:said", said, id=[str(row) for row in range(count)])
    data = pose(store, config(train=["said"])).data.whole
    (fold,) = data.folds
    fit, held = fold.rows
    assert len(fit) + len(held) == count
    assert MOST - 40 <= len(held) <= MOST  # some chains of likes are longer than four
    assert not set(held // 4) & set(fit // 4)


@pytest.mark.parametrize(
    ("pairs", "given", "batch", "epochs"),
    [
        (2_330_000, {}, 10_240, 36),
        (5_000_000, {}, 10_240, 36),
        (900, {}, 201, 200),
        (60, {}, 60, 1_000),
        (1_080, {"batch_size": 256, "epochs": 36}, 256, 36),
        (900, {"epochs": 5}, 201, 5),
        (900, {"batch_size": 900}, 900, 1_000),
    ],
)
def test_the_schedule_suits_the_number_of_pairs(
    pairs: int, given: dict[str, int], batch: int, epochs: int
) -> None:
    section = {"via": "text", "spaces": ["a", "b"], "train": ["c"]} | given
    found = scheduled(read_config(section), pairs)
    assert (found.batch_size, found.epochs) == (batch, epochs)


def test_a_difference_counts_when_it_is_twice_its_standard_error() -> None:
    one = torch.tensor([0.5, 0.4, 0.3, 0.2]).repeat(5)
    assert clearly_worse(one - 0.01, one)  # small, but the same for every group
    assert not clearly_worse(one, one)
    assert not clearly_worse(one + 0.01, one)
    other = one.reshape(5, 4).flip(1).flatten()
    # -0.1 ± 0.0513: 1.95 errors. Two are 2.14 by Student's t of 20 groups: -0.11 is 2.14.
    assert not clearly_worse(other - 0.1, one)
    assert not clearly_worse(other - 0.109, one)
    assert clearly_worse(other - 0.111, one)
    # A better mean that is not clear, and a clear one.
    assert auto.preferred({"cca": one, "ridge": other + 0.1}) == "cca"
    assert auto.preferred({"cca": one, "ridge": one + 0.1, "procrustes": one + 0.05}) == "ridge"
    # Few groups show nothing, however clear it looks.
    assert not clearly_worse(one[:19] - 9, one[:19])


def test_pseudo_partners_are_aggregated_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(store, config(epochs=1), name="a")
    kept = sorted((store / "pseudo").glob("*/*.npy"))
    assert len(kept) == 2
    monkeypatch.setattr("cmcr.connect.spaces.pseudo.aggregate", None)
    connect(store, config(epochs=1, seed=3, intra_weight=1), name="b")
    with pytest.raises(TypeError):
        connect(store, config(epochs=1, memory_temperature=0.1), name="c")


def test_banks_that_do_not_fit_are_streamed_in_the_same_order() -> None:
    random = np.random.default_rng(0)
    blocks = [random.normal(size=(50, 4)).astype(np.float16) for _ in range(3)]
    rows = Rows(blocks, random.permutation(150)[:101])
    data = TrainingSet(rows, None, rows, rows.subset(np.arange(101)[::-1]))
    order = torch.randperm(101)
    whole, streamed = Batches(data, "cpu"), Batches(data, "cpu", budget=0)
    assert (whole.resident, streamed.resident) == (True, False)
    both = [list(batches.epoch(order, 4, first=1)) for batches in (whole, streamed)]
    for (number, one), (other, two) in zip(*both, strict=True):
        assert number == other
        assert one.pseudo1 is two.pseudo1 is None
        for left, right in zip(one, two, strict=True):
            assert left is None or left.equal(right)
    first = np.concatenate(blocks)[rows.rows[order.tensor_split(4)[1].numpy()]]
    np.testing.assert_array_equal(both[0][0][1].bridge1.numpy(), first)


@pytest.mark.parametrize("kept", [0, 1 << 28])
@pytest.mark.parametrize("temperature", [0.5, 0.05, 0.002])
def test_info_nce_in_blocks_is_that_of_the_whole(
    kept: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(info_nce_module, "KEPT_SCORES", kept)
    monkeypatch.setattr(info_nce_module, "CPU_BLOCK", 100)  # three rows of 33 at a time
    generator = torch.Generator().manual_seed(0)
    x, y = (F.normalize(torch.randn(33, 8, generator=generator), dim=1) for _ in range(2))
    exact = [x.double().requires_grad_(), y.double().requires_grad_()]
    logits, target = exact[0] @ exact[1].T / temperature, torch.arange(33)
    # At the lowest temperature the columns lie too far apart to share their exponentials.
    best = logits.logsumexp(dim=0)
    assert (best.max() - best.min() > info_nce_module.SPREAD) == (temperature == 0.002)
    reference = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.autograd.backward(3 * reference)
    found = [x.clone().requires_grad_(), y.clone().requires_grad_()]
    loss = info_nce(*found, temperature)
    torch.autograd.backward(3 * loss)
    torch.testing.assert_close(loss.double(), reference, rtol=1e-5, atol=1e-6)
    for one, other in zip(found, exact, strict=True):
        near = {"rtol": 1e-4, "atol": 1e-6 / temperature}
        torch.testing.assert_close(one.grad.double(), other.grad, **near)


@pytest.mark.parametrize("shift", [50, 63, 80, 200])
def test_info_nce_holds_for_scores_that_lie_far_apart(shift: float) -> None:
    """One row with all the high scores, one column with none: float32's exponent runs out."""
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(40, 8, generator=generator), dim=1)
    y = F.normalize(torch.randn(40, 8, generator=generator), dim=1)
    x[7], y[11] = shift * y[:5].mean(dim=0), 0
    exact = [x.double().requires_grad_(), y.double().requires_grad_()]
    logits, target = exact[0] @ exact[1].T, torch.arange(40)
    reference = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.autograd.backward(reference)
    found = [x.requires_grad_(), y.requires_grad_()]
    loss = info_nce(*found, 1.0)
    torch.autograd.backward(loss)
    torch.testing.assert_close(loss.double(), reference, rtol=1e-5, atol=1e-6)
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told to keep memory")
def test_memory_is_kept_from_step_to_step_and_given_back_at_the_end() -> None:
    # In a process of its own: what lies between two tensors decides where glibc puts them, so the
    # first few may still be new.
    script = """
import resource, torch
from cmcr.devices import freed_memory_kept
def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
with freed_memory_kept():
    print(min(page_faults() for _ in range(20)))
print(page_faults())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    kept, given_back = map(int, done.stdout.split())
    assert kept < given_back / 10


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_and_the_next_goes_on_to_the_same_weights(
    store: Path, stop: signal.Signals
) -> None:
    settings = config(epochs=EPOCHS, patience=EPOCHS, batch_size=60)
    script = (
        "from pathlib import Path; from cmcr.connect import *\n"
        "import torch; torch.set_num_threads(1)\n"
        f"config = ConnectConfig.model_validate_json({settings.model_dump_json()!r})\n"
        f"connect(Path({str(store)!r}), config, name='stopped')\n"
    )
    process = forked.Process("-c", script)
    folder = store / "connections" / "stopped"
    while not (folder / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(stop)
    assert "KeyboardInterrupt" in process.done().stderr
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert 0 < len(state["log"]) < EPOCHS
    short = settings.model_copy()
    resumed = connect(store, short, name="stopped").path
    whole = connect(store, short, name="whole").path
    for name in ("model.safetensors", "training.jsonl"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()


def test_a_loss_that_is_not_finite_names_the_term_and_the_step(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attraction = objective_module.attraction
    calls = []

    def broken(*given: Any) -> torch.Tensor:
        calls.append(given)
        return attraction(*given) * (float("nan") if len(calls) > 8 else 1)  # two a step

    monkeypatch.setattr(objective_module, "attraction", broken)
    with pytest.raises(CmcrError, match="no longer finite in epoch 2: intra at step 5") as error:
        connect(store, config(), name="a")
    assert "the weights after epoch 1 are in checkpoint.pt" in str(error.value)
    assert (store / "connections" / "a" / "checkpoint.pt").exists()


def test_curves_for_tensorboard(store: Path) -> None:
    folder = connect(store, config(epochs=2), name="a", tensorboard=True).path
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert {"loss", "validation_mrr"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("loss")) == 2
