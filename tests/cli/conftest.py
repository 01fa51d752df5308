"""The command line within the process, and a store of one's own."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmcr.cli.app import main
from cmcr.embeddings import Dataset

ROWS = 48


@pytest.fixture
def cmcr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """Run a command line with `--json` in an empty folder: its document, and what stderr said."""
    monkeypatch.chdir(tmp_path)

    def run(line: str, code: int = 0) -> Any:
        monkeypatch.setattr(sys, "argv", ["cmcr", *line.split(), "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert (ended.value.code or 0) == code, err
        return json.loads(out), err

    return run


@pytest.fixture(scope="session")
def own_in(makers: Callable[[Path], Callable[..., Dataset]]) -> Callable[..., Path]:
    """What `own` is, for any folder."""

    def make(store: Path, first: str = "clip", second: str = "clap") -> Path:
        make_dataset = makers(store.parent)
        draw = np.random.default_rng(0)
        concepts = draw.normal(size=(8, 16))
        label = [str(row % 8) for row in range(ROWS)]
        names = {f"{first}/text": "captions", f"{second}/text": "captions",
                 f"{first}/image": "photos", f"{second}/audio": "sounds"}  # fmt: skip
        for place, name in names.items():
            vectors = concepts[np.arange(ROWS) % 8] + 0.2 * draw.normal(size=(ROWS, 16))
            make_dataset(
                f"{place}:{name}",
                vectors.astype(np.float32),
                store,
                id=[f"{name}-{row}" for row in range(ROWS)],
                label=label,
            )
        return store

    return make


@pytest.fixture
def own(own_in: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A store of made-up captions in both spaces, and photos and sounds with their labels."""
    return lambda store, *spaces: own_in(tmp_path / store, *spaces)
