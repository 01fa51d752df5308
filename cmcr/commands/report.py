"""`cmcr report`."""

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
    as_json: Json = False,
) -> None:
    """Write one HTML page about a store: sources, numbers, pictures, what found what."""
    from cmcr.evaluate.report import write_report
    from cmcr.extract.lookup import find_media

    page = write_report(store, out or store / "report.html", find_media, connection)
    say(f"report    {page} ({page.stat().st_size / 1e6:.1f} MB)")
    if as_json:
        answer({"report": str(page), "bytes": page.stat().st_size})
