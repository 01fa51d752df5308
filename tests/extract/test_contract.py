"""What extraction promises, tried on every encoder that is registered, with seeded weights.

    pytest tests/extract/test_contract.py

An encoder that is registered and has no line in WEIGHTS fails.
"""

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import forked
import pytest
from seeded import (
    SMALL_CLIP,
    cache_tokenizer,
    clap_checkpoint,
    clip_checkpoint,
    hf_folder,
    ulip_checkpoint,
)

from cmcr.errors import CmcrError
from cmcr.extract import registered
from cmcr.extract.contract import PROMISES, check_encoder

ROOT = Path(__file__).parents[2]


class Weights(NamedTuple):
    """What to check: NAME:VARIANT, its checkpoint, and the cache of the hub that it needs."""

    spec: str
    checkpoint: Path | None = None
    hub: Path | None = None


def clap(folder: Path) -> Weights:
    cache_tokenizer(folder / "hub")
    return Weights("clap", clap_checkpoint(folder), folder / "hub")


WEIGHTS: dict[str, Callable[[Path], Weights]] = {
    "clap": clap,
    "clip": lambda folder: Weights(f"clip:{SMALL_CLIP}", clip_checkpoint(folder)),
    "hf": lambda folder: Weights(f"hf:{hf_folder(folder, 'clip')}"),
    "ulip": lambda folder: Weights("ulip:points=1024", ulip_checkpoint(folder)),
    "digits-clap": lambda folder: Weights("digits-clap"),
    "digits-clip": lambda folder: Weights("digits-clip"),
    "digits-ulip": lambda folder: Weights("digits-ulip"),
}


WITH_HUB = """
import sys
from huggingface_hub import constants
constants.HF_HUB_CACHE = sys.argv.pop(1)  # what HF_HUB_CACHE is read into when it is imported
from cmcr.cli.app import main
main()
"""
cmcr = partial(forked.run, "-m", "cmcr")


def problems(weights: Weights) -> dict[str, str]:
    """The checks that fail, by name; one that needs the hub runs in a process of its own."""
    spec, checkpoint, hub = weights
    if hub is None:
        checks = [vars(check) for check in check_encoder(spec, checkpoint=checkpoint)]
    else:
        flags = ["--checkpoint", checkpoint] if checkpoint else []
        done = forked.run("-c", WITH_HUB, hub, "encoders", "--check", spec, *flags, "--json")
        assert done.returncode in (0, 1), done.stderr
        checks = json.loads(done.stdout)["checks"]
    assert len(checks) >= 2 + len(PROMISES)
    return {check["name"]: check["problem"] for check in checks if check["problem"]}


@pytest.mark.parametrize("name", registered())
def test_every_registered_encoder_keeps_every_promise(
    name: str, tmp_path: Path, one_thread: None
) -> None:
    assert not problems(WEIGHTS[name](tmp_path))


def test_clip_from_the_command_line_runs_twice_and_refuses_other_weights(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a dog\na cat\n")
    command = ("extract", "--encoder", f"clip:{SMALL_CLIP}", "--source", "text=captions.txt",
               "--store", "S", "--workers", "0")  # fmt: skip
    first, other = (clip_checkpoint(tmp_path, seed) for seed in (0, 1))
    for _ in range(2):
        done = cmcr(*command, "--checkpoint", first, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "up to date" in done.stderr
    done = cmcr(*command, "--checkpoint", other, cwd=tmp_path)
    assert done.returncode == 1
    assert "built with different settings: encoder.checkpoint_sha256" in done.stderr


# Plug-ins


def install(folder: Path, entry_points: str) -> None:
    """Lay the metadata of a package into `folder`, as an installer does."""
    metadata = folder / "plug_in-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plug-in\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[cmcr.encoders]\n{entry_points}\n")


def documented(language: str) -> str:
    text = (ROOT / "docs" / "encoders.md").read_text()
    found = re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)
    assert found
    return found[1]


def test_the_plug_in_of_the_documentation_works(tmp_path: Path) -> None:
    (tmp_path / "my_encoder.py").write_text(documented("python"))
    entry = documented("toml").partition('[project.entry-points."cmcr.encoders"]\n')[2]
    install(tmp_path, entry.partition("\n")[0].replace('"', ""))
    path = {"PYTHONPATH": str(tmp_path)}
    done = cmcr("encoders", "--check", "my-encoder:7", env=path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 + 2 * len(PROMISES)
    assert all(line.startswith("ok ") for line in lines)
    listed = json.loads(cmcr("encoders", "--json", env=path).stdout)["encoders"]
    assert [(one["package"], one["dim"]) for one in listed if one["encoder"] == "my-encoder"] == [
        ("plug-in", 32)
    ]


BROKEN = """
import itertools
import torch
from my_encoder import MY_ENCODER, MyEncoder, load

calls = itertools.count()

def spec(**replaced):
    def broken(**given):
        encoder = load(**given)
        whole = MyEncoder(0, "cpu")
        for name, make in replaced.items():
            setattr(encoder, name, make(whole))
        return encoder
    return MY_ENCODER.__class__(broken, ("image",), 32, "none", lambda: True)

def with_(**changes):
    return lambda whole: lambda: {**whole.fingerprint(), **changes}

def images(**replaced):
    return spec(modalities=lambda whole: frozenset(["image"]), **replaced)

def encode(change):
    return images(encode=lambda whole: lambda m, batch: change(whole.encode(m, batch)))

def preprocess(change):
    return images(preprocess=lambda whole: lambda m, item: change(whole.preprocess(m, item)))

LONG = encode(lambda vectors: vectors * 2.5)
COMPANY = encode(lambda vectors: torch.nn.functional.normalize(vectors - vectors.mean(0) / 2))
ALIKE = encode(lambda vectors: vectors * 0 + 32**-0.5)
RANDOM = preprocess(lambda values: values + next(calls))
FORGETS = images(
    fingerprint=lambda whole: lambda: {"made": next(calls), **whole.fingerprint()}
)
SILENT = images(fingerprint=with_(checkpoint_sha256=""))
NO_JSON = images(fingerprint=with_(seed={1, 2}))
MORE = spec()
"""


@pytest.mark.parametrize(
    ("name", "check", "message"),
    [
        ("LONG", "image: encode gives finite unit rows", "norm 2.5"),
        ("COMPANY", "image: a vector does not depend on its batch", "cosine 0."),
        ("ALIKE", "image: encode gives finite unit rows", "have one vector"),
        ("RANDOM", "image: preprocess is deterministic and pickles", ""),
        ("FORGETS", "fingerprint", "says another made"),
        ("FORGETS", "image: the same command twice", "different settings: encoder.made"),
        ("SILENT", "fingerprint", "does not say checkpoint_sha256"),
        ("NO_JSON", "fingerprint", "not JSON serializable"),
        ("NO_JSON", "image: the same command twice", "cannot be written as JSON"),
        ("MORE", "is what its EncoderSpec says", "'text'"),
    ],
)
def test_a_promise_that_is_broken_is_named(
    name: str, check: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_encoder.py").write_text(documented("python"))
    (tmp_path / "broken_encoder.py").write_text(BROKEN)
    install(tmp_path, f"broken = broken_encoder:{name}")
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("my_encoder", "broken_encoder"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.delitem(PROMISES, "a worker process")  # type: ignore[arg-type]  # seconds
    found: dict[str, Any] = {one.name: one.problem for one in check_encoder("broken")}
    assert message in (found[check] or "no problem")


def test_a_check_needs_weights_and_a_name(tmp_path: Path) -> None:
    with pytest.raises(CmcrError, match="no encoder named 'clop'"):
        list(check_encoder("clop"))
    done = cmcr("encoders", "--check", "digits-clip", "--checkpoint", tmp_path / "none.safetensors")
    assert done.returncode == 1
    assert "cannot be read" in done.stderr
    done = cmcr("encoders", "--checkpoint", "x")
    assert done.returncode == 2
    assert "--check NAME" in done.stderr
