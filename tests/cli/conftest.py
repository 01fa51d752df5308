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


@pytest.fixture
def own(make_dataset: Callable[..., Dataset], tmp_path: Path) -> Callable[..., Path]:
    """A store of made-up captions in both spaces, and photos and sounds with their labels."""

    def make(store: str, first: str = "clip", second: str = "clap") -> Path:
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
                tmp_path / store,
                id=[f"{name}-{row}" for row in range(ROWS)],
                label=label,
            )
        return tmp_path / store

    return make
