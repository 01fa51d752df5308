"""`cmcr evaluate zero-shot`, `localization` and `counterfactual`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from cmcr.commands.options import Json, NoRecipe, Recipe, Store
from cmcr.commands.output import say, show

if TYPE_CHECKING:
    from cmcr.tasks import Task

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
    no_pipeline: NoRecipe = False,
    as_json: Json = False,
) -> None:
    """Classify items by the prompts nearest to them, without training examples."""
    flags = {"query": query, "gallery": gallery, "classes": classes, "templates": templates}
    asked = Asked(pipeline, no_pipeline, store, connection)
    _evaluate("zero_shot", asked, [query, gallery], flags, as_json)


class Asked(NamedTuple):
    """The flags that say where to work."""

    pipeline: str | None
    no_pipeline: bool
    store: Path | None
    connection: str | None


def _evaluate(
    task: "Task", asked: Asked, places: list[str | None], flags: dict[str, Any], as_json: bool
) -> None:
    from cmcr.ground import ground_to_measure, recipes
    from cmcr.tasks import choose_jobs, do_jobs

    pipelines = recipes(asked.pipeline, asked.no_pipeline)
    ground = ground_to_measure(
        pipelines, asked.pipeline, asked.store, asked.connection, places, task
    )
    jobs = choose_jobs(ground, task, flags, asked.connection)
    say(ground.line("evaluate", *dict.fromkeys(job.connection.name for job in jobs)))
    show(list(do_jobs(ground.store, task, jobs)), as_json)


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
        no_pipeline: NoRecipe = False,
        as_json: Json = False,
    ) -> None:
        flags = {"query": query, "regions": regions, "truth": tuple(truth or ())}
        asked = Asked(pipeline, no_pipeline, store, connection)
        _evaluate(task, asked, [query, regions], flags, as_json)

    command.__name__, command.__doc__ = task, does
    return command


localization = _about_scenes("localization", "Find the region of a picture that makes a sound.")
counterfactual = _about_scenes(
    "counterfactual", "Tell sounds whose source is in the picture from silent and absent ones."
)
