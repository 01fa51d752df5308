"""cmcr from Python: what can be imported and how quickly, what things look like, and progress."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import cmcr
from cmcr.connect import connect, connect_chain, load_connection, read_config
from cmcr.embeddings import Dataset, Key
from cmcr.progress import progress

pytestmark = pytest.mark.usefixtures("one_thread")

PUBLIC = {
    "cmcr": "__version__ connect embeddings errors evaluate extract fit load_connection "
    "open_store quiet",
    "cmcr.connect": "TRAINING_LOG Chain ConnectConfig Connected Connection Found JointSpace "
    "Migrated Projected Record SpaceRecord aggregate baselines can_be_made_again connect "
    "connect_chain describe_connections fit import_connection load_connection migrate "
    "parse_settings project_store read_config read_training remove_connection rename_connection "
    "upgrade_store uses_of with_overrides",
}


@pytest.fixture
def store(make_dataset: Callable[..., Dataset], tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    ids = [str(row) for row in range(40)]
    for place in ("see/text:captions", "hear/text:captions", "see/image:both", "feel/image:both"):
        make_dataset(place, random.standard_normal((40, 4)), id=ids)
    return tmp_path / "store"


FIELDS = {"spaces": ["see", "hear"], "via": "text", "train": ["captions"]}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_public_names_are_these_and_dir_shows_them(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__all__ == PUBLIC[name].split()
    assert set(module.__all__) <= set(dir(module))
    assert all(getattr(module, one) is not None for one in module.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing  # noqa: B018


@pytest.mark.timed
def test_importing_waits_for_nothing_heavy() -> None:
    program = (
        "import sys, time; start = time.perf_counter(); import cmcr, cmcr.connect\n"
        "assert not {'torch', 'numpy', 'pyarrow'} & sys.modules.keys()\n"
        "assert time.perf_counter() - start < 1\n"
        "assert cmcr.embeddings.Key('a', 'text', 'b').space == 'a'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_things_are_readable(store: Path) -> None:
    made = connect(store, read_config(FIELDS | {"method": "ridge"}), name="a")
    assert (
        repr(load_connection(made.path)) == "<Connection see (4) + hear (4) → 4, ridge, via text>"
    )
    assert len(repr(made)) < len(str(made.path)) + 80
    chain = connect_chain(store, ["hear", "see", "feel"], {"method": "procrustes"}, name="b")
    shown = repr(load_connection(chain.path))
    assert shown == "<Chain hear (4) + see (4) + feel (4) → 4, procrustes>"
    key = Key("see", "text", "captions")
    assert repr(key) == "Key(space='see', modality='text', dataset='captions')"
    assert repr(cmcr.embeddings.open_dataset(store, key)) == (
        f"<Dataset see/text:captions, 40 rows of 4 by see: {key.folder(store)}>"
    )


def test_training_shows_on_a_terminal_how_far_it_is(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = read_config(FIELDS | {"method": "c-mcr", "epochs": 2, "joint_dim": 4})
    connect(store, config, name="a")
    assert capsys.readouterr().err == ""  # no terminal
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, by rich's convention
    connect(store, config, name="b")
    shown = capsys.readouterr().err
    assert all(word in shown for word in ("train", "2/2", "loss"))
    with cmcr.quiet():
        connect(store, config, name="c")
    assert capsys.readouterr().err == ""


def test_a_long_note_makes_the_bar_short_and_cuts_no_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    with progress("train", total=2000, unit="epochs") as advance:
        advance(1000, "loss 0.432 ▂▃▄▅▂▃▄▅  validation 0.974 ▂▃▄▅▂▃▄▅")
    shown = capsys.readouterr().err
    assert "1000/2000" in shown
    assert "0.974 ▂▃▄▅▂▃▄▅" in shown
    assert "…" not in shown
