"""What the system refuses: told like any other error, with the file.

pytest tests/cli/test_system_errors.py
"""

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmcr.cli import app

Cmcr = Callable[..., Any]


@pytest.mark.parametrize("store", ["file", "file/below"])
def test_a_store_that_is_a_file(store: str, cmcr: Cmcr, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "words.txt").write_text("one\ntwo\n")
    document, said = cmcr(
        f"extract --encoder digits-clip --source text=words.txt --store {store}", 1
    )
    error = document["error"]
    assert (error["what"], error["type"]) == ("Not a directory", "NotADirectoryError")
    assert error["where"].startswith(store)
    assert error["fix"] in said
    assert "Traceback" not in said


REFUSED: list[tuple[Exception, str, str | None, str]] = [
    (OSError(errno.ENOSPC, "No space left on device", "S/part"), "No space", "S/part", "make room"),
    (
        OSError(
            errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28] No space"
        ),  # Arrow's
        "No space left on device: Error writing bytes to file",
        None,
        "make room",
    ),
    (OSError(errno.EROFS, "Read-only file system", b"S/part"), "Read-only", "S/part", "written to"),
    (OSError(errno.EACCES, "denied", "S"), "Permission denied", "S", "accessible to you"),
    (OSError(errno.ENOENT, "none", "a", None, "b"), "No such file", "a → b", "spelt right"),
]


@pytest.mark.parametrize(("refused", "what", "where", "fix"), REFUSED)
def test_the_systems_words_the_file_and_what_to_do(
    refused: Exception,
    what: str,
    where: str | None,
    fix: str,
    cmcr: Cmcr,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app, "app", stopping(refused))
    document, _ = cmcr("info", 1)
    error = document["error"]
    assert what in error["what"]
    assert "Detail" not in error["what"]
    assert error["where"] == where
    assert fix in error["fix"]


@pytest.mark.parametrize("mistake", [OSError("of a library's own"), ValueError("a mistake")])
def test_other_errors_keep_their_traceback(
    mistake: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app, "app", stopping(mistake))
    monkeypatch.setattr(sys, "argv", ["cmcr", "info", "--json"])
    with pytest.raises(type(mistake), match=str(mistake)):
        app.main()
    assert json.loads(capsys.readouterr().out)["error"]["type"] == type(mistake).__name__


def stopping(error: Exception) -> Callable[..., None]:
    def command(**_: Any) -> None:
        raise error

    return command
