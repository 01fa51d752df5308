"""The tasks beside retrieval as the command line runs them: flags, else a recipe.

    jobs = choose_jobs(ground, "zero_shot", flags, connection)      # flags beat the recipe
    for done in do_jobs(ground.store, "zero_shot", jobs): ...
    for done in run_tasks(ground): ...                              # all of a recipe

Nothing heavy is imported before a task needs it.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from cmcr.cli.recipes.ground import Ground, find_connection, find_key
from cmcr.cli.recipes.pipelines import SoundsSection, ZeroShotSection, parse_place
from cmcr.errors import UsageError

if TYPE_CHECKING:
    from cmcr.evaluate import Evaluated


Task = Literal["zero_shot", "localization", "counterfactual"]
Section = ZeroShotSection | SoundsSection
Flags = Mapping[str, Any]  # fields of a section, None or empty where not given

KINDS: dict[Task, type[Section]] = {
    "zero_shot": ZeroShotSection,
    "localization": SoundsSection,
    "counterfactual": SoundsSection,
}


class Job(NamedTuple):
    """What to evaluate, and the folder of the connection to do it with."""

    section: Section
    connection: Path


def run_tasks(ground: Ground) -> Iterator["Evaluated"]:
    """Every task of the recipe but retrieval, skipping what is up to date."""
    for task in KINDS:
        if ground.recipe and getattr(ground.recipe.evaluate, task):
            yield from do_jobs(ground.store, task, choose_jobs(ground, task, {}))


def choose_jobs(
    ground: Ground, task: Task, flags: Flags, connection: str | None = None
) -> list[Job]:
    """The sections of the recipe with `flags` in them, or the one that flags make.

    Raises UsageError when they name nothing, or there is no such connection.
    """
    given = {field: value for field, value in flags.items() if value}
    jobs = []
    for section in _sections(ground, task, given):
        places = [section.query, _gallery(section)]
        spaces = {parse_place(place)[0] for place in places}
        folder = find_connection(ground, connection or section.connection, spaces)
        jobs.append(Job(section, folder))
    return list(dict.fromkeys(jobs))


def _sections(ground: Ground, task: Task, given: Flags) -> Sequence[Section]:
    named: Sequence[Section] = getattr(ground.recipe.evaluate, task) if ground.recipe else ()
    if named:
        return [section.model_copy(update=given) for section in named]
    kind = KINDS[task]
    required = [name for name, field in kind.model_fields.items() if field.is_required()]
    if missing := [name for name in required if name not in given]:
        raise UsageError(
            f"nothing says what to evaluate: no {' and no '.join(missing)}",
            where=ground.store,
            fix=f"give {' and '.join(f'--{name}' for name in required)}, or a recipe that does",
        )
    return [kind(**given)]


def _gallery(section: Section) -> str:
    return section.gallery if isinstance(section, ZeroShotSection) else section.regions


def do_jobs(store: Path, task: Task, jobs: Sequence[Job]) -> Iterator["Evaluated"]:
    """Classify without training examples, locate sounds, or tell those not in their picture.

    Raises UsageError when there is no such dataset, class or truth.
    """
    from cmcr.evaluate import evaluate_counterfactual, evaluate_localization, evaluate_zero_shot

    for section, folder in jobs:
        query, gallery = find_key(store, section.query), find_key(store, _gallery(section))
        if isinstance(section, ZeroShotSection):
            lists = {"classes": section.classes, "templates": section.templates}
            yield evaluate_zero_shot(store, folder, query, gallery, **lists)
        elif task == "localization":
            yield evaluate_localization(store, folder, query, gallery, section.truth)
        else:
            yield evaluate_counterfactual(store, folder, query, gallery, section.truth)
