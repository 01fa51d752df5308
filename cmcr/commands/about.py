"""What is installed: `cmcr encoders`, `doctor`, `pipelines`."""

from typing import Any

from cmcr.commands.options import Json
from cmcr.commands.output import answer, print_table
from cmcr.errors import CmcrError


def encoders(as_json: Json = False) -> None:
    """List the encoders that are installed, cmcr's own and other packages'."""
    from cmcr.extract import encoder_spec, registered

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
                "weights": "present" if spec.weights_present() else "not here",
                "package": package,
            }
        )
    answer({"encoders": lines}) if as_json else print_table(lines)


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
