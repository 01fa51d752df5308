"""Progress on stderr: a bar with rate and time left on a terminal or in a notebook, else nothing.

with progress("embed speech", total=1000) as advance: advance(64)
with cmcr.quiet(): connect(store, config, name="clip-clap")       # none on a terminal either
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console

_QUIET = ContextVar("quiet", default=False)


class Advance(Protocol):
    """Moves a bar forward, and may change the note behind it."""

    def __call__(self, count: int, note: str | None = None) -> None: ...


@contextmanager
def quiet() -> Iterator[None]:
    """Show no progress in this block."""
    before = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(before)


@contextmanager
def progress(title: str, total: int | None, unit: str = "items") -> Iterator[Advance]:
    """A bar over `total` units (None: unknown); yields the function that moves it forward."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.0f} {unit}/s")

    console = Console(stderr=True)
    columns = (  # where the line is short, the bar is; no number is cut
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        Rate(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console, disable=not _is_watched(console)) as bar:
        task = bar.add_task(title, total=total, note="")

        def advance(count: int, note: str | None = None) -> None:
            bar.advance(task, count)
            if note is not None:
                bar.update(task, note=note)

        yield advance


def _is_watched(console: "Console") -> bool:
    """Whether somebody sees a bar move; notebooks draw one with ipywidgets alone."""
    notebook = console.is_jupyter and find_spec("ipywidgets") is not None
    return not _QUIET.get() and (console.is_terminal or notebook)
