"""`cmcr report`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cmcr.commands.options import Json
from cmcr.commands.output import answer, say


def report(
    store: Annotated[Path, typer.Argument(help="A store.")],
    out: Annotated[
        Path | None, typer.Option(help="The page.", show_default="STORE/report.html")
    ] = None,
    connection: Annotated[
        str | None, typer.Option(help="Only this one.", show_default="all")
    ] = None,
    media_root: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Where media were moved, looked at first. Can be repeated."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one HTML page about a store: sources, numbers, pictures, what found what."""
    from cmcr.errors import UsageError
    from cmcr.evaluate.report import write_report
    from cmcr.extract.lookup import find_media

    roots = media_root or []
    for root in roots:
        if not root.is_dir():
            raise UsageError("there is no such folder", where=root, cure="--media-root DIR")
    find = partial(find_media, roots=roots)
    page = write_report(store, out or store / "report.html", find, connection)
    say(f"report    {page} ({page.stat().st_size / 1e6:.1f} MB)")
    if as_json:
        answer({"report": str(page), "bytes": page.stat().st_size})
