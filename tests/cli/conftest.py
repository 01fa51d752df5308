"""The command line, run within the tests' own process."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmcr.cli.app import main


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
