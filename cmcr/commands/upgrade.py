"""`cmcr upgrade`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cmcr.commands.options import Json
from cmcr.commands.output import answer, print_table, say


def upgrade(store: Annotated[Path, typer.Argument(help="A store.")], as_json: Json = False) -> None:
    """List the formats that a store is written in, and upgrade what is older and can be."""
    from cmcr.connect import upgrade_store

    found = list(upgrade_store(store))
    lines = [{"kind": one.kind, "name": one.name, "format": one.format, "state": one.state}
             for one in found]  # fmt: skip
    if as_json:
        problems = [None if one.problem is None else vars(one.problem) for one in found]
        answer({"found": [line | {"problem": problem}
                          for line, problem in zip(lines, problems, strict=True)]})  # fmt: skip
    else:
        print_table(lines)
    for one in found:
        if one.problem is not None:
            say(f"{one.kind} {one.name}: {one.problem}")
    if not all(one.done for one in found):
        sys.exit(1)
