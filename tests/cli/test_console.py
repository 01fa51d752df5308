"""What the commands print: documents, tables, exit codes, the documentation of all of them."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import typer
from PIL import Image
from plugins import install

from cmcr import __version__, errors
from cmcr.cli.app import app, main
from cmcr.cli.terminal.console import print_table
from cmcr.embeddings import Dataset

ROOT = Path(__file__).parents[2]


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Each command of the app by its full name."""
    for name, one in (group or typer.main.get_command(app)).commands.items():
        if hasattr(one, "commands"):
            yield from commands(one, (*path, name))
        else:
            yield " ".join(["cmcr", *path, name]), one


def run(line: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["cmcr", *line.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_every_command_has_json() -> None:
    without = [
        name
        for name, command in commands()
        if "--json" not in [flag for option in command.params for flag in option.opts]
    ]
    assert without == []


def test_the_documentation_lists_commands_and_exit_codes() -> None:
    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| `(cmcr .+?)` \| (.+?) \|$", text, flags=re.MULTILINE))
    assert documented == {name: command.help.splitlines()[0] for name, command in commands()}
    codes = dict(re.findall(r"^\| (\d+) \| (.+?) \|$", text, flags=re.MULTILINE))
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type)
        and issubclass(kind, errors.CmcrError)
        and kind is not errors.CmcrError
    ]
    assert len(kinds) == 7
    for kind in kinds:
        assert f"`{kind.__name__}`" in codes[str(kind.exit_code)]


@pytest.mark.parametrize(
    ("line", "code", "kind"),
    [
        ("info nowhere --json", 2, "UsageError"),
        ("info --json", 2, "UsageError"),  # an argument is missing
        ("evaluate nothing --json", 2, "UsageError"),
        (
            "import --space a --modality text --dataset b --embeddings x.npy --store s --json",
            1,
            "SourceError",
        ),
    ],
)
def test_an_error_is_one_document(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    line: str,
    code: int,
    kind: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.npy").write_bytes(b"no array")
    assert run(line, monkeypatch) == code
    told = json.loads(capsys.readouterr().out)["error"]
    assert told.keys() == {"what", "where", "fix", "type"}
    assert told["type"] == kind
    run(line.removesuffix(" --json"), monkeypatch)
    assert capsys.readouterr().out == ""


def test_the_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version", monkeypatch) == 0
    assert capsys.readouterr().out == f"cmcr {__version__}\n"


@pytest.mark.parametrize("columns", ["80", "20"])
def test_a_narrow_terminal_keeps_every_column(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str
) -> None:
    for name, value in {"TTY_COMPATIBLE": "1", "COLUMNS": columns, "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    long = "a-space/pointcloud:" + "shapes-of-many-kinds" * 3
    print_table([{"dataset": long, "method": "c-mcr " * 9, "rows": 1_234_567, "mAP": 0.125}])
    out = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
    assert "…" not in out
    assert "1,234,567" in out
    assert "0.125" in out
    first = [row.split()[0] for row in out.splitlines()[1:] if not row.startswith(" ")]
    assert "".join(first) == long


def test_info_shows_a_chain_with_its_links(
    make_dataset: Callable[..., Dataset],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for place, rows in (("a/text:t", 40), ("b/text:t", 40), ("b/image:i", 30), ("c/image:i", 30)):
        make_dataset(place, draw.normal(size=(rows, 6)).astype(np.float32),
                     id=[f"{place[-1]}{row}" for row in range(rows)])  # fmt: skip
    chain = "connect --spaces a,b,c --method ridge --set validation=0 --store store --name all"
    assert run(chain, monkeypatch) == 0
    capsys.readouterr()
    run("info store --json", monkeypatch)
    (line,) = json.loads(capsys.readouterr().out)["connections"]
    assert line["pairs"] is None
    assert [(one["via"], one["pairs"]) for one in line["links"]] == [("text", 40), ("image", 30)]
    assert [one["spaces"] for one in line["links"]] == ["a + b", "c + the spaces before"]
    run("info store", monkeypatch)
    out = capsys.readouterr().out
    assert "link 2" in out
    assert "all.1-" not in out


def test_the_table_of_methods_says_which_is_taken_and_what_few_pairs_cannot_show(
    make_dataset: Callable[..., Dataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(15, 8))
    for space in ("clip", "clap"):
        seen = rows @ draw.normal(size=(8, 8)) + draw.normal(size=(15, 8))
        make_dataset(f"{space}/text:captions", seen, id=[f"c{row}" for row in range(15)])
    words = f"connect --spaces clip,clap --via text --train captions --store {tmp_path / 'store'}"
    assert run(f"{words} --no-pipeline", monkeypatch) == 0
    head, *lines, foot = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["method", "difference", "log_likelihood"]
    assert [line.split()[:2] for line in lines if line.startswith("→")] == [["→", "cca"]]
    others = [line for line in lines if not line.startswith("→")]
    assert others
    assert all("not told apart" in line for line in others)
    assert foot.startswith("→ cca is taken")


def test_all_tables_of_a_search_have_the_same_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path / "site", monkeypatch)
    monkeypatch.chdir(tmp_path)
    soundfile.write("street.wav", np.random.default_rng(0).normal(size=24_000), 8_000)
    Path("photos").mkdir()
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (4, 4), colour).save(f"photos/{name}.png")
    made = "extract --encoder senses --workers 0 --no-pipeline"
    assert run(f"{made} --source audio=street.wav --window 1", monkeypatch) == 0
    assert run(f"{made} --source image=photos", monkeypatch) == 0
    capsys.readouterr()
    asked = "senses/image:photos#a.png senses/image:photos#b.png"
    places = "--in senses/image:photos --in senses/audio:street-windows"
    assert run(f"search {asked} {places} -k 5 --store store", monkeypatch) == 0
    heads = [line for line in capsys.readouterr().out.splitlines() if "dataset" in line]
    assert [head.split()[:4] for head in heads] == [["dataset", "id", "label", "seconds"]] * 2
