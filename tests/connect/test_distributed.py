"""Processes that train together do what one does on the same global batch."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cmcr.connect import connect, load_connection, read_config
from cmcr.embeddings import Dataset, Key, import_embeddings

SETTINGS = {
    "via": "text",
    "spaces": ["see", "hear"],
    "train": ["captions"],
    "memory": ["pictures", "sounds"],
    "method": "c-mcr",
    "joint_dim": 8,
    "batch_size": 47,  # two processes get shares of different sizes
    "epochs": 2,
    "bridge_temperature": 0.1,
    "pseudo_temperature": 0.1,
}
DIMS = {"see": 12, "hear": 9}


@pytest.fixture
def store(make_dataset: Callable[..., Dataset], tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    latent = random.standard_normal((188, 5))
    for space, dim in DIMS.items():
        mixing = random.standard_normal((5, dim))
        text = np.tanh(latent @ mixing) + 0.1 * random.standard_normal((188, dim))
        make_dataset(f"{space}/text:captions", text, id=[str(row) for row in range(188)])
        other = {"see": "image:pictures", "hear": "audio:sounds"}[space]
        unpaired = np.tanh(random.standard_normal((60, 5)) @ mixing) + 0.3
        make_dataset(f"{space}/{other}", unpaired)
    return tmp_path / "store"


def torchrun(folder: Path, *program: str | Path) -> str:
    """What two processes of a program say on stderr."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *command, *map(str, program)],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def together(program: Path, *arguments: str) -> None:
    """Two forked processes of a program, with what torchrun tells each."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2"}  # fmt: skip
    both = [
        forked.Process(program, *arguments, env=told | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in "01"
    ]
    for process in both:
        done = process.done()
        assert done.returncode == 0, done.stderr


def recipe(store: Path) -> str:
    source = {"modality": "text", "where": "-", "dataset": "-"}
    pipeline = {
        "description": "two processes",
        "store": str(store),
        "extract": [{"encoder": "digits-clip", "sources": [source]}],
        "connect": {"name": "together", **SETTINGS},
        "evaluate": {"retrieval": [{"query": "see/image:a", "gallery": "hear/audio:b"}]},
    }
    return json.dumps({"default": "test", "pipelines": {"test": pipeline}})


def test_two_processes_train_what_one_does(store: Path, tmp_path: Path) -> None:
    (tmp_path / "pipelines.yaml").write_text(recipe(store))
    said = torchrun(tmp_path, "-m", "cmcr", "connect", "--pipeline", "test", "--device", "cpu")
    assert said.count("connected: ") == 1
    both = store / "connections" / "together"
    one = connect(store, read_config(SETTINGS), name="alone").path
    expected = load_file(one / "model.safetensors")
    for name, weight in load_file(both / "model.safetensors").items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-5, msg=name)
    x = torch.randn(50, DIMS["see"], generator=torch.Generator().manual_seed(0))
    joint = [load_connection(folder).project("see", x) for folder in (one, both)]
    torch.testing.assert_close(*joint, rtol=0, atol=1e-4)
    lines = [(folder / "training.jsonl").read_text().splitlines() for folder in (one, both)]
    for alone, shared in zip(*(map(json.loads, log) for log in lines), strict=True):
        assert shared == pytest.approx(alone, abs=1e-5)


KEEP = {"method": "ex-mcr", "centre": True}
OTHERS = """\
import json, sys
from pathlib import Path

import torch

from cmcr.connect import connect, connect_chain, read_config
from cmcr.connect.distributed import process_group

store, pairs, spaces, chain = map(json.loads, sys.argv[1:])
with process_group(torch.device("cpu")):
    for name, settings in pairs.items():
        connect(Path(store), read_config(settings), name=name)
    connect_chain(Path(store), spaces, chain, name="chain")
"""


def test_methods_that_keep_a_space_train_together_too_and_chains_are_made(
    store: Path, tmp_path: Path
) -> None:
    random = np.random.default_rng(1)
    for place in ("see/image:photos", "feel/image:photos"):
        np.save(tmp_path / "x.npy", random.standard_normal((60, 12)).astype(np.float32))
        import_embeddings(store, Key.parse(place), tmp_path / "x.npy", None, index=None)
    pairs = {one: SETTINGS | KEEP | {"projector": one} for one in ("residual", "linear")}
    pairs["textme"] = SETTINGS | {"method": "textme", "noise_variance": 0}
    spaces = ["hear", "see", "feel"]
    chain = {"train": ["captions", "photos"], "memory": SETTINGS["memory"], "method": "ridge"}
    script = tmp_path / "others.py"
    script.write_text(OTHERS)
    together(script, *map(json.dumps, (str(store), pairs, spaces, chain)))
    for name, settings in pairs.items():
        alone = connect(store, read_config(settings), name=f"{name}-alone")
        both = load_connection(store / "connections" / name)
        assert both.record.validation == pytest.approx(alone.record.validation, abs=1e-3)
    made = load_connection(store / "connections/chain")
    assert [space.name for space in made.record.spaces] == spaces
    assert made.project("hear", torch.randn(3, 9)).shape == (3, 12)
