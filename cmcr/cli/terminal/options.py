"""Options that several commands take."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

Store = Annotated[
    Path | None, typer.Option(help="Folder of the embeddings.", show_default="the recipe's")
]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--pipeline", help="Recipe for what is not given.", show_default="the first that fits"
    ),
]
NoRecipe = Annotated[bool, typer.Option("--no-pipeline", help="Take nothing from a recipe.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Index = Annotated[str, typer.Option(help="FAISS factory string, or none.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
MaxFailures = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Share of a source's inputs that may be bad.",
        show_default="the recipe's, else 0.01",
    ),
]
Replace = Annotated[
    bool,
    typer.Option(
        "--replace", help="Take the place of another connection of that name, once finished."
    ),
]
Names = Annotated[list[str] | None, typer.Option(metavar="DATASET", help="Can be repeated.")]
Where = Annotated[
    list[str] | None,
    typer.Option(metavar="COLUMN=VALUE,...", help="Only rows with such a value. Can be repeated."),
]


class Precision(StrEnum):
    """How a stored value is kept."""

    float16 = "float16"
    float32 = "float32"


class Up(StrEnum):
    """An axis."""

    y = "y"
    z = "z"


class Hubs(StrEnum):
    """What is done about items that are near to everything."""

    none = "none"
    nnn = "nnn"


Hubness = Annotated[
    Hubs, typer.Option(help="Correct hubs by unpaired rows of the query's modality: nnn.")
]


class Amp(StrEnum):
    """How numbers are kept while a GPU encodes."""

    auto = "auto"
    off = "off"
    bf16 = "bf16"
    fp16 = "fp16"


def checked_modality(name: str | None) -> Any:
    """A modality that a flag names. Raises UsageError for what cannot name one."""
    from cmcr.embeddings import check_modality

    return None if name is None else check_modality(name)
