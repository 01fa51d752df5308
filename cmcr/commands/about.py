"""What is installed: `cmcr encoders`, `doctor`, `pipelines`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from cmcr.commands.options import Json
from cmcr.commands.output import answer, print_table
from cmcr.errors import CmcrError, UsageError


def encoders(
    check: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Try on this encoder what extraction promises, a line a check."
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights for --check, in the publisher's own layout.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the encoders that are installed, cmcr's own and other packages', or check one."""
    from cmcr.extract import encoder_spec, registered

    if check is not None:
        _check(check, checkpoint, as_json)
        return
    if checkpoint is not None:
        raise UsageError("--checkpoint goes with --check", cure="name an encoder: --check NAME")
    lines: list[dict[str, Any]] = []
    for name, entry in registered().items():
        package = entry.dist.name if entry.dist else "?"
        try:
            spec = encoder_spec(name)
        except CmcrError as problem:
            lines.append({"encoder": name, "package": package, "problem": problem.what})
            continue
        lines.append(
            {
                "encoder": name,
                "modalities": ", ".join(spec.modalities),
                "dim": spec.dim,
                "licence": spec.licence,
                "weights": _weights(spec.weights_present),
                "package": package,
            }
        )
    answer({"encoders": lines}) if as_json else print_table(lines)


def _check(name: str, checkpoint: Path | None, as_json: bool) -> None:
    from dataclasses import asdict

    from cmcr.extract.contract import check_encoder

    checks = []
    for done in check_encoder(name, checkpoint=checkpoint):
        checks.append(done)
        if not as_json:
            state = "ok    " if done.problem is None else "FAILED"
            print(f"{state}  {done.name}: {done.problem or done.seen}", flush=True)
    if as_json:
        answer({"encoder": name, "checks": [asdict(done) for done in checks]})
    if any(done.problem for done in checks):
        raise typer.Exit(1)


def _weights(present: Callable[[], bool] | None) -> str:
    if present is None:
        return "named after the colon"
    return "present" if present() else "not here"


def doctor(as_json: Json = False) -> None:
    """Say what this machine can run, and what to do about what is missing."""
    from cmcr.doctor import examine

    lines = [finding._asdict() for finding in examine()]
    answer({"findings": lines}) if as_json else print_table(lines)


def pipelines(as_json: Json = False) -> None:
    """List the recipes that `cmcr run` knows, and say which do not fit."""
    from cmcr.pipelines import load_pipelines

    loaded = load_pipelines()
    lines: list[dict[str, Any]] = [
        {
            "pipeline": f"{name} (default)" if name == loaded.default else name,
            "encoders": ", ".join(section.encoder for section in recipe.extract),
            "via": ", ".join(one.via or "" for one in recipe.connect),
            "store": str(recipe.store),
            "what": recipe.description,
        }
        for name, recipe in loaded.pipelines.items()
    ]
    lines += [{"pipeline": name, "problem": why.what} for name, why in loaded.problems.items()]
    answer({"pipelines": lines}) if as_json else print_table(lines)
