"""The tasks beside retrieval as the command line runs them: flags, else a recipe.

    for done in zero_shot(recipe, store, flags, connection): ...    # flags beat the recipe
    for done in run_tasks(recipe, store): ...                       # all of a recipe

Nothing heavy is imported before a task needs it.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from cmcr.errors import UsageError
from cmcr.pipelines import Pipeline, SoundsSection, ZeroShotSection
from cmcr.stages import find_connection, find_key

if TYPE_CHECKING:
    from cmcr.evaluate.reuse import Evaluated

Section = TypeVar("Section", ZeroShotSection, SoundsSection)
Flags = Mapping[str, Any]  # fields of a section, None or empty where not given


def run_tasks(recipe: Pipeline, store: Path) -> Iterator["Evaluated"]:
    """Every task of `recipe` but retrieval, skipping what is up to date."""
    wanted = recipe.evaluate
    if wanted.zero_shot:
        yield from zero_shot(recipe, store, {})
    if wanted.localization:
        yield from sounds(recipe, store, "localization", {})
    if wanted.counterfactual:
        yield from sounds(recipe, store, "counterfactual", {})


def zero_shot(
    recipe: Pipeline, store: Path, flags: Flags, connection: str | None = None
) -> Iterator["Evaluated"]:
    """Classify without training examples what flags and recipe name.

    Raises UsageError when they name nothing, or there is no such connection, dataset or class.
    """
    from cmcr.evaluate import evaluate_zero_shot

    for section in _sections(ZeroShotSection, recipe.evaluate.zero_shot, flags):
        folder = find_connection(recipe, store, connection or section.connection)
        yield evaluate_zero_shot(
            store,
            folder,
            find_key(store, section.query),
            find_key(store, section.gallery),
            classes=section.classes,
            templates=section.templates,
        )


def sounds(
    recipe: Pipeline,
    store: Path,
    task: Literal["localization", "counterfactual"],
    flags: Flags,
    connection: str | None = None,
) -> Iterator["Evaluated"]:
    """Locate the sounds that flags and recipe name, or tell those that are not in their picture.

    Raises UsageError when they name nothing, or there is no such connection, dataset or truth.
    """
    from cmcr.evaluate import evaluate_counterfactual, evaluate_localization

    evaluate = evaluate_localization if task == "localization" else evaluate_counterfactual
    for section in _sections(SoundsSection, getattr(recipe.evaluate, task), flags):
        folder = find_connection(recipe, store, connection or section.connection)
        query, regions = find_key(store, section.query), find_key(store, section.regions)
        yield evaluate(store, folder, query, regions, section.truth)


def _sections(kind: type[Section], named: Sequence[Section], flags: Flags) -> list[Section]:
    """The sections `named` by the recipe with `flags` in them, or the one that flags make."""
    given = {field: value for field, value in flags.items() if value}
    if named:
        return list(dict.fromkeys(section.model_copy(update=given) for section in named))
    required = [name for name, field in kind.model_fields.items() if field.is_required()]
    if missing := [name for name in required if name not in given]:
        raise UsageError(
            f"nothing says what to evaluate: no {' and no '.join(missing)}",
            cure=f"give {' and '.join(f'--{name}' for name in required)}, or a recipe that does",
        )
    return [kind(**given)]
