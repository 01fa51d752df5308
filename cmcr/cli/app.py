"""The command line.

    cmcr run                            everything, on the world that ships with the package
    cmcr extract --encoder clap         media to embedding shards
    cmcr connect --via text             shards to projectors
    cmcr evaluate retrieval             projectors to numbers

A flag beats the recipe (`./pipelines.yaml`, else the packaged one), the recipe beats the default.
Results go to stdout; progress and messages go to stderr. With `--json` stdout is one document, that
of an error too. docs/cli.md lists the commands and the exit codes. What a command needs is imported
when it runs, so `cmcr --help` is quick.
"""

import errno
import logging
import os
import signal
import sys
from typing import Annotated, Any

import typer

from cmcr import __version__
from cmcr.cli.about import doctor, encoders, pipelines, upgrade
from cmcr.cli.connect import connect, import_connection, migrate, project
from cmcr.cli.evaluate import counterfactual, gap, localization, retrieval, zero_shot
from cmcr.cli.extract import extract, plan, prepare
from cmcr.cli.log.lines import end, tell
from cmcr.cli.log.option import Log, begin_by_words, logged, remember
from cmcr.cli.run import init, run
from cmcr.cli.serve import serve
from cmcr.cli.store import import_, info, merge, remove, rename, report, search, verify
from cmcr.cli.terminal.console import print_json, say, shown
from cmcr.errors import CmcrError

STOPPED = 130
# What to do about a file or a folder that the system refuses.
_CURES = {
    errno.ENOSPC: "make room, then run the same command again: it goes on where it stopped",
    errno.EDQUOT: "make room, then run the same command again: it goes on where it stopped",
    errno.EROFS: "name a place that can be written to",
    errno.ENOENT: "see that it is spelt right, and that the folder is there",
    errno.EACCES: "make it accessible to you, or name another place",
    errno.EPERM: "make it accessible to you, or name another place",
    errno.ENOTDIR: "a file lies where a folder is needed: name another place",
    errno.EEXIST: "a file lies where a folder is needed: name another place",
    errno.EISDIR: "a folder lies where a file is needed: name another place",
    errno.ENOLCK: "the file system keeps no locks: embed by a plan (`cmcr plan`), or elsewhere",
    errno.EMFILE: "allow more open files: ulimit -n 65536",
}

app = typer.Typer(
    name="cmcr",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich would take longer than everything else in --help
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"cmcr {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
    log: Log = None,
) -> None:
    """Connect pretrained multi-modal contrastive representations without paired data."""
    remember(log)


for main_command in (init, prepare, run, plan, extract, connect, search, serve):
    app.command()(logged(main_command))

evaluate = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@evaluate.callback()
def measure(log: Log = None) -> None:
    """Measure how well a connection works."""
    if log is not None:
        remember(log)


for task in (retrieval, gap, zero_shot, localization, counterfactual):
    evaluate.command()(logged(task, f"evaluate {task.__name__.replace('_', '-')}"))
app.add_typer(evaluate, name="evaluate")

app.command("import")(logged(import_))
app.command("import-connection")(logged(import_connection))
for command in (
    migrate, report, project, info, verify, rename, remove, merge, upgrade, encoders, doctor,
    pipelines,
):  # fmt: skip
    app.command()(logged(command))


def main() -> None:
    """Run the command line; a mistake that a user can mend ends without a traceback.

    So does one of the system's about a file: a full disk, a folder that cannot be written to. With
    `--json` an error is a document too: {"error": {"what", "where", "fix", "type"}}.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C
    remember(None)
    code: Any = 1
    try:
        code = _run()
    except SystemExit as ended:
        code = ended.code
        raise
    finally:
        end(code if isinstance(code, int) else int(code is not None))
    sys.exit(code)


def _run() -> Any:
    """The exit code of the command, its error told."""
    try:
        code = app(standalone_mode=False)
    except CmcrError as error:
        _tell(error, type(error).__name__)
        return error.exit_code
    except typer.TyperException as error:  # the line cannot be parsed
        try:
            begin_by_words(sys.argv[1:], getattr(error, "ctx", None))
        except OSError as refused:
            print(shown(f"error: no log: {_told(refused)}"), file=sys.stderr)
        error.show()  # type: ignore[attr-defined]
        path = getattr(getattr(error, "ctx", None), "command_path", "cmcr")
        _answer(error.format_message(), path, f"{path} --help", "UsageError")
        return error.exit_code
    except Exception as error:
        if isinstance(error, OSError) and error.errno in errno.errorcode:
            told = _told(error)
            _tell(told, type(error).__name__)
            return told.exit_code
        _answer(str(error), None, None, type(error).__name__)
        raise
    if code == STOPPED:
        say("stopped; the same command goes on where it stopped")
        _answer("stopped", None, "the same command goes on where it stopped", "KeyboardInterrupt")
    return code


def _tell(error: CmcrError, kind: str) -> None:
    print(shown(f"error: {error}"), file=sys.stderr, flush=True)
    _answer(error.what, error.where, error.fix, kind)


def _told(error: OSError) -> CmcrError:
    """The system's words for `error`, and the file; Arrow has the file in its own words only."""
    assert error.errno is not None
    words = os.strerror(error.errno)
    files = [os.fsdecode(file) for file in (error.filename, error.filename2) if file is not None]
    if not files and error.strerror and error.strerror != words:
        words = f"{words}: {error.strerror.partition('. Detail')[0]}"
    return CmcrError(words, where=" → ".join(files) or None, fix=_CURES.get(error.errno))


def _answer(what: str, where: str | None, fix: str | None, kind: str) -> None:
    parts = {"what": what, "where": where, "fix": fix, "type": kind}
    tell(what, logging.ERROR, "error", **parts)
    if "--json" in sys.argv:
        print_json({"error": parts})
