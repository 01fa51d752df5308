"""`cmcr evaluate` and its tasks, one function each."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from cmcr.cli.console import Hubness, Hubs, Json, NoRecipe, Recipe, Store, Where, say, show

if TYPE_CHECKING:
    from cmcr.cli.recipes.tasks import Task


Connection = Annotated[
    str | None, typer.Option(help="Its name or folder.", show_default="the recipe's")
]
Query = Annotated[
    str | None, typer.Option(metavar="SPACE/MODALITY[:DATASET]", help="What searches.")
]
Gallery = Annotated[
    str | None, typer.Option(metavar="SPACE/MODALITY[:DATASET]", help="What is searched.")
]


def retrieval(
    connection: Connection = None,
    query: Query = None,
    gallery: Gallery = None,
    query_where: Where = None,
    gallery_where: Where = None,
    index: Annotated[
        str | None,
        typer.Option(help="FAISS factory string: an index to measure beside the exact search."),
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(metavar="4G", help="Choose that index: so large at most.")
    ] = None,
    max_query_time: Annotated[
        str | None, typer.Option(metavar="10ms", help="What a query through it may take.")
    ] = None,
    hubness: Hubness = Hubs.none,
    store: Store = None,
    pipeline: Recipe = None,
    no_pipeline: NoRecipe = False,
    as_json: Json = False,
) -> None:
    """Search one modality in another, both ways, beside chance and the closed forms."""
    from cmcr.cli.recipes.ground import ground_to_measure, recipes
    from cmcr.cli.recipes.searches import choose_index, choose_searches, evaluate_each, names
    from cmcr.evaluate import evaluate_index, evaluate_retrieval, weak_spots

    choice = choose_index(index, max_memory, max_query_time)
    pipelines = recipes(pipeline, no_pipeline)
    ground = ground_to_measure(pipelines, pipeline, store, connection, [query, gallery])
    searches = choose_searches(ground, connection, query, gallery)
    place = ground.store
    say(ground.line("evaluate", *names(searches)))
    where = (query_where or [], gallery_where or [])
    hubs = hubness.value
    done = list(evaluate_each(evaluate_retrieval, searches, place, *where, hubness=hubs))
    if choice:
        measure_index = partial(evaluate_index, choice=choice)
        indexes = list(evaluate_each(measure_index, searches, place, *where, hubness=hubs))
    else:
        indexes = []
    show([*done, *indexes], as_json)
    if not as_json:
        print(weak_spots([row for evaluated in done for row in evaluated.rows]))


def gap(
    connection: Connection = None,
    query: Query = None,
    gallery: Gallery = None,
    query_where: Where = None,
    gallery_where: Where = None,
    store: Store = None,
    pipeline: Recipe = None,
    no_pipeline: NoRecipe = False,
    as_json: Json = False,
) -> None:
    """Distance, alignment and uniformity of two modalities, before and after connecting."""
    from cmcr.cli.recipes.ground import ground_to_measure, recipes
    from cmcr.cli.recipes.searches import choose_searches, evaluate_each, names
    from cmcr.evaluate import evaluate_gap

    pipelines = recipes(pipeline, no_pipeline)
    ground = ground_to_measure(pipelines, pipeline, store, connection, [query, gallery])
    searches = choose_searches(ground, connection, query, gallery)
    place = ground.store
    say(ground.line("evaluate", *names(searches)))
    where = (query_where or [], gallery_where or [])
    done = evaluate_each(evaluate_gap, searches, place, *where)
    show(list(done), as_json)


Place = "SPACE/MODALITY[:DATASET]"

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
    from cmcr.cli.recipes.ground import ground_to_measure, recipes
    from cmcr.cli.recipes.tasks import choose_jobs, do_jobs

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
