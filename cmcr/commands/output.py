"""What a command prints: results on stdout, messages on stderr."""

import json
import sys
from typing import Any


def say(text: str) -> None:
    """A message to the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


def answer(document: Any) -> None:
    """The one JSON document on stdout."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def print_table(lines: list[dict[str, Any]]) -> None:
    """Print rows of equal kind as a table; a hash is cut to eight digits."""
    from rich.console import Console
    from rich.table import Table

    names = list(dict.fromkeys(name for line in lines for name in line))
    table = Table(box=None, pad_edge=False)
    for name in names:
        numbers = all(isinstance(line.get(name), int | float | None) for line in lines)
        table.add_column(name, justify="right" if numbers else "left")
    for line in lines:
        table.add_row(*(_cell(line.get(name)) for name in names))
    console = Console()
    if not console.is_terminal:
        console.width = 120
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    return text[:8] if len(text) == 64 else text


def show(done: list[Any], as_json: bool) -> None:
    """The rows of finished evaluations, as JSON or as tables with where the pictures are."""
    from rich.console import Console

    from cmcr.evaluate import results_table

    rows = [row for evaluated in done for row in evaluated.rows]
    for evaluated in done:
        say(f"evaluate  {evaluated}")
    if as_json:
        answer({"results": rows})
    else:
        Console().print(results_table(rows))
