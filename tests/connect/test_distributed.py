"""Processes that train together do what one does on the same global batch."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

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


def together(store: Path, folder: Path, processes: int, **settings: object) -> None:
    """Connect with torchrun, as a user would."""
    (folder / "pipelines.yaml").write_text(
        json.dumps(
            {
                "default": "test",
                "pipelines": {
                    "test": {
                        "description": "two processes",
                        "store": str(store),
                        "extract": [
                            {
                                "encoder": "digits-clip",
                                "sources": [{"modality": "text", "where": "-", "dataset": "-"}],
                            }
                        ],
                        "connect": {"name": "together", **SETTINGS, **settings},
                        "evaluate": {
                            "retrieval": [{"query": "see/image:a", "gallery": "hear/audio:b"}]
                        },
                    }
                },
            }
        )
    )
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "cmcr", "connect", "--pipeline", "test", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("connected: ") == 1


def test_two_processes_train_what_one_does(store: Path, tmp_path: Path) -> None:
    together(store, tmp_path, 2)
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


@pytest.mark.parametrize("projector", ["residual", "linear"])
def test_methods_that_keep_a_space_train_together_too(
    store: Path, tmp_path: Path, projector: str
) -> None:
    settings = {"method": "ex-mcr", "projector": projector, "centre": True}
    together(store, tmp_path, 2, **settings)
    alone = connect(store, read_config(SETTINGS | settings), name="alone")
    both = load_connection(store / "connections" / "together")
    assert both.record.validation == pytest.approx(alone.record.validation, abs=1e-3)


def test_two_processes_make_a_chain(store: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    for place in ("see/image:photos", "feel/image:photos"):
        np.save(tmp_path / "x.npy", random.standard_normal((60, 12)).astype(np.float32))
        space, _, rest = place.partition("/")
        key = Key(space, "image", rest.partition(":")[2])
        import_embeddings(store, key, tmp_path / "x.npy", None, index=None)
    spaces, train = ["hear", "see", "feel"], ["captions", "photos"]
    together(store, tmp_path, 2, spaces=spaces, via=None, train=train, method="ridge")
    chain = load_connection(store / "connections" / "together")
    assert [space.name for space in chain.record.spaces] == spaces
    assert chain.project("hear", torch.randn(3, 9)).shape == (3, 12)
