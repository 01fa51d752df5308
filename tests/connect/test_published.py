"""Checkpoints in the layouts that the authors published, against restatements of their projectors.

pytest tests/connect/test_published.py
"""

import io
import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor
from typer.testing import CliRunner

from cmcr.cli.app import app
from cmcr.connect import import_connection, load_connection
from cmcr.connect.connection import published
from cmcr.embeddings import Dataset, Key
from cmcr.errors import CmcrError, MismatchError, SourceError, UsageError
from cmcr.evaluate import evaluate_retrieval

MakeDataset = Callable[..., Dataset]
State = dict[str, Tensor]

D, HIDDEN = 8, 16


# Weights with the published names and shapes, and what the published code does with them


def linear(state: State, name: str, dim: int, out: int) -> None:
    state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(out, dim), torch.randn(out)


def norm(state: State, name: str, dim: int) -> None:
    state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(dim), torch.randn(dim)
    state[f"{name}.running_mean"], state[f"{name}.running_var"] = torch.randn(dim), torch.rand(dim)
    state[f"{name}.num_batches_tracked"] = torch.tensor(36)


def mlp(state: State, name: str, dim: int = D, hidden: int = HIDDEN, out: int = D) -> None:
    linear(state, f"{name}.net1.0", dim, hidden)
    norm(state, f"{name}.net1.1", hidden)
    linear(state, f"{name}.net2.0", hidden, out)
    norm(state, f"{name}.net2.1", out)


def clap_clip() -> State:
    state: State = OrderedDict()
    mlp(state, "Head_A")
    mlp(state, "Head_B")
    return state


def ulip_clip() -> State:
    state: State = OrderedDict()
    for name in ("Head_A", "Head_B"):
        linear(state, f"{name}.net.0", D, D)
        norm(state, f"{name}.net.1", D)
    return state


def ex_leaf() -> State:
    state: State = OrderedDict()
    linear(state, "Head1", D, D)
    mlp(state, "Head2.mlp1")
    mlp(state, "Head2.mlp2")
    return state


def through_linear(state: State, name: str, x: np.ndarray) -> np.ndarray:
    weight, bias = (state[f"{name}.{part}"].double().numpy() for part in ("weight", "bias"))
    return x @ weight.T + bias


def through_norm(state: State, name: str, x: np.ndarray) -> np.ndarray:
    parts = ("weight", "bias", "running_mean", "running_var")
    weight, bias, mean, variance = (state[f"{name}.{part}"].double().numpy() for part in parts)
    return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


def through_mlp(state: State, name: str, x: np.ndarray) -> np.ndarray:
    x = through_norm(state, f"{name}.net1.1", through_linear(state, f"{name}.net1.0", x))
    x = np.maximum(x, 0)
    return through_norm(state, f"{name}.net2.1", through_linear(state, f"{name}.net2.0", x))


def through_half(state: State, name: str, x: np.ndarray) -> np.ndarray:
    x = through_norm(state, f"{name}.net.1", through_linear(state, f"{name}.net.0", x))
    return np.maximum(x, 0)


def through_leaf(state: State, x: np.ndarray, *, head1: bool) -> np.ndarray:
    x = through_linear(state, "Head1", x) if head1 else x
    return through_mlp(state, "Head2.mlp2", through_mlp(state, "Head2.mlp1", x))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def x() -> np.ndarray:
    return unit(np.random.default_rng(0).standard_normal((5, D))).astype(np.float32)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    def save(content: Any) -> Path:
        torch.save(content, tmp_path / "checkpoint.pt")
        return tmp_path / "checkpoint.pt"

    return save


# Projection


def test_clip_clap_is_two_mlps(write: Callable, tmp_path: Path, x: np.ndarray) -> None:
    state = clap_clip()
    import_connection(write(state), ("clap", "clip"), tmp_path / "c")
    connection = load_connection(tmp_path / "c")
    for space, head in (("clap", "Head_A"), ("clip", "Head_B")):
        expected = unit(through_mlp(state, head, x.astype(np.float64)))
        assert_allclose(connection.project(space, x), expected, atol=1e-5)
    assert connection.model_name == "c-mcr-published"
    assert connection.config is None


def test_clip_ulip_is_two_half_mlps(write: Callable, tmp_path: Path, x: np.ndarray) -> None:
    state = ulip_clip()
    import_connection(write(state), ("clip", "ulip"), tmp_path / "c")
    connection = load_connection(tmp_path / "c")
    for space, head in (("clip", "Head_A"), ("ulip", "Head_B")):
        expected = unit(through_half(state, head, x.astype(np.float64)))
        assert_allclose(connection.project(space, x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("via", "turned"),
    [
        (None, {"audio", "pointcloud"}),
        ("text", {"audio", "image", "pointcloud"}),
        ("image", {"audio", "pointcloud", "text"}),
    ],
)
def test_ex_mcr_moves_the_leaf_and_leaves_the_base(
    write: Callable, tmp_path: Path, x: np.ndarray, via: Any, turned: set[str]
) -> None:
    state = ex_leaf()
    import_connection(write(state), ("clap", "clip"), tmp_path / "c", via=via)
    connection = load_connection(tmp_path / "c")
    assert connection.model_name == "ex-mcr-published"
    for modality in ("audio", "image", "pointcloud", "text"):
        expected = unit(through_leaf(state, x.astype(np.float64), head1=modality in turned))
        assert_allclose(connection.project("clap", x, modality), expected, atol=1e-5)
        assert_allclose(connection.project("clip", 3 * x, modality), x, atol=1e-6)
    with pytest.raises(UsageError, match="none was named"):
        connection.project("clap", x)


def test_dims_are_read_from_the_shapes(write: Callable, tmp_path: Path) -> None:
    state: State = OrderedDict()
    mlp(state, "Head_A", dim=6)
    mlp(state, "Head_B", dim=10)
    connection = import_connection(write(state), ("a", "b"), tmp_path / "c")
    assert [space.dim for space in connection.record.spaces] == [6, 10]
    a = unit(np.random.default_rng(0).standard_normal((3, 6)))
    expected = unit(through_mlp(state, "Head_A", a))
    assert_allclose(connection.project("a", a), expected, atol=1e-5)


@pytest.mark.parametrize("make", [clap_clip, ulip_clip, ex_leaf])
def test_names_of_data_parallel_training_and_half_precision(
    make: Callable[[], State], write: Callable, tmp_path: Path, x: np.ndarray
) -> None:
    state = {name: value.half() if value.ndim else value for name, value in make().items()}
    prefixed = OrderedDict((f"module.{name}", value) for name, value in state.items())
    plain = OrderedDict((name, value.float()) for name, value in state.items())
    first = import_connection(write(prefixed), ("a", "b"), tmp_path / "prefixed")
    second = import_connection(write(plain), ("a", "b"), tmp_path / "plain")
    for space in ("a", "b"):
        assert torch.equal(first.project(space, x, "audio"), second.project(space, x, "audio"))


def test_the_card_says_where_the_weights_come_from(write: Callable, tmp_path: Path) -> None:
    import_connection(write(ulip_clip()), ("clip", "ulip"), tmp_path / "c", via="image")
    card = (tmp_path / "c/README.md").read_text()
    assert "connected via image" in card
    assert "their training is not recorded" in card
    assert "checkpoint.pt" in card


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_any_file_of_torch_save(protocol: int, zipped: bool, tmp_path: Path, x: np.ndarray) -> None:
    """In every protocol and format, and with the state of a training around it."""
    state = clap_clip()
    torch.save(
        {"epoch": np.int64(36), "state_dict": state},
        tmp_path / "state.pt",
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=zipped,
    )
    connection = import_connection(tmp_path / "state.pt", ("clap", "clip"), tmp_path / "c")
    expected = unit(through_mlp(state, "Head_A", x.astype(np.float64)))
    assert_allclose(connection.project("clap", x), expected, atol=1e-5)


# Which space comes first


@pytest.mark.parametrize(
    ("make", "spaces", "right"),
    [
        (clap_clip, "clip,clap", "--spaces clap,clip"),
        (clap_clip, "clip,ulip", "--spaces clap,clip"),
        (clap_clip, "clip-ViT-L-14-openai,mine", "--spaces clap,clip"),
        (ulip_clip, "ulip,clip", "--spaces clip,ulip"),
        (ulip_clip, "clap,clip", "--spaces clip,ulip"),
        (ex_leaf, "clip,clap", "--spaces clap,clip or --spaces ulip,clip"),
        (ex_leaf, "ulip,clap", "--spaces clap,clip or --spaces ulip,clip"),
    ],
)
def test_a_wrong_order_is_told(
    make: Callable[[], State], spaces: str, right: str, write: Callable, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="not space A of this file") as caught:
        import_connection(write(make()), spaces.split(","), tmp_path / "c")
    assert right in (caught.value.fix or "")
    assert not (tmp_path / "c").exists()


def test_the_id_of_a_file_is_gits() -> None:
    assert published.git_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_the_authors_files_name_their_spaces(
    write: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(ex_leaf())
    with pytest.raises(UsageError, match="none of the authors' four") as caught:
        import_connection(file, None, tmp_path / "c")
    assert "--spaces clap,clip or --spaces ulip,clip" in (caught.value.fix or "")
    monkeypatch.setitem(published.AUTHORS, published.git_id(file.read_bytes()), ("ulip", "clip"))
    connection = import_connection(file, None, tmp_path / "c")
    assert [space.name for space in connection.record.spaces] == ["ulip", "clip"]
    with pytest.raises(UsageError, match="not space A") as caught:
        import_connection(file, ("clap", "clip"), tmp_path / "d")
    assert caught.value.fix == "--spaces ulip,clip, or what your store calls them, in this order"


# What is not such a checkpoint


def saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def without(state: State, name: str) -> State:
    return OrderedDict((key, value) for key, value in state.items() if key != name)


def with_tensor(state: State, name: str, value: Tensor) -> State:
    state[name] = value
    return state


OTHERS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "damaged or is none"),
    "truncated": (lambda: saved(clap_clip())[:-100], "damaged or is none"),
    "text": (lambda: b"Head_A", "damaged or is none"),
    "a whole module": (lambda: saved(torch.nn.Linear(2, 2)), r"names torch\.nn\.modules\.linear"),
    "a pickle": (lambda: pickle.dumps(object(), protocol=2), "more than tensors and plain values"),
    "a list": (lambda: saved([1, 2]), "no tensors by name"),
    "nothing": (lambda: saved({}), "no tensors by name"),
    "an encoder": (
        lambda: saved({"visual.conv1.weight": torch.ones(2)}),
        r"no published projectors: its 1 tensors begin with visual\.conv1\.weight",
    ),
    "NaN in another": (
        lambda: saved({"visual.conv1.weight": torch.full((2,), torch.nan)}),
        "no published projectors",
    ),
    "half of one": (
        lambda: saved(without(clap_clip(), "Head_B.net2.1.bias")),
        "no published projectors",
    ),
    "other shapes": (
        lambda: saved(with_tensor(clap_clip(), "Head_B.net2.0.weight", torch.ones(3, HIDDEN))),
        "shapes are not those",
    ),
    "no matrix": (
        lambda: saved(with_tensor(clap_clip(), "Head_A.net1.0.weight", torch.ones(3))),
        "shapes are not those",
    ),
    "NaN": (
        lambda: saved(with_tensor(ulip_clip(), "Head_A.net.0.bias", torch.full((D,), torch.nan))),
        "Head_A.net.0.bias holds NaN",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_file_is_refused(kind: str, tmp_path: Path) -> None:
    content, message = OTHERS[kind]
    (tmp_path / "file.pt").write_bytes(content())
    with pytest.raises(SourceError, match=message):
        import_connection(tmp_path / "file.pt", ("clap", "clip"), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_an_encoder_is_not_read_to_its_end(tmp_path: Path) -> None:
    with (tmp_path / "large.pt").open("wb") as file:
        file.truncate(2 << 30)
    with pytest.raises(SourceError, match="2048 MiB are no projectors"):
        import_connection(tmp_path / "large.pt", ("clap", "clip"), tmp_path / "c")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")  # who opens it waits for ever
    for path in (tmp_path / "none.pt", tmp_path / "pipe.pt", tmp_path):
        with pytest.raises(UsageError, match="no such file"):
            import_connection(path, ("clap", "clip"), tmp_path / "c")


@pytest.mark.parametrize("spaces", ["clap", "clap,clip,ulip", "clap,clap", "clap,", ""])
def test_two_spaces_must_be_named(spaces: str, write: Callable, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not name two"):
        import_connection(write(clap_clip()), spaces.split(","), tmp_path / "c")


def test_a_connection_is_not_overwritten(write: Callable, tmp_path: Path) -> None:
    state = clap_clip()
    import_connection(write(state), ("clap", "clip"), tmp_path / "c")
    before = (tmp_path / "c/model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="holds a connection already"):
        import_connection(write(ulip_clip()), ("clip", "ulip"), tmp_path / "c")
    assert (tmp_path / "c/model.safetensors").read_bytes() == before
    again = import_connection(write(state), ("clap", "clip"), tmp_path / "c")
    assert again.record == load_connection(tmp_path / "c").record
    other = import_connection(write(ulip_clip()), ("clip", "ulip"), tmp_path / "c", replace=True)
    assert load_connection(tmp_path / "c").record == other.record


# It evaluates like one of ours


@pytest.fixture
def store(make_dataset: MakeDataset, tmp_path: Path) -> Path:
    """Sounds and pictures of three classes, and pictures in a space of other dims."""
    random = np.random.default_rng(1)
    label = ["cat", "dog", "owl"] * 2
    for place, dim in (("clap/audio:test", D), ("clip/image:test", D), ("wide/image:test", 10)):
        make_dataset(place, random.standard_normal((6, dim)), label=label)
    return tmp_path / "store"


SOUNDS = Key("clap", "audio", "test")


def test_it_evaluates_beside_chance_and_identity(
    write: Callable, store: Path, tmp_path: Path
) -> None:
    import_connection(write(clap_clip()), ("clap", "clip"), tmp_path / "c")
    pair = (SOUNDS, Key("clip", "image", "test"))
    done = evaluate_retrieval(store, tmp_path / "c", *pair)
    assert [row["model"] for row in done.rows] == ["chance", "identity", "c-mcr-published"] * 2
    assert not evaluate_retrieval(store, tmp_path / "c", *pair).fresh


def test_spaces_of_other_dims_have_no_identity(
    write: Callable, store: Path, tmp_path: Path
) -> None:
    state: State = OrderedDict()
    mlp(state, "Head_A")
    mlp(state, "Head_B", dim=10)
    import_connection(write(state), ("clap", "wide"), tmp_path / "c")
    done = evaluate_retrieval(store, tmp_path / "c", SOUNDS, Key("wide", "image", "test"))
    assert [row["model"] for row in done.rows] == ["chance", "c-mcr-published"] * 2


def test_embeddings_of_other_dims_are_refused(write: Callable, store: Path, tmp_path: Path) -> None:
    import_connection(write(clap_clip()), ("clap", "wide"), tmp_path / "c")
    with pytest.raises(MismatchError, match=r"embeddings of wide are \(n, 8\)"):
        evaluate_retrieval(store, tmp_path / "c", SOUNDS, Key("wide", "image", "test"))


# The command line


def run(*arguments: str | Path) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception:
        raise result.exception
    return result


def test_from_file_to_numbers(write: Callable, store: Path, tmp_path: Path) -> None:
    file = write(ex_leaf())
    out = store / "connections" / "published"
    done = run("import-connection", file, "--spaces", "clap,clip", "--out", out, "--json")
    assert json.loads(done.stdout)["connection"]["model"] == "ex-mcr-published"
    assert "imported: clap (8) and clip (8) into 8 by ex-mcr-published" in done.stderr
    done = run(
        *("evaluate", "retrieval", "--connection", "published", "--store", store),
        *("--query", "clap/audio", "--gallery", "clip/image", "--json"),
    )
    models = [row["model"] for row in json.loads(done.stdout)["results"]]
    assert models == ["chance", "identity", "ex-mcr-published"] * 2
    (line,) = json.loads(run("info", store, "--json").stdout)["connections"]
    assert (line["method"], line["via"], line["joint_dim"]) == ("ex-mcr-published", None, 8)
    assert "ok       connection published" in run("verify", store).stderr


def test_the_command_line_refuses_what_cannot_name_a_modality(
    write: Callable, tmp_path: Path
) -> None:
    with pytest.raises(CmcrError, match="'Smell' cannot name a modality"):
        run(
            *("import-connection", write(ex_leaf()), "--spaces", "a,b"),
            *("--out", tmp_path / "c", "--via", "Smell"),
        )
