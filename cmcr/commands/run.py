"""`cmcr run`."""

from typing import Annotated

import typer

from cmcr.commands.options import Device, Json, Store
from cmcr.commands.output import say, show


def run(
    pipeline: Annotated[str | None, typer.Argument(help="A recipe.")] = None,
    store: Store = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Extract, connect and evaluate a whole recipe, skipping what is up to date.

    What the recipe connects follows it: where it or its data changed, its connections are made
    anew, the old ones kept until then. An imported connection of that name stays.
    """
    from cmcr.connect import can_be_made_again
    from cmcr.evaluate import evaluate_gap, evaluate_retrieval
    from cmcr.ground import Ground
    from cmcr.pipelines import load_pipelines
    from cmcr.searches import choose_searches, evaluate_each
    from cmcr.stages import connect_spaces, extract_datasets
    from cmcr.tasks import run_tasks

    pipelines = load_pipelines()
    recipe = pipelines.named(pipeline)
    place = store or recipe.store
    ground = Ground(pipeline or pipelines.default, recipe, place)
    say(ground.line("run", *(section.name for section in recipe.connect)))
    for section in recipe.extract:
        for summary in extract_datasets(section, place, device):
            say(f"extract   {summary}")
    for connection in recipe.connect:
        connected = connect_spaces(
            connection.config,
            connection.name,
            place,
            None,
            device,
            replace=can_be_made_again(place / "connections" / connection.name),
            say=lambda line: say(f"connect   {line}"),
        )
        say(f"connect   {connected}")
    searches = choose_searches(ground, None, None, None) if recipe.evaluate.retrieval else []
    done = [
        *evaluate_each(evaluate_retrieval, searches, place),
        *run_tasks(ground),
        *evaluate_each(evaluate_gap, searches, place),
    ]
    show(done, as_json)
    say(f"to look at it all: cmcr report {place}")
