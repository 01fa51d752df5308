"""What the documents show is done: commands, code, and every path and name that they speak of.

A block of bash or python runs in a folder that holds the demo's store and some media. One that
cannot run here says what it needs (```bash needs=weights): its commands are parsed, and it is
counted below.
"""

import ast
import importlib
import re
import shlex
import shutil
import string
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
import soundfile
import typer
from PIL import Image
from shell import Demo

from cmcr.cli.app import app, main

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
STAGES = ("cmcr", "connect", "embeddings", "evaluate", "extract")
MODULES = sorted(path for stage in STAGES for path in (ROOT / stage).rglob("*.py"))
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))
NEEDS = {"data", "duckdb", "gpu", "install", "network", "ray", "server", "weights"}
MARKED = {
    ("README.md", "network"): 1,
    ("README.md", "weights"): 1,
    ("cli.md", "data"): 1,
    ("connections.md", "gpu"): 1,
    ("connections.md", "network"): 1,
    ("connections.md", "weights"): 1,
    ("demo.md", "data"): 1,
    ("encoders.md", "install"): 1,
    ("evaluate.md", "network"): 1,
    ("hf.md", "weights"): 1,
    ("methods.md", "data"): 2,
    ("migrate.md", "weights"): 1,
    ("reproduce.md", "data"): 11,
    ("reproduce.md", "network"): 2,
    ("scale.md", "ray"): 1,
    ("serve.md", "server"): 3,
    ("sources.md", "weights"): 2,
    ("store.md", "duckdb"): 1,
}
NOT_A_MODULE = {"cmcr.encoders"}  # the group of entry points
CONCEPTS = 3


class Block(NamedTuple):
    """A fenced block: its language, what it needs, its text."""

    language: str
    needs: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page; an info string is LANGUAGE [needs=WHAT]."""
    found = []
    text = page.read_text(encoding="utf-8")
    for info, body in re.findall(r"^```(.+?)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        language, _, needs = info.partition(" needs=")
        found.append(Block(language, needs, body))
    return found


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def lines(block: Block) -> Iterator[str]:
    """The lines of a block of bash, those that end with a backslash joined, without comments."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line


def commands(block: Block) -> Iterator[list[str]]:
    """The arguments of each `cmcr` command of a block; NAME=value above it is filled in."""
    known = dict(re.findall(r"^([A-Z]+)=\"?(.+?)\"?$", block.text, flags=re.MULTILINE))
    for line in lines(block):
        if line.startswith("cmcr "):
            filled = string.Template(line).safe_substitute(known)
            yield shlex.split(filled, comments=True)[1:]


def command_of(words: Sequence[str]) -> tuple[Any, list[str]]:
    """The command that the first words name, and the rest of them."""
    command, rest = typer.main.get_command(app), list(words)
    while hasattr(command, "commands") and rest:
        command = command.commands[rest.pop(0)]
    return command, rest


@pytest.fixture(scope="module")
def prepared(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's store, media in class folders, a film, texts, and arrays in two spaces."""
    folder = tmp_path_factory.mktemp("prepared")
    shutil.copytree(demo.store, folder / "stores/digits")
    draw = np.random.default_rng(0)
    for digit in range(CONCEPTS):
        for kind in ("photos", "sounds", "recordings", "shapes"):
            (folder / kind / str(digit)).mkdir(parents=True)
        for number in range(2):
            pixels = draw.integers(0, 255, (24, 24), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"photos/{digit}/{number}.png")
            for kind in ("sounds", "recordings"):
                wave = 0.1 * draw.standard_normal(4000)
                soundfile.write(folder / f"{kind}/{digit}/{number}.wav", wave, 8000)
            np.save(folder / f"shapes/{digit}/{number}.npy", draw.normal(size=(300, 3)))
    (folder / "films").mkdir()
    with av.open(str(folder / "films/street.mp4"), "w") as film:
        pictures = film.add_stream("mpeg4", rate=4)
        pictures.width, pictures.height, pictures.pix_fmt = 32, 24, "yuv420p"
        for shade in (20, 20, 200, 200, 90, 90):
            frame = av.VideoFrame.from_ndarray(np.full((24, 32, 3), shade, np.uint8))
            film.mux(pictures.encode(frame))
        film.mux(pictures.encode(None))
    phrases = [f"the digit {number % CONCEPTS}, number {number}" for number in range(48)]
    (folder / "captions.txt").write_text("\n".join(phrases) + "\n")
    (folder / "captions.tsv").write_text("\n".join(["text", *phrases]) + "\n")
    concepts = draw.normal(size=(CONCEPTS, 16))
    arrays = {"clip_text": "captions", "clap_text": "captions",
              "clip_image": "photos", "clap_audio": "sounds"}  # fmt: skip
    for name, listed in arrays.items():
        array = concepts[np.arange(48) % CONCEPTS] + 0.2 * draw.normal(size=(48, 16))
        np.save(folder / f"{name}.npy", array.astype(np.float32))
        rows = "".join(f"{listed}-{row},{row % CONCEPTS}\n" for row in range(48))
        (folder / f"{listed}.csv").write_text(f"id,label\n{rows}")
    return folder


@pytest.fixture
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs of what is trained: how good it is shows in no command."""
    from cmcr.connect.methods import solve

    def two_epochs(*given: Any, until: int | None = None, **named: Any) -> int:
        return train(*given, until=min(until or 2, 2), **named)

    train = solve.train
    monkeypatch.setattr(solve, "train", two_epochs)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.usefixtures("short_training")
@pytest.mark.filterwarnings("ignore:.*libuv.*")
def test_what_a_page_shows_runs(
    page: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks of a page run one after another in one folder."""
    shown = [b for b in blocks(page) if b.language in ("bash", "python") and not b.needs]
    if not shown:
        return
    shutil.copytree(request.getfixturevalue("prepared"), tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    for block in shown:
        if block.language == "python":
            exec(compile(block.text, str(page), "exec"), {"__name__": "documented"})
            continue
        for line in lines(block):
            assert line.startswith("cmcr "), f"mark what is no command of cmcr: {line}"
        for words in commands(block):
            monkeypatch.setattr(sys, "argv", ["cmcr", *words])
            with pytest.raises(SystemExit) as ended:
                main()
            assert not ended.value.code, shlex.join(sys.argv)


def test_what_cannot_run_here_is_counted() -> None:
    marked = Counter((page.name, block.needs) for page in PAGES for block in blocks(page))
    marked = Counter({key: count for key, count in marked.items() if key[1]})
    assert marked == Counter(MARKED)
    assert {needs for _, needs in marked} <= NEEDS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_cannot_run_here_are_well_formed(page: Path) -> None:
    for block in blocks(page):
        if block.language == "bash" and block.needs:
            for words in commands(block):
                command, rest = command_of(words)
                command.make_context(shlex.join(words), rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_a_sentence_have_the_options_that_they_name(page: Path) -> None:
    text = prose(page)
    assert not re.findall(r"^ {4}(?:\$ )?cmcr .*", text, re.MULTILINE), "put it into ```bash"
    for line in re.findall(r"`cmcr ([a-z][^`]*)`", text):
        command, rest = command_of([word for word in line.split() if word != "COMMAND"])
        options = {flag for option in command.params for flag in option.opts} | {"--help"}
        assert {word for word in rest if word.startswith("--")} <= options, line


# What they speak of


def texts() -> Mapping[Path, str]:
    """Pages, and the docstrings of every module and benchmark."""
    found = {page: page.read_text(encoding="utf-8") for page in PAGES}
    for path in [*MODULES, *SCRIPTS]:
        tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found[path] = "\n".join(ast.get_docstring(n) or "" for n in tree if isinstance(n, kinds))
    return found


def is_there(name: str) -> bool:
    """Whether a dotted name can be imported: a module, or what one has."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            thing: Any = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            if not hasattr(thing, part):
                return False
            thing = getattr(thing, part)
        return True
    return False


def test_names_in_documents_and_docstrings_can_be_imported() -> None:
    wrong = []
    for path, text in texts().items():
        named = set(re.findall(r"(?<![\w./-])(cmcr(?:\.[A-Za-z_]\w*)+)", text))
        for module, names in re.findall(r"^\s*from (cmcr[\w.]*) import ([\w, ]+)$", text, re.M):
            named |= {f"{module}.{name.split()[0]}" for name in names.split(",")}
        wrong += [
            f"{path.relative_to(ROOT)}: {name}"
            for name in sorted(named - NOT_A_MODULE)
            if not is_there(name)
        ]
    assert not wrong, "\n".join(wrong)


def test_files_in_documents_and_docstrings_exist() -> None:
    folders = "|".join([*STAGES, "benchmarks", "docs", "tests"])
    wrong = []
    for path, text in texts().items():
        named = re.findall(
            rf"(?<![\w./-])((?:{folders})/[\w./-]+\.(?:json|md|png|py|toml|yaml))\b", text
        )
        missing = {name for name in named if not (ROOT / name).exists()}
        if path.suffix == ".md":
            links = re.findall(r"\]\(([^)#:]+)\)", text)
            missing |= {link for link in links if not (path.parent / link).exists()}
        wrong += [f"{path.relative_to(ROOT)}: {name}" for name in sorted(missing)]
    assert not wrong, "\n".join(wrong)
