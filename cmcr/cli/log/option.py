"""`--log FILE` for every command, before its name or after it; of several the last one counts.

app.command()(logged(extract))              # cmcr extract … --log FILE
app.callback()(root)                        # whose `log: Log` goes to remember(), a group's too
"""

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from cmcr.cli.log.lines import begin

Log = Annotated[
    Path | None,
    typer.Option("--log", metavar="FILE", help="Append what happens to it, as JSON lines."),
]

_remembered: list[Path] = []


def remember(path: Path | None) -> None:
    """The file that is named before the command."""
    _remembered[:] = [] if path is None else [path]


def logged(command: Callable[..., None], name: str | None = None) -> Callable[..., None]:
    """`command` with one option more; `name` is how the log calls it, else as typer does."""
    called = name or command.__name__.strip("_").replace("_", "-")

    @wraps(command)
    def run(*, log: Path | None = None, **options: Any) -> None:
        if path := log or next(iter(_remembered), None):
            begin(path, called)
        command(**options)

    kind = inspect.Parameter.KEYWORD_ONLY
    signature = inspect.signature(command)
    more = inspect.Parameter("log", kind, default=None, annotation=Log)
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), more]
    )
    run.__annotations__ = {**command.__annotations__, "log": Log}
    return run


def begin_by_words(words: Sequence[str], context: Any) -> None:
    """Begin the log that a command line names which cannot be parsed.

    `context` is the parser's, of the command that it came to, or None. Raises OSError as `begin`.
    """
    names: list[str] = []
    while context is not None and context.parent is not None:
        names.insert(0, context.info_name)
        context = context.parent
    files = []
    for word, after in zip(words, (*words[1:], ""), strict=True):
        file = after if word == "--log" else word.removeprefix("--log=")
        if word.startswith("--log") and file and file != word:
            files.append(Path(file))
    if files:
        begin(files[-1], " ".join(names))
