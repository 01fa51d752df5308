"""Who may import whom: every module has a room, and arrows between rooms go down only."""

import ast
import importlib
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("cmcr", "connect", "embeddings", "evaluate", "extract")
LARGEST_ROOM = 8  # modules
STAGES = {
    "connect": ("embeddings",),
    "embeddings": (),
    "evaluate": ("connect", "embeddings"),
    "extract": ("embeddings",),
    "cli": ("connect", "embeddings", "evaluate", "extract", "search", "serve"),
    "mteb": ("connect", "embeddings", "extract"),
    "search": ("connect", "embeddings", "extract"),
    "serve": ("connect", "embeddings", "extract", "search"),
    "floor": (),
}

# Within a stage a room may import what stands on a lower line; rooms of one line are strangers.
LINES = """
cmcr.connect
cmcr.connect.make
cmcr.connect.methods
cmcr.connect.training
cmcr.connect.connection cmcr.connect.matching cmcr.connect.spaces
cmcr.connect.config cmcr.connect.distributed

cmcr.extract
cmcr.extract.cluster
cmcr.extract.engine cmcr.extract.prepare cmcr.extract.regions cmcr.extract.spans
cmcr.extract.prepare.sets
cmcr.extract.prepare.making
cmcr.extract.prepare.published
cmcr.extract.prepare.folder
cmcr.extract.encoders cmcr.extract.sources
cmcr.extract.encoders.models
cmcr.extract.digits
cmcr.extract.digits.world
cmcr.extract.media
cmcr.extract.items

cmcr.evaluate
cmcr.evaluate.report
cmcr.evaluate.tasks
cmcr.evaluate.figures
cmcr.evaluate.inputs
cmcr.evaluate.ranking
cmcr.evaluate.results

cmcr.embeddings.search cmcr.embeddings.upkeep
cmcr.embeddings

cmcr.cli
cmcr.cli.check cmcr.cli.terminal
cmcr.cli.recipes
cmcr.cli.log
cmcr.serve.http
cmcr.serve
cmcr.mteb cmcr.search
cmcr
"""
LEVEL = {room: level for level, line in enumerate(LINES.splitlines()) for room in line.split()}


@cache
def modules() -> Mapping[str, Path]:
    """Every module of the package by its name; a package has the name of its folder."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts if folder == "cmcr" else ("cmcr", *parts))
            found[name.removesuffix(".__init__")] = path
    return found


def imports(module: str) -> Iterator[tuple[str, str]]:
    """The (module, name) that `module` imports from cmcr, wherever in it; a name may be empty."""
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.startswith("cmcr"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cmcr"):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole, "") if whole in modules() else (str(node.module), alias.name)


def room(module: str) -> str:
    """The room of a module: the longest line above that its name begins with."""
    parts = module.split(".")
    return next(
        name for count in range(len(parts), 0, -1) if (name := ".".join(parts[:count])) in LEVEL
    )


def stage(module: str) -> str:
    """The stage of a module."""
    second = module.partition(".")[2].partition(".")[0]
    return second if second in STAGES else "floor"


def arrows() -> Iterator[tuple[str, str, str]]:
    """Every import within cmcr: who, from whom, what."""
    for module in modules():
        for target, name in imports(module):
            yield module, target, name


def test_imports_go_down_only() -> None:
    wrong = []
    for module, target, name in arrows():
        if stage(target) == "floor" or (module == "cmcr" and not name.startswith("_")):
            continue  # everyone stands on the floor, and `import cmcr` shows the stages' names
        if module == "cmcr.__main__":
            continue
        own, other = stage(module), stage(target)
        if own != other:
            if other not in STAGES[own]:
                wrong.append(f"{module} → {target}")
        elif room(module) != room(target) and LEVEL[room(target)] <= LEVEL[room(module)]:
            wrong.append(f"{module} → {target}")
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_names_of_another_stage_come_from_its_front() -> None:
    wrong = {
        f"{module} → {target}.{name}"
        for module, target, name in arrows()
        if stage(target) in ("connect", "evaluate", "extract")
        and stage(target) != stage(module)
        and target.count(".") > 1
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_no_module_imports_itself_round_a_corner() -> None:
    graph = {
        module: {target for target, _ in imports(module) if target != module} - fronts(module)
        for module in modules()
    }
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def fronts(module: str) -> set[str]:
    """The packages around a module, whose fronts import it and not the other way round."""
    parts = module.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts))}


@pytest.mark.parametrize("folder", sorted({path.parent for path in modules().values()}), ids=str)
def test_a_room_holds_eight_modules_at_most(folder: Path) -> None:
    inside = [path for path in folder.glob("*.py") if not path.name.startswith("__")]
    assert len(inside) <= LARGEST_ROOM


@pytest.mark.parametrize("name", sorted(room for room in LEVEL if room.count(".") > 1))
def test_a_room_says_in_one_docstring_what_lives_there(name: str) -> None:
    path = modules()[name]
    if path.name == "__init__.py":
        (only,) = ast.parse(path.read_text(encoding="utf-8")).body
        assert isinstance(only, ast.Expr)


@pytest.mark.parametrize("name", ["connect", "embeddings", "evaluate", "extract"])
def test_the_front_of_a_stage_offers_what_it_lists(name: str) -> None:
    front = importlib.import_module(f"cmcr.{name}")
    assert sorted(front.__all__, key=str.lower) == sorted(set(front.__all__), key=str.lower)
    assert all(hasattr(front, offered) for offered in front.__all__)


def test_every_room_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    rooms = {name for name, path in modules().items() if path.name == "__init__.py"}
    assert {*project["tool"]["setuptools"]["packages"]} == rooms
