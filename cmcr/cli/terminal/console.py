"""How commands answer: messages, JSON, tables."""

import json
import logging
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from cmcr.cli.log.lines import tell

if TYPE_CHECKING:
    from rich.console import Console, Group, RenderableType
    from rich.table import Table

    from cmcr.cli.recipes.tasks import Missed
    from cmcr.evaluate import Evaluated

INCOMPLETE = 3  # the exit code where something is missing and the rest was done

_WARNS = ("warning", "connect   warning", "left out", "evaluate  left out", "incomplete")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_NARROW = 12  # columns of the terminal that a folded text keeps
_WIDEST = 10_000


def say(text: str, event: str = "message", **fields: Any) -> None:
    """A message to the person at the terminal; the log has the `fields` of the event besides."""
    print(shown(text), file=sys.stderr, flush=True)
    tell(text, logging.WARNING if text.startswith(_WARNS) else logging.INFO, event, **fields)


def shown(text: str) -> str:
    """`text` without what would steer a terminal: a name from outside may hold anything."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def answer(document: Any) -> None:
    """The one JSON document on stdout."""
    print_json(document)
    tell("", event="result", document=document)


def print_json(document: Any) -> None:
    """A document on stdout alone."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def print_table(lines: list[dict[str, Any]]) -> None:
    """Print rows of equal kind as a table; a hash is cut to eight digits, nothing else is."""
    from rich.table import Table
    from rich.text import Text

    names = list(dict.fromkeys(name for line in lines for name in line))
    table = Table(box=None, pad_edge=False)
    for name in names:
        if all(isinstance(line.get(name), int | float | None) for line in lines):
            table.add_column(name, justify="right", no_wrap=True)
        else:
            table.add_column(name, overflow="fold")
    for line in lines:
        table.add_row(*(Text(_cell(line.get(name))) for name in names))
    _print(table)
    tell("", event="result", rows=lines)


def _print(content: "Table | Group") -> None:
    """Print as wide as the terminal, wider where a number would be cut; in a pipe cut nothing."""
    from rich.console import Console, Group

    console = Console()
    parts = content.renderables if isinstance(content, Group) else [content]
    wide = console.options.update(max_width=_WIDEST)
    if console.is_terminal:
        console.width = max(console.width, *(_narrowest(console, part) for part in parts))
    else:
        console.width = max([1, *(console.measure(part, options=wide).maximum for part in parts)])
    console.print(content)


def _narrowest(console: "Console", part: "RenderableType") -> int:
    """The least width at which a table keeps its numbers: text is folded, numbers are not."""
    from rich.table import Table

    if not isinstance(part, Table):
        return 1
    wide = console.options.update(max_width=_WIDEST)
    least = []
    for column in part.columns:
        cells = [column.header, *column.cells]
        longest = max(console.measure(cell, options=wide).maximum for cell in cells)
        least.append(longest if column.no_wrap else min(longest, _NARROW))
    return sum(least) + 2 * len(least)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    return shown(text[:8] if len(text) == 64 else text)


def show(
    done: "Sequence[Evaluated | Missed]", as_json: bool, tables: bool = True, **more: Any
) -> None:
    """The rows of finished evaluations, as JSON or as tables, and what was left out.

    `more` stands beside them in JSON. Without `tables` stdout is left to something else.
    """
    from cmcr.cli.recipes.tasks import Missed
    from cmcr.evaluate import results_table

    missed = [one for one in done if isinstance(one, Missed)]
    for one in done:
        say(f"evaluate  {one}")
    rows = [row for one in done if not isinstance(one, Missed) for row in one.rows]
    if as_json:
        left_out = {"left_out": [one.as_dict() for one in missed]} if missed else {}
        answer({"results": rows, **left_out, **more})
    elif tables:
        _print(results_table(rows))
        tell("", event="result", results=rows)


def show_measured(done: "Sequence[Evaluated | Missed]", as_json: bool, tables: bool = True) -> None:
    """As `show`. Raises the error of the first that was left out when nothing was measured."""
    from cmcr.cli.recipes.tasks import Missed

    missed = [one for one in done if isinstance(one, Missed)]
    if missed and len(missed) == len(done):
        for other in missed[1:]:
            say(f"evaluate  {other}")
        raise missed[0].error
    show(done, as_json, tables)


def stop_if_missed(done: "Sequence[Evaluated | Missed]") -> None:
    """End with the exit code of incomplete work where something was left out."""
    from cmcr.cli.recipes.tasks import Missed

    if missed := sum(isinstance(one, Missed) for one in done):
        say(f"{missed} of {len(done)} could not be evaluated: see `left out` above")
        raise typer.Exit(INCOMPLETE)
