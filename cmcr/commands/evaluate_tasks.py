"""`cmcr evaluate zero-shot`, `localization` and `counterfactual`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from cmcr.commands.options import Json, Recipe, Store
from cmcr.commands.output import show

Place = "SPACE/MODALITY[:DATASET]"
Connection = Annotated[
    str | None, typer.Option(help="Its name or folder.", show_default="the recipe's")
]
Query = Annotated[str | None, typer.Option(metavar=Place, help="The items to judge.")]
Regions = Annotated[
    str | None, typer.Option(metavar=Place, help="Regions of pictures, of `extract --regions`.")
]
Truth = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE|DIR",
        help="Where sounds are heard: VGG-SS .json, Flickr-SoundNet's folder of XML, a .csv of "
        "silent pairs, .jsonl. Can be repeated.",
        show_default="columns of the query",
    ),
]


def zero_shot(
    connection: Connection = None,
    query: Query = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|modelnet40", help="Classes to tell apart.", show_default="the gallery's"
        ),
    ] = None,
    templates: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|ulip64|none", help="Prompts to average.", show_default="the gallery's"
        ),
    ] = None,
    gallery: Annotated[
        str | None, typer.Option(metavar="SPACE/text[:DATASET]", help="Prompts with labels.")
    ] = None,
    store: Store = None,
    pipeline: Recipe = None,
    as_json: Json = False,
) -> None:
    """Classify items by the prompts nearest to them, without training examples."""
    from cmcr import tasks
    from cmcr.pipelines import load_pipelines

    recipe = load_pipelines().named(pipeline)
    flags = {"query": query, "gallery": gallery, "classes": classes, "templates": templates}
    show(list(tasks.zero_shot(recipe, store or recipe.store, flags, connection)), as_json)


def _about_scenes(
    task: Literal["localization", "counterfactual"], does: str
) -> Callable[..., None]:
    def command(
        connection: Connection = None,
        query: Query = None,
        regions: Regions = None,
        truth: Truth = None,
        store: Store = None,
        pipeline: Recipe = None,
        as_json: Json = False,
    ) -> None:
        from cmcr import tasks
        from cmcr.pipelines import load_pipelines

        recipe = load_pipelines().named(pipeline)
        flags = {"query": query, "regions": regions, "truth": tuple(truth or ())}
        done = tasks.sounds(recipe, store or recipe.store, task, flags, connection)
        show(list(done), as_json)

    command.__name__, command.__doc__ = task, does
    return command


localization = _about_scenes("localization", "Find the region of a picture that makes a sound.")
counterfactual = _about_scenes(
    "counterfactual", "Tell sounds whose source is in the picture from silent and absent ones."
)
