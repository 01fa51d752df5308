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
    from cmcr.pipelines import load_pipelines
    from cmcr.stages import choose_searches, connect_spaces, evaluate_each, extract_datasets
    from cmcr.tasks import run_tasks

    recipe = load_pipelines().named(pipeline)
    place = store or recipe.store
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
    searches = choose_searches(recipe, place, None, None, None)
    done = [
        *evaluate_each(evaluate_retrieval, searches, place),
        *run_tasks(recipe, place),
        *evaluate_each(evaluate_gap, searches, place),
    ]
    show(done, as_json)
    say(f"to look at it all: cmcr report {place}")
