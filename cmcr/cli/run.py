"""`cmcr run` and `cmcr init`."""

from pathlib import Path
from typing import Annotated

import typer

from cmcr.cli.terminal.console import INCOMPLETE, answer, print_table, say, show, stop_if_missed
from cmcr.cli.terminal.options import Device, Json, MaxFailures, Store


def run(
    pipeline: Annotated[str | None, typer.Argument(help="A recipe.")] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ENCODER=FILE",
            help="Weights of one of its encoders, in the publisher's own layout. Can be repeated.",
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Say what is there, what is missing and what it takes: stop."),
    ] = False,
    max_failures: MaxFailures = None,
    store: Store = None,
    device: Device = "auto",
    update: Annotated[
        bool,
        typer.Option(
            "--update", help="Follow sources that changed, as `cmcr extract --update` does."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Extract, connect and evaluate a whole recipe, skipping what is up to date.

    All that it needs is looked at first. What is missing is listed, what hangs on it is skipped,
    the rest is done, and the exit code is 3. What the recipe connects follows it: where it or its
    data changed, its connections are made anew, the old ones kept until then. An imported
    connection of that name stays.
    """
    from cmcr.cli.check.look import look
    from cmcr.cli.recipes.ground import Ground
    from cmcr.cli.recipes.pipelines import load_pipelines
    from cmcr.cli.recipes.searches import choose_searches
    from cmcr.cli.recipes.stages import connect_spaces, extract_datasets
    from cmcr.cli.recipes.tasks import do_jobs, run_tasks
    from cmcr.connect import can_be_made_again
    from cmcr.extract import workers_kept

    pipelines = load_pipelines()
    recipe = pipelines.named(pipeline).with_checkpoints(checkpoint or [])
    place = store or recipe.store
    ground = Ground(pipeline or pipelines.default, recipe, place)
    say(ground.line("run", *(section.name for section in recipe.connect)))
    outlook = look(ground, device, update=update)
    code = INCOMPLETE if outlook.lacks else 0
    if check:
        if as_json:
            answer(outlook.as_dict())
        else:
            print_table([one.as_line() for one in outlook.datasets])
            print(outlook)
        raise typer.Exit(code)
    say(f"check     {outlook}")
    able = outlook.recipe
    for one in outlook.datasets:
        if one.settled and one.away:
            say(f"extract   {one.key}  {one.total:,} items, finished  its source is away")
    with workers_kept():
        for section in able.extract:
            for summary in extract_datasets(
                section,
                place,
                device,
                max_failures=max_failures,
                opened=outlook.opened,
                settled={one.key for one in outlook.datasets if one.settled},
                update=update,
            ):
                say(f"extract   {summary}", "extracted", summary=summary.as_dict())
    for connection in able.connect:
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
    ground = ground._replace(recipe=recipe.model_copy(update={"evaluate": able.evaluate}))
    searches = choose_searches(ground, {}) if able.evaluate.retrieval else []
    done = [
        *do_jobs(ground, "retrieval", searches),
        *run_tasks(ground),
        *do_jobs(ground, "gap", searches),
    ]
    show(done, as_json, **outlook.missing())
    if outlook.lacks:
        say(f"incomplete: {outlook.told()}")
    say(f"to look at it all: cmcr report {place}")
    stop_if_missed(done)
    raise typer.Exit(code)


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
    from cmcr.cli.recipes.pipelines import FILE, read_sources
    from cmcr.cli.recipes.starter import find_sources, starter, usual_encoders
    from cmcr.embeddings import Key
    from cmcr.errors import UsageError
    from cmcr.files import write_text

    Key(name, "text", name)  # raises for what cannot be a name
    target = Path(FILE)
    if target.exists():
        raise UsageError(
            "there is a file of recipes already, which is left as it is",
            where=target.resolve(),
            fix="write the recipe into it, or work in another folder",
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
