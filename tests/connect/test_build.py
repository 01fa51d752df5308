"""From a store to a connection: what it does, and what it survives and refuses."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cmcr.cli.app import app
from cmcr.connect import (
    ConnectConfig,
    Connection,
    baselines,
    can_be_made_again,
    connect,
    load_connection,
    read_config,
)
from cmcr.connect.training.checkpoint import TrainingState
from cmcr.connect.training.objective import TERMS
from cmcr.devices import cores
from cmcr.embeddings import Dataset, Key, open_dataset
from cmcr.errors import CmcrError, MismatchError, SourceError, StoreError, UsageError
from cmcr.files import sha256_file

pytestmark = pytest.mark.usefixtures("one_thread")

MakeDataset = Callable[..., Dataset]

PAIRS, UNPAIRED, LATENT = 1000, 400, 6
DIMS = {"see": 24, "hear": 16}
OTHER = {"see": "image", "hear": "audio"}


def views(space: str, modality: str, latent: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Latent concepts as a space embeds them: a nonlinear map, and an offset for the modality."""
    seed = sorted(DIMS).index(space)
    mixing = np.random.default_rng(seed).standard_normal((2, LATENT, DIMS[space]))
    offset = np.random.default_rng((seed, len(modality))).standard_normal(DIMS[space])
    hidden = np.tanh(latent @ mixing[0]) + latent @ mixing[1]
    return hidden + 0.8 * offset + 0.1 * noise[:, : DIMS[space]]


@pytest.fixture(scope="module")
def whole_store(
    makers: Callable[[Path], MakeDataset], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Two spaces: `captions` in both, unpaired `pictures` and `sounds`, and a paired `test`."""
    folder = tmp_path_factory.mktemp("whole")
    make_dataset = makers(folder)
    random = np.random.default_rng(7)

    def draw(rows: int) -> tuple[np.ndarray, np.ndarray]:
        return random.standard_normal((rows, LATENT)), random.standard_normal((rows, 24))

    latent, noise = draw(PAIRS)
    ids = [f"caption-{row}" for row in range(PAIRS)]
    for space in DIMS:
        order = random.permutation(PAIRS)
        array = views(space, "text", latent, noise)[order]
        make_dataset(f"{space}/text:captions", array, id=[ids[row] for row in order])
    make_dataset("see/image:pictures", views("see", "image", *draw(UNPAIRED)))
    make_dataset("hear/audio:sounds", views("hear", "audio", *draw(UNPAIRED)))
    latent, noise = draw(200)
    for space, modality in OTHER.items():
        make_dataset(f"{space}/{modality}:test", views(space, modality, latent, noise))
    return folder / "store"


@pytest.fixture
def store(whole_store: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(whole_store, tmp_path / "store")


@pytest.fixture(scope="module")
def ridge(whole_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Connection:
    store = shutil.copytree(whole_store, tmp_path_factory.mktemp("ridge") / "store")
    return load_connection(connect(store, config(method="ridge"), name="a").path)


def config(**settings: Any) -> ConnectConfig:
    section = {
        "via": "text",
        "spaces": ["see", "hear"],
        "train": ["captions"],
        "memory": ["pictures", "sounds"],
        "method": "c-mcr",
        "joint_dim": 16,
        "batch_size": 250,
        "epochs": 3,
    }
    return read_config(section | settings)


def hit_rate(connection: Connection, store: Path, cutoff: int = 10) -> float:
    """Share of the test sounds whose own picture is among the first `cutoff`."""
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
    return (rank <= cutoff).float().mean().item()


def test_training_connects_modalities_that_were_never_paired(store: Path) -> None:
    made = connect(store, config(epochs=40), name="a")
    connection = load_connection(made.path)
    assert hit_rate(connection, store) > 0.5  # chance: 0.05
    assert made.fresh
    assert (made.record.pairs, made.record.unmatched) == (PAIRS, (0, 0))
    assert [space.memory for space in made.record.spaces] == ["image", "audio"]
    assert sorted(path.name for path in made.path.iterdir()) == [
        ".lock",
        "README.md",
        "config.json",
        "methods.json",
        "model.safetensors",
        "training.jsonl",
    ]


def test_the_log_has_every_term_of_every_epoch(store: Path) -> None:
    settings = config(intra_weight=0.5, pseudo_weight=2)
    folder = connect(store, settings, name="a").path
    rows = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [4, 8, 12]
    for row in rows:
        assert row.keys() == {
            "epoch",
            "step",
            "lr",
            *TERMS,
            "validation_hit_rate@1",
            "validation_mrr",
            "validation_log_likelihood",
        }
        total = row["inter_bridge"] + 2 * row["inter_pseudo"] + 0.5 * row["intra"]
        assert row["loss"] == pytest.approx(total, rel=1e-5)
    assert rows[0]["loss"] > rows[-1]["loss"]
    assert rows[-1]["lr"] < rows[0]["lr"] < settings.learning_rate


def test_a_seed_decides_the_weights(store: Path) -> None:
    first = connect(store, config(), name="a").path
    again = connect(store, config(), name="b").path
    other = connect(store, config(seed=1), name="c").path
    for name in ("model.safetensors", "config.json", "training.jsonl"):
        assert (first / name).read_bytes() == (again / name).read_bytes()
    assert sha256_file(first / "model.safetensors") != sha256_file(other / "model.safetensors")


def test_what_is_up_to_date_is_left_alone(store: Path, make_dataset: MakeDataset) -> None:
    made = connect(store, config(), name="a")
    stamp = (made.path / "model.safetensors").stat().st_mtime_ns
    again = connect(store, config(), name="a")
    assert (again.fresh, again.record) == (False, made.record)
    assert str(again).startswith("up to date: see and hear by c-mcr from 1,000 text pairs")
    assert (made.path / "model.safetensors").stat().st_mtime_ns == stamp


def test_a_recipe_that_was_edited_is_followed_by_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts.csv").write_text("text,label\n" + "".join(f"a {n},{n % 3}\n" for n in range(12)))
    sources = [{"modality": "text", "where": "texts.csv", "dataset": "texts"}]
    spaces = ["digits-clip", "digits-clap"]
    recipe = {
        "description": "texts alone",
        "store": "S",
        "extract": [{"encoder": encoder, "sources": sources} for encoder in spaces],
        "connect": {"name": "a", "via": "text", "spaces": spaces, "train": ["texts"]},
        "evaluate": {"retrieval": [{"query": f"{spaces[0]}/text:texts",
                                    "gallery": f"{spaces[1]}/text:texts"}]},
    }  # fmt: skip

    def run(method: str) -> str:
        recipe["connect"]["method"] = method  # type: ignore[index]
        content = {"default": "mine", "pipelines": {"mine": recipe}}
        Path("pipelines.yaml").write_text(json.dumps(content))
        done = CliRunner().invoke(app, ["run"])
        if done.exception:
            raise done.exception
        return done.stderr

    run("ridge")
    assert "connected anew (method: ridge → procrustes)" in run("procrustes")
    assert "up to date: digits-clip and digits-clap by procrustes" in run("procrustes")
    record = tmp_path / "S/connections/a/config.json"
    imported = json.loads(record.read_text()) | {"requested": None, "imported": {"file": "x.pt"}}
    record.write_text(json.dumps(imported))
    with pytest.raises(UsageError, match=r"it was imported from x\.pt"):
        run("procrustes")


class KilledError(BaseException):
    """Stands for a signal: nothing catches it."""


def files(folder: Path) -> dict[str, bytes]:
    """All that lies in a folder, but locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_another_connection_of_that_name_is_refused_until_it_is_to_be_replaced(
    store: Path, make_dataset: MakeDataset
) -> None:
    folder = connect(store, config(), name="a").path
    before = files(folder)
    other = config(method="ridge", seed=1, memory=["sounds"], epochs=9, batch_size=99)
    with pytest.raises(UsageError, match="holds a connection already") as caught:
        connect(store, other, name="a")
    told = str(caught.value)
    for said in ("memory: pictures,sounds → sounds", "method: c-mcr → ridge", "seed: 0 → 1",
                 "and 1 more", "--replace", "--name"):  # fmt: skip
        assert said in told
    assert files(folder) == before
    made = connect(store, other, name="a", replace=True)
    assert made.fresh
    assert "method: c-mcr → ridge" in str(made)
    expected = files(connect(store, other, name="b").path)
    assert files(folder) == expected  # nothing of the trained one is left
    assert not connect(store, other, name="a", replace=True).fresh


def test_a_connection_whose_data_changed_is_refused_too(
    store: Path, make_dataset: MakeDataset
) -> None:
    connect(store, config(method="ridge"), name="a")
    shutil.rmtree(Key("see", "image", "pictures").folder(store))
    make_dataset("see/image:pictures", np.eye(24))
    with pytest.raises(UsageError, match="the content of see/image:pictures changed"):
        connect(store, config(method="ridge"), name="a")
    assert connect(store, config(method="ridge"), name="a", replace=True).fresh


def test_one_of_a_newer_format_is_refused(store: Path) -> None:
    folder = connect(store, config(method="ridge"), name="a").path
    record = folder / "config.json"
    record.write_text(record.read_text().replace('"format": 2', '"format": 3, "new": 1'))
    with pytest.raises(UsageError, match=r"a newer cmcr \(format 3, this one reads 2\)") as caught:
        connect(store, config(method="ridge"), name="a")
    assert "upgrade cmcr" in str(caught.value)
    assert not can_be_made_again(folder)
    assert connect(store, config(method="ridge"), name="a", replace=True).fresh


def test_killed_while_it_is_replaced_one_of_both_is_whole(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = config(method="ridge", ridge_strength=1e-3, validation=0)
    new = config(epochs=1, ridge_strength=1e-3)
    expected = files(connect(store, new, name="whole").path)
    before = files(connect(store, old, name="a").path)
    folder = store / "connections" / "a"
    replace = os.replace
    seen = []
    for survived in range(100):
        left = survived

        def sometimes(source: Path, target: Path) -> None:
            nonlocal left
            if left == 0:
                raise KilledError
            left -= 1
            replace(source, target)

        monkeypatch.setattr("os.replace", sometimes)
        with suppress(KilledError):
            connect(store, new, name="a", replace=True)
        monkeypatch.setattr("os.replace", replace)
        seen.append(load_connection(folder).model_name)  # its weights are those of its record
        connect(store, new, name="a", replace=True)
        assert files(folder) == expected
        if left:
            break
        connect(store, old, name="a", replace=True)
        assert files(folder) == before
    assert seen == sorted(seen, reverse=True)  # the old ones first
    assert set(seen) == {"ridge", "c-mcr"}


def test_killed_at_any_write_and_run_again_gives_the_same_bytes(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(ridge_strength=1e-3)
    whole = connect(store, settings, name="whole").path
    expected = {path.name: path.read_bytes() for path in whole.iterdir()}
    replace = os.replace
    killed = 0
    for survived in range(100):
        left = survived

        def sometimes(source: Path, target: Path) -> None:
            nonlocal left
            if left == 0:
                raise KilledError
            left -= 1
            replace(source, target)

        folder = store / "connections" / f"killed-{survived}"
        monkeypatch.setattr("os.replace", sometimes)
        try:
            connect(store, settings, name=folder.name)
        except KilledError:
            killed += 1
        monkeypatch.setattr("os.replace", replace)
        connect(store, settings, name=folder.name)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected
        if left:
            break
    # The empty log, log and checkpoint of 3 epochs, methods, weights, card, record.
    assert killed == 11


def test_a_killed_process_goes_on_where_it_was(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(epochs=5)
    whole = connect(store, settings, name="whole").path
    script = (
        "import os, signal; from pathlib import Path; from cmcr.connect import *\n"
        "import torch; torch.set_num_threads(1)\n"
        "from cmcr.connect.training.checkpoint import TrainingState\n"
        "save = TrainingState.save\n"
        "def kill(state, path, identity):\n"
        "    if len(state.log) == 3: path.with_name(f'.{path.name}.1').write_bytes(b'half')\n"
        "    if len(state.log) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    save(state, path, identity)\n"
        "TrainingState.save = kill\n"
        f"config = ConnectConfig.model_validate_json({settings.model_dump_json()!r})\n"
        f"connect(Path({str(store)!r}), config, name='killed')\n"
    )
    assert forked.run("-c", script).returncode == -signal.SIGKILL
    folder = store / "connections" / "killed"
    assert not (folder / "config.json").exists()
    steps = []
    count = TrainingState.count
    monkeypatch.setattr(TrainingState, "count", lambda *given: steps.append(given) or count(*given))
    connect(store, settings, name="killed")
    assert len(steps) == 3 * 4  # epochs 3, 4 and 5
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }


def test_a_checkpoint_of_something_else_is_not_taken_up(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = connect(store, config(seed=1), name="whole").path
    monkeypatch.setattr(Connection, "save", lambda *_: (_ for _ in ()).throw(KilledError))
    with pytest.raises(KilledError):
        connect(store, config(), name="a")
    assert (store / "connections/a/checkpoint.pt").exists()
    monkeypatch.undo()
    folder = connect(store, config(seed=1), name="a").path
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_damaged_checkpoint_is_named(store: Path) -> None:
    folder = store / "connections" / "a"
    folder.mkdir(parents=True)
    (folder / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(StoreError, match="checkpoint is damaged"):
        connect(store, config(), name="a")


def test_two_processes_make_a_connection_once(store: Path) -> None:
    script = (
        "from pathlib import Path; from cmcr.connect import *\n"
        f"config = ConnectConfig.model_validate_json({config().model_dump_json()!r})\n"
        f"print(connect(Path({str(store)!r}), config, name='both').fresh)\n"
    )
    both = [forked.Process("-c", script) for _ in range(2)]
    assert sorted(process.done().stdout.strip() for process in both) == ["False", "True"]


def test_a_loss_that_is_not_finite_stops_the_run(store: Path) -> None:
    with pytest.raises(CmcrError, match="no longer finite in epoch 1"):
        connect(store, config(learning_rate=1e30), name="a")
    assert not (store / "connections/a/config.json").exists()


@pytest.mark.parametrize("memory", [[], ["pictures"], ["hear/audio:sounds"]])
def test_a_space_may_have_no_memory(store: Path, memory: list[str]) -> None:
    made = connect(store, config(memory=memory), name="a")
    last = json.loads((made.path / "training.jsonl").read_text().splitlines()[-1])
    assert last["inter_pseudo"] == 0
    assert (last["intra"] > 0) == bool(memory)
    assert "no memory of" in str(made)


def test_the_last_batch_is_never_too_small(store: Path) -> None:
    made = connect(store, config(batch_size=PAIRS - 1, epochs=1, validation=0), name="a")
    assert json.loads((made.path / "training.jsonl").read_text())["step"] == 2


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"train": ["subtitles"]}, UsageError, "no dataset see/text:subtitles"),
        ({"via": "image"}, UsageError, "no dataset see/image:captions"),
        ({"spaces": ["see", "touch"], "memory": []}, UsageError, "no dataset touch/text:captions"),
        ({"memory": ["pictures", "musik"]}, UsageError, "memory dataset 'musik' is not in see or"),
        ({"memory": ["captions"]}, UsageError, "under another modality than the bridge"),
        ({"method": "identity"}, MismatchError, "identity needs equal dimensions"),
    ],
)
def test_what_cannot_be_connected_is_refused(
    store: Path, settings: dict[str, Any], error: type[CmcrError], message: str
) -> None:
    with pytest.raises(error, match=message):
        connect(store, config(**settings), name="a")


def test_a_name_that_leaves_the_store_is_refused(store: Path) -> None:
    for name in ("../a", ".a", "", "a/b"):
        with pytest.raises(UsageError, match="cannot name a connection"):
            connect(store, config(), name=name)
    assert connect(store, config(method="ridge"), name="a", out=store / "x").path == store / "x"


def test_a_memory_of_two_modalities_must_be_named(store: Path, make_dataset: MakeDataset) -> None:
    make_dataset("see/pointcloud:pictures", np.eye(24))
    with pytest.raises(UsageError, match="could be of two modalities"):
        connect(store, config(), name="a")
    named = config(memory=["see/pointcloud:pictures", "sounds"], epochs=1)
    assert connect(store, named, name="a").record.spaces[0].memory == "pointcloud"


def test_items_are_joined_by_id(store: Path, make_dataset: MakeDataset) -> None:
    random = np.random.default_rng(0)
    see, hear = random.standard_normal((6, 24)), random.standard_normal((5, 16))
    make_dataset("see/text:few", see, id=["a", "b", "c", "d", "e", "f"])
    make_dataset("hear/text:few", hear, id=["f", "x", "b", "a", "y"])
    made = connect(store, config(train=["few", "captions"], method="ridge"), name="a")
    assert (made.record.pairs, made.record.unmatched) == (PAIRS + 3, (3, 2))
    assert "(3 and 2 rows without partner)" in str(made)
    make_dataset("see/text:none", see, id=list("ghijkl"))
    make_dataset("hear/text:none", hear, id=list("vwxyz"))
    with pytest.raises(MismatchError, match=r"0 bridge items in common.*'g' and 'v'"):
        connect(store, config(train=["none"]), name="b")


def test_a_connection_is_for_the_encoders_that_it_was_made_for(
    store: Path, ridge: Connection
) -> None:
    dataset = open_dataset(store, Key("hear", "audio", "test"))
    ridge.check("hear", dataset.encoder_identity)
    with pytest.raises(MismatchError, match="made for another 'see'"):
        ridge.check("see", dataset.encoder_identity)
    with pytest.raises(MismatchError, match="between see and hear, not of touch"):
        ridge.check("touch", dataset.encoder_identity)
    with pytest.raises(MismatchError, match=r"embeddings of see are \(n, 24\)"):
        ridge.project("see", dataset.embeddings())


def test_whatever_holds_rows_of_numbers_can_be_projected(ridge: Connection) -> None:
    x = np.random.default_rng(0).standard_normal((5, 24)).astype(np.float32)
    expected = ridge.project("see", x)
    for given in (
        x.tolist(),
        tuple(map(tuple, x.tolist())),
        [*x],
        torch.from_numpy(x),
        x.astype(">f4"),
        np.asfortranarray(x),
        x[::-1][::-1],
    ):
        torch.testing.assert_close(ridge.project("see", given), expected)
    torch.testing.assert_close(ridge.project("see", x[::-1]), expected.flip(0))
    counts = np.arange(1, 49).reshape(2, 24)
    whole = ridge.project("see", counts)
    torch.testing.assert_close(whole, ridge.project("see", counts.astype(np.float32)))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (np.nan, "row 3 of the embeddings of see holds NaN"),
        (np.inf, "row 3 of the embeddings of see holds NaN, infinity"),
        (1e300, "row 3 of the embeddings of see holds NaN, infinity or far too large"),
        (0.0, "row 3 of the embeddings of see is zero"),
    ],
)
def test_rows_that_point_nowhere_are_named(ridge: Connection, row: float, message: str) -> None:
    x = np.ones((70_000, 24))
    x[3] = row
    with pytest.raises(SourceError, match=message):
        ridge.project("see", x)
    x[3], x[69_000:] = 1, row
    with pytest.raises(SourceError, match=r"row 69000 .*999 rows after it"):
        ridge.project("see", x.tolist() if row == 0 else x)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (np.ones(24), MismatchError, r"are \(n, 24\), these are \(24,\)"),
        (np.ones((2, 24, 1)), MismatchError, r"these are \(2, 24, 1\)"),
        ([], MismatchError, r"these are \(0,\)"),
        ([[1.0], [1.0, 2.0]], SourceError, "rows of numbers"),
        ([["a"] * 24], SourceError, "rows of numbers"),
        ("see", SourceError, "rows of numbers"),
        (None, SourceError, "rows of numbers"),
        (torch.ones(2, 24) > 0, SourceError, "rows of numbers"),
    ],
)
def test_what_are_no_rows_of_numbers_is_refused(
    ridge: Connection, given: Any, error: type[CmcrError], message: str
) -> None:
    with pytest.raises(error, match=message):
        ridge.project("see", given)
    with pytest.raises(UsageError, match="'Sound' cannot name a modality") as caught:
        ridge.project("see", np.ones((1, 24)), "Sound")
    assert "audio, image, pointcloud, text" in str(caught.value)


@pytest.mark.parametrize("method", ["c-mcr", "procrustes", "ridge"])
def test_a_saved_connection_projects_as_before(store: Path, method: str) -> None:
    made = connect(store, config(method=method), name="a")
    connection = load_connection(made.path)
    x = np.random.default_rng(0).standard_normal((70_000, 24))
    joint = connection.project("see", x)
    assert (joint.dtype, tuple(joint.shape)) == (torch.float32, (70_000, connection.joint_dim))
    torch.testing.assert_close(joint.norm(dim=1), torch.ones(70_000))
    scaled = connection.project("see", torch.from_numpy(5 * x[:9]))
    torch.testing.assert_close(scaled, joint[:9], rtol=1e-4, atol=1e-5)
    assert connection.project("see", x[:0]).shape == (0, connection.joint_dim)


def test_closed_forms_stand_beside_the_trained_one(store: Path, make_dataset: MakeDataset) -> None:
    models = baselines(store, connect(store, config(epochs=1), name="trained").record)
    assert list(models) == ["procrustes", "procrustes-centred", "ridge", "ridge-centred", "cca"]
    for name in models:
        method, _, centre = name.partition("-")
        stored = connect(store, config(method=method, centre=bool(centre)), name=name)
        fitted = hit_rate(load_connection(stored.path), store)
        assert fitted == pytest.approx(hit_rate(models[name], store), abs=0.01)
        assert fitted > 0.15  # chance: 0.05
    make_dataset("flat/text:captions", np.eye(24), id=[f"caption-{row}" for row in range(24)])
    stored = connect(
        store, config(spaces=["see", "flat"], memory=[], method="identity"), name="identity"
    )
    assert next(iter(baselines(store, stored.record))) == "identity"
    x = torch.nn.functional.normalize(torch.ones(2, 24), dim=1)
    torch.testing.assert_close(load_connection(stored.path).project("flat", x), x)


def test_centring_takes_the_mean_of_each_modality_away(store: Path) -> None:
    connection = load_connection(connect(store, config(method="ridge", centre=True), name="a").path)
    pictures = open_dataset(store, Key("see", "image", "pictures")).embeddings().astype(np.float64)
    pictures /= np.linalg.norm(pictures, axis=1, keepdims=True)
    means = connection.projectors[0].means
    np.testing.assert_allclose(means["image"].numpy(), pictures.mean(axis=0), atol=1e-6)
    with pytest.raises(UsageError, match="none was named"):
        connection.project("see", pictures)
    # A modality without rows of its own has none.
    audio, text = (connection.project("see", pictures, one) for one in ("audio", "text"))
    assert not audio.allclose(text)


@pytest.mark.parametrize("told", [1, 8 * cores()])
def test_no_more_threads_than_cores(store: Path, told: int) -> None:
    seen: list[int] = []
    torch.set_num_threads(told)
    connect(store, config(epochs=1), name="a",
            opened=lambda health: seen.append(torch.get_num_threads()))  # fmt: skip
    assert seen == [min(told, cores())]
    assert torch.get_num_threads() == told


def test_damage_is_found(store: Path) -> None:
    folder = connect(store, config(epochs=1), name="a").path
    with pytest.raises(StoreError, match="no finished connection"):
        load_connection(store / "connections" / "b")
    record = (folder / "config.json").read_text()
    (folder / "config.json").write_text(record.replace('"format": 2', '"format": 3'))
    with pytest.raises(StoreError, match="format 3, this one reads 2"):
        load_connection(folder)
    (folder / "config.json").write_text(record.replace('"joint_dim": 16', '"joint_dim": 17'))
    with pytest.raises(StoreError, match="do not fit the record"):
        load_connection(folder)
    (folder / "config.json").write_text(record[:-9])
    with pytest.raises(StoreError, match="record cannot be read"):
        load_connection(folder)
    (folder / "config.json").write_text(record)
    load_connection(folder)
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(StoreError, match="not the ones that were written"):
        load_connection(folder)
    assert connect(store, config(epochs=1), name="a").fresh
    load_connection(folder)
