"""The command line.

    cmcr run                            everything, on the world that ships with the package
    cmcr extract --encoder clap         media to embedding shards
    cmcr connect --via text             shards to projectors
    cmcr evaluate retrieval             projectors to numbers

A flag beats the recipe (`./pipelines.yaml`, else the packaged one), the recipe beats the default.
Results go to stdout; progress and messages go to stderr. Exit codes: 0 done, 1 failed, 2 wrong
usage or configuration. What a command needs is imported when it runs, so `cmcr --help` is quick.
"""

import sys

import typer

from cmcr.commands.about import doctor, encoders, pipelines
from cmcr.commands.connect import connect
from cmcr.commands.connections import import_connection, project
from cmcr.commands.evaluate import gap, retrieval
from cmcr.commands.evaluate_tasks import counterfactual, localization, zero_shot
from cmcr.commands.extract import extract
from cmcr.commands.output import say
from cmcr.commands.report import report
from cmcr.commands.run import run
from cmcr.commands.stores import import_, info, verify
from cmcr.commands.upgrade import upgrade
from cmcr.errors import CmcrError

app = typer.Typer(
    name="cmcr",
    help="Connect pretrained multi-modal contrastive representations without paired data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich would take longer than everything else in --help
)
for main_command in (run, extract, connect):
    app.command()(main_command)

evaluate = typer.Typer(
    help="Measure how well a connection works.", no_args_is_help=True, rich_markup_mode=None
)
evaluate.command()(retrieval)
evaluate.command()(gap)
evaluate.command()(zero_shot)
evaluate.command()(localization)
evaluate.command()(counterfactual)
app.add_typer(evaluate, name="evaluate")

app.command("import")(import_)
app.command("import-connection")(import_connection)
for command in (report, project, info, verify, upgrade, encoders, doctor, pipelines):
    app.command()(command)


def main() -> None:
    """Run the command line; a mistake that a user can mend ends without a traceback."""
    try:
        app()
    except CmcrError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("stopped; the same command goes on where it stopped")
        sys.exit(130)
