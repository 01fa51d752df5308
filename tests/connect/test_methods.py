"""Every method connects; what is held out decides; and a run can be stopped at any time."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cmcr.connect import ConnectConfig, connect, load_connection, read_config
from cmcr.connect.methods.auto import preferred
from cmcr.connect.methods.problem import split
from cmcr.connect.spaces.pairs import Rows
from cmcr.connect.training import info_nce as info_nce_module
from cmcr.connect.training import objective as objective_module
from cmcr.connect.training.batches import Batches, TrainingSet
from cmcr.connect.training.info_nce import info_nce
from cmcr.connect.training.validation import Held, clearly_worse, validate
from cmcr.embeddings import Dataset, Key, open_dataset
from cmcr.errors import CmcrError, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")

MakeDataset = Callable[..., Dataset]
PAIRS, LATENT, DIM = 600, 6, 20
OTHER = {"see": "image", "hear": "audio"}


@pytest.fixture
def store(make_dataset: MakeDataset, tmp_path: Path) -> Path:
    """Two spaces of equal dim in which modalities lie apart."""
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
    return tmp_path / "store"


def config(**settings: Any) -> ConnectConfig:
    section = {
        "via": "text",
        "spaces": ["hear", "see"],
        "train": ["captions"],
        "memory": ["memory"],
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
        {"method": "c-mcr", "projector": "residual", "centre": True},
        {"method": "ex-mcr", "epochs": 20},
        {"method": "ex-mcr", "projector": "residual"},
        {"method": "linear", "centre": True},
    ],
)
def test_every_trained_method_connects(store: Path, settings: dict[str, Any]) -> None:
    made = connect(store, config(**settings), name="a")
    assert made.record.model == config(**settings).model_name
    assert hit_rate(made.path, store) > 0.2  # chance: 0.033
    assert made.record.validation.keys() == {"hit_rate@1", "mrr"}
    assert (made.record.pairs, made.record.held_out) == (PAIRS, 60)


@pytest.mark.parametrize("method", ["ex-mcr", "linear", "procrustes"])
def test_the_base_space_stays_as_it_is(store: Path, method: str) -> None:
    folder = connect(store, config(method=method), name="a").path
    x = torch.randn(30, DIM)
    joint = load_connection(folder).project("see", x)
    torch.testing.assert_close(joint, F.normalize(x, dim=1))


def test_ex_mcr_treats_the_modalities_of_the_leaf_in_their_own_way(store: Path) -> None:
    connection = load_connection(connect(store, config(method="ex-mcr"), name="a").path)
    x = torch.randn(30, DIM)
    text, audio = (connection.project("hear", x, modality) for modality in ("text", "audio"))
    assert not torch.allclose(text, audio)
    with pytest.raises(UsageError, match="none was named"):
        connection.project("hear", x)


def test_a_residual_begins_as_the_closed_form_and_is_never_worse_where_it_is_judged(
    store: Path,
) -> None:
    settings = {"centre": True, "validation": 0.2}
    closed = connect(store, config(method="procrustes", **settings), name="closed").record
    trained = connect(
        store, config(method="ex-mcr", projector="residual", **settings), name="trained"
    ).record
    assert trained.validation["mrr"] >= closed.validation["mrr"]


def test_auto_compares_all_and_takes_what_validates_well(store: Path) -> None:
    made = connect(store, config(method="auto", epochs=3), name="a")
    scores = {name: one["mrr"] for name, one in made.methods.items()}
    assert set(scores) >= {
        "identity",
        "procrustes",
        "procrustes-centred",
        "ridge",
        "ridge-centred",
        "linear-centred",
        "ex-mcr",
        "ex-mcr-residual-centred",
        "c-mcr",
        "c-mcr-residual-centred",
    }
    best = max(scores, key=lambda name: scores[name])
    assert next(iter(made.methods)) == best
    assert made.methods[best]["behind"] == 0
    assert made.methods[made.record.model]["behind"] <= 2
    again = connect(store, config(method="auto", epochs=3), name="a")
    assert (again.fresh, again.methods) == (False, made.methods)


def test_an_epoch_that_is_not_clearly_worse_is_kept_and_patience_ends_the_run(store: Path) -> None:
    settings = config(epochs=60, patience=2, learning_rate=0.1, noise_variance=1.0)
    made = connect(store, settings, name="a")
    rows = [json.loads(line) for line in (made.path / "training.jsonl").read_text().splitlines()]
    scores = [row["validation_mrr"] for row in rows]
    assert len(rows) < 60
    # The last two were clearly worse than the best, the one before them was not.
    assert made.record.validation["mrr"] == pytest.approx(scores[-3])


def test_what_is_held_out_is_told_by_the_seed_and_never_fitted() -> None:
    seen, held = split(1000, 0.1, seed=0)
    assert (len(held), len(np.intersect1d(seen, held)), len(seen)) == (100, 0, 900)
    assert np.array_equal(split(1000, 0.1, seed=0)[1], held)
    assert not np.array_equal(split(1000, 0.1, seed=1)[1], held)
    assert len(split(100, 0.1, seed=0)[1]) == 25
    assert len(split(10**6, 0.1, seed=0)[1]) == 4096
    assert len(split(1000, 0.0, seed=0)[1]) == 0


def test_validation_by_hand() -> None:
    """Three items: one found at once, one second, one last of the four in the gallery."""
    bridge = torch.eye(4)
    pseudo = F.normalize(
        torch.tensor([[1.0, 0, 0, 0], [0.9, 0.8, 0, 0], [0.9, 0.8, 0.1, 0.7]]), dim=1
    )
    held = Held(3, (bridge, bridge), (pseudo, None))
    scores, each = validate(lambda side, rows, is_pseudo: rows, held)
    assert scores["hit_rate@1"] == pytest.approx(1 / 3)
    assert scores["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 4) / 3)
    assert each.tolist() == [1, 1 / 2, 1 / 4]
    bridges_only = validate(
        lambda side, rows, is_pseudo: rows, Held(3, (bridge, bridge), (None, None))
    )
    assert bridges_only.scores == {"hit_rate@1": 1.0, "mrr": 1.0}


def test_a_difference_counts_when_it_is_twice_its_standard_error() -> None:
    one = torch.tensor([0.5, 0.4, 0.3, 0.2])
    assert clearly_worse(one - 0.01, one)  # small, but the same for every item
    assert not clearly_worse(one, one)
    assert not clearly_worse(one + 0.01, one)
    assert not clearly_worse(one.flip(0) - 0.1, one)  # -0.1 ± 0.11
    assert clearly_worse(one.flip(0) - 0.3, one)
    # As good as the best and preferred to it; clearly worse and therefore not.
    assert preferred({"ridge": one, "c-mcr-residual-centred": one.flip(0) - 0.1}) != "ridge"
    assert preferred({"ridge": one, "c-mcr-residual-centred": one - 0.1}) == "ridge"


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
    settings = config(epochs=60, patience=60, batch_size=60)
    script = (
        "from pathlib import Path; from cmcr.connect import *\n"
        "import torch; torch.set_num_threads(1)\n"
        f"config = ConnectConfig.model_validate_json({settings.model_dump_json()!r})\n"
        f"connect(Path({str(store)!r}), config, name='stopped')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    folder = store / "connections" / "stopped"
    while not (folder / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(stop)
    assert "KeyboardInterrupt" in process.communicate()[1]
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert 0 < len(state["log"]) < 60
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
