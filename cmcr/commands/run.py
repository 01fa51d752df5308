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
    """Extract, connect and evaluate a whole recipe, skipping what is up to date."""
    from cmcr.connect import read_config
    from cmcr.pipelines import load_pipelines
    from cmcr.stages import choose_pairs, connect_spaces, evaluate_pairs, extract_datasets

    pipelines = load_pipelines()
    recipe = pipelines.named(pipeline)
    place = store or recipe.store
    for section in recipe.extract:
        for summary in extract_datasets(section, place, device):
            say(f"extract   {summary}")
    config = read_config(recipe.connect.config, where="pipelines.yaml")
    connected = connect_spaces(config, recipe.connect.name, place, None, device)
    say(f"connect   {connected}")
    pairs, folder = choose_pairs(recipe, place, None, None, None)
    show(list(evaluate_pairs(pairs, folder, place)), as_json)
