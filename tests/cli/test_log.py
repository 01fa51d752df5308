"""`--log FILE`: JSON lines of what a command did, on every command."""

import json
import logging
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from shell import cmcr, refuse, succeed

from cmcr.cli.app import app
from cmcr.cli.log.lines import begin, end, tell


def read(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def commands(group: Any, name: str = "") -> dict[str, Any]:
    """Every command by its name, those of groups too."""
    found: dict[str, Any] = {}
    for word, command in group.commands.items():
        inner = hasattr(command, "commands")
        found |= commands(command, f"{word} ") if inner else {name + word: command}
    return found


def test_every_command_takes_a_log() -> None:
    there = commands(typer.main.get_command(app))
    assert len(there) > 20
    for name, command in there.items():
        assert any("--log" in option.opts for option in command.params), name


def test_a_log_says_what_was_done(own: Callable[..., Path], tmp_path: Path) -> None:
    store, log = own("S"), tmp_path / "log.jsonl"
    done = succeed("rename", "clip/image:photos", "pictures", "--store", store, "--log", log)

    lines = read(log)
    assert [line["event"] for line in lines] == ["start", "message", "message", "end"]
    assert {line["command"] for line in lines} == {"rename"}
    assert {line["level"] for line in lines} == {"info"}
    assert [line["message"] for line in lines[1:3]] == done.stderr.splitlines()
    assert lines[0]["arguments"][:3] == ["rename", "clip/image:photos", "pictures"]
    assert lines[-1]["exit_code"] == 0
    assert 0 <= lines[-1]["seconds"] < 60
    for line in lines:
        assert line["time"].endswith("Z")
        assert datetime.fromisoformat(line["time"]).utcoffset() is not None


def test_a_log_is_appended_to_and_may_come_before_the_command(
    own: Callable[..., Path], tmp_path: Path
) -> None:
    store, log = own("S"), tmp_path / "log.jsonl"
    succeed("--log", log, "info", store, "--json")
    succeed("info", store, "--log", log)

    lines = read(log)
    assert [line["event"] for line in lines] == ["start", "result", "end"] * 2
    assert lines[1]["document"]["datasets"][0]["rows"] == 48
    assert lines[4]["rows"][0]["dataset"] == "clap/audio:sounds"
    succeed("info", store)
    assert len(read(log)) == 6  # the file is not kept for later commands


def test_of_several_logs_the_last_counts_wherever_they_stand(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("1", "2", "3"))
    task = ("retrieval", "--query", "x")
    refuse(2, "evaluate", "--log", first, *task)
    assert read(first)[-1]["exit_code"] == 2
    refuse(2, "--log", first, "evaluate", "--log", second, *task)
    refuse(2, "--log", first, "evaluate", *task, "--bogus", "--log", second)
    assert len(read(first)) == 3
    assert len(read(second)) == 6
    assert {line["command"] for line in read(second)} == {"evaluate retrieval"}
    refuse(2, "--log", first, "evaluate", "--log", second, *task, "--log", third)
    assert [len(read(log)) for log in (first, second, third)] == [3, 6, 3]


def test_an_error_is_logged_in_its_three_parts(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    told = refuse(2, "info", tmp_path / "nowhere", "--log", log)
    assert told.count("there is no store") == 1
    refuse(2, "info", "--bogus", "--log", log)
    refuse(2, f"--log={log}", "evaluate", "retrieval", "--query", "x")
    refuse(2, "--log", log, "evaluate", "retrieval", "--bogus")

    errors = [line for line in read(log) if line["event"] == "error"]
    assert [line["level"] for line in errors] == ["error"] * 4
    assert errors[0]["what"] == "there is no store"
    assert errors[0]["where"] == str(tmp_path / "nowhere")
    assert errors[0]["fix"] in told
    assert "--bogus" in errors[1]["what"]
    assert [line["command"] for line in errors[1:]] == ["info", *["evaluate retrieval"] * 2]
    assert [line["exit_code"] for line in read(log) if line["event"] == "end"] == [2] * 4


def test_failures_are_counted_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "photos/good.png")
    (tmp_path / "photos/bad.png").write_text("no picture")
    log = tmp_path / "log.jsonl"
    succeed("extract", "--encoder", "digits-clip", "--source", f"image={tmp_path / 'photos'}",
            "--store", tmp_path / "S", "--workers", "0", "--max-failures", "0.5",
            "--log", log)  # fmt: skip

    (extracted,) = [line for line in read(log) if line["event"] == "extracted"]
    assert (extracted["summary"]["rows"], extracted["summary"]["failures"]) == (1, 1)
    assert extracted["summary"]["key"] == "digits-clip/image:photos"


def test_what_the_library_warns_of_is_logged_and_still_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(tmp_path / "log.jsonl", "extract")
    logging.getLogger("cmcr.somewhere").warning("waiting for %s", "another")
    end(0)

    line = read(tmp_path / "log.jsonl")[1]
    assert (line["level"], line["message"]) == ("warning", "waiting for another")
    assert "waiting for another" in capsys.readouterr().err


def test_a_line_is_one_write_at_the_end_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, written = tmp_path / "log.jsonl", []
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: written.append(data) or write(file, data))
    begin(log, "extract")
    with log.open("a") as other:
        other.write('{"event": "of another run"}\n')
    tell("a line\nin two", name="\udcff")
    end(0)

    assert [line["event"] for line in read(log)] == ["start", "of another run", "message", "end"]
    assert len(written) == 3
    assert all(data.endswith(b"\n") and data.count(b"\n") == 1 for data in written)


def test_a_log_that_cannot_be_written_is_told(tmp_path: Path, own: Callable[..., Path]) -> None:
    store = own("S")
    told = refuse(1, "info", store, "--log", tmp_path)
    assert "a folder lies where a file is needed" in told
    told = refuse(2, "info", store, "--nope", "--log", tmp_path / "no/such/l")
    assert "No such file" in told
    assert "--nope" in told
    done = cmcr("info", store, "--log", "/dev/full")
    assert done.returncode == 0
    assert "the log ends here" in done.stderr
