"""`cmcr init`."""

from pathlib import Path
from typing import Annotated

import typer

from cmcr.commands.options import Json
from cmcr.commands.output import answer, say


def init(
    name: Annotated[str, typer.Argument(help="Of the recipe.")] = "mine",
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODALITY=WHERE",
            help="As `cmcr extract` takes it. Can be repeated.",
            show_default="the media folders here",
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Texts, the same as --source text=FILE."),
    ] = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option(help="Can be repeated.", show_default="clip, clap and ulip by modality"),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Folder of the embeddings.", show_default="stores/NAME")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a first recipe for your own folders, ./pipelines.yaml."""
    from cmcr.embeddings import Key
    from cmcr.errors import UsageError
    from cmcr.files import write_text
    from cmcr.pipelines import FILE
    from cmcr.stages import read_sources
    from cmcr.starter import find_sources, starter, usual_encoders

    Key(name, "text", name)  # raises for what cannot be a name
    target = Path(FILE)
    if target.exists():
        raise UsageError(
            "there is a file of recipes already, which is left as it is",
            where=target.resolve(),
            cure="write the recipe into it, or work in another folder",
        )
    given = [*(source or []), *([f"text={text}"] if text else [])]
    sources = read_sources(given) if source else [*find_sources(Path()), *read_sources(given)]
    if text and not source:
        sources = [one for one in sources if one.modality != "text" or one.where == text]
    encoders = list(dict.fromkeys(encoder or usual_encoders(sources)))
    write_text(target, starter(name, sources, encoders, store or Path("stores") / name))
    say(f"init      {target}, recipe {name}: {', '.join(encoders)}")
    say(f"next: cmcr run {name}")
    if as_json:
        answer({"file": str(target), "pipeline": name, "encoders": encoders,
                "sources": [one.model_dump(exclude_none=True) for one in sources]})  # fmt: skip
