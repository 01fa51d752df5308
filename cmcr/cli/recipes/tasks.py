"""What `cmcr evaluate` and `cmcr run` measure: flags, else a recipe; one job after another.

    jobs = choose_jobs(ground, "zero_shot", flags, connection)      # flags beat the recipe
    for done in do_jobs(ground, "zero_shot", jobs): ...             # Evaluated, or Missed
    for done in run_tasks(ground): ...                              # all of a recipe

What cannot be measured hinders no other: it is a Missed, which says why. `searches.py` chooses for
retrieval and gap. Nothing heavy is imported before a task needs it.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from cmcr.cli.recipes.ground import Ground, find_connection, find_key
from cmcr.cli.recipes.pipelines import (
    Measured,
    SoundsSection,
    ZeroShotSection,
    parse_place,
)
from cmcr.errors import CmcrError, UsageError

if TYPE_CHECKING:
    from cmcr.embeddings import Key
    from cmcr.evaluate import Evaluated


Task = Literal["zero_shot", "localization", "counterfactual"]
Flags = Mapping[str, Any]  # fields of a section, None or empty where not given
Section = TypeVar("Section", bound=Measured)

KINDS: dict[Task, type[ZeroShotSection | SoundsSection]] = {
    "zero_shot": ZeroShotSection,
    "localization": SoundsSection,
    "counterfactual": SoundsSection,
}


class Job(NamedTuple):
    """What to measure, and the folder of the connection to do it with."""

    section: Measured
    connection: Path


class Missed(NamedTuple):
    """What could not be measured, and why."""

    task: str
    section: Measured
    error: CmcrError

    def __str__(self) -> str:
        query, gallery = self.section.places
        return f"left out: {self.task.replace('_', '-')} of {query} and {gallery}: {self.error}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        query, gallery = self.section.places
        told = {"what": self.error.what, "where": self.error.where, "fix": self.error.fix}
        return {"task": self.task, "query": query, "gallery": gallery, **told}


def names(jobs: Sequence[Job | Missed]) -> list[str]:
    """The connections that are measured, each once."""
    folders = [job.connection for job in jobs if isinstance(job, Job)]
    return list(dict.fromkeys(folder.resolve().name for folder in folders))


def run_tasks(ground: Ground) -> Iterator["Evaluated | Missed"]:
    """Every task of the recipe but retrieval, skipping what is up to date."""
    for task in KINDS:
        if ground.recipe and getattr(ground.recipe.evaluate, task):
            yield from do_jobs(ground, task, choose_jobs(ground, task, {}))


def choose_jobs(
    ground: Ground, task: Task, flags: Flags, connection: str | None = None
) -> list[Job | Missed]:
    """The sections of the recipe with `flags` in them, or the one that flags make.

    Raises UsageError when they name nothing. Where there is no such connection it is a Missed.
    """
    given = given_of(flags)
    jobs: dict[Job | Missed, None] = {}
    for section in _sections(ground, task, given):
        spaces = {parse_place(place)[0] for place in section.places}
        try:
            folder = find_connection(ground, connection or section.connection, spaces)
        except CmcrError as error:
            jobs[Missed(task, section, error)] = None
        else:
            jobs[Job(section, folder)] = None
    return list(jobs)


def given_of(flags: Flags) -> dict[str, Any]:
    """The flags that are given, as a section holds them."""
    return {
        field: tuple(value) if isinstance(value, list) else value
        for field, value in flags.items()
        if value
    }


def _sections(ground: Ground, task: Task, given: Flags) -> Sequence[Measured]:
    named: Sequence[Measured] = getattr(ground.recipe.evaluate, task) if ground.recipe else ()
    kind = KINDS[task]
    if chosen := beaten(named, given):
        return chosen
    required = ("query", kind.searched)
    if missing := [name for name in required if name not in given]:
        raise UsageError(
            f"nothing says what to evaluate: no {' and no '.join(missing)}",
            where=ground.store,
            fix=f"give {' and '.join(f'--{name}' for name in required)}, or a recipe that does",
        )
    return [kind(**given)]


def beaten(sections: Sequence[Section], given: Flags) -> list[Section]:
    """The sections with what is given in them.

    Of those only the ones about the datasets that are given, where there are such. None where both
    datasets are given and no section is about them.
    """
    sides = {"query", *(section.searched for section in sections)} & given.keys()
    same = [one for one in sections if all(getattr(one, side) == given[side] for side in sides)]
    if len(sides) > 1 and not same:
        return []
    return [section.with_flags(given) for section in same or sections]


def do_jobs(
    ground: Ground,
    task: Literal["retrieval", "gap"] | Task,
    jobs: Sequence[Job | Missed],
    **options: Any,
) -> Iterator["Evaluated | Missed"]:
    """The results of each job, or why there are none. `options` go to the task."""
    from cmcr import evaluate

    work = getattr(evaluate, f"evaluate_{task}")
    for job in jobs:
        if isinstance(job, Missed):
            yield job
            continue
        try:
            done = work(
                *arguments(ground, job), **selections(job), **job.section.options, **options
            )
        except CmcrError as error:
            done = Missed(task, job.section, error)
        yield done


def arguments(ground: Ground, job: Job) -> tuple[Path, Path, "Key", "Key"]:
    """What every task is told of a job. Raises UsageError for a dataset that is not there."""
    query, gallery = (_find(ground, place) for place in job.section.places)
    return ground.store, job.connection, query, gallery


def selections(job: Job) -> dict[str, Any]:
    """Which rows of the two datasets count, as every task takes it."""
    from cmcr.evaluate import parse_where

    names = ("query_where", "gallery_where")
    return dict(zip(names, map(parse_where, job.section.filters), strict=True))


def _find(ground: Ground, place: str) -> "Key":
    try:
        return find_key(ground.store, place)
    except UsageError as error:
        if made := _what_makes(ground, place):
            raise UsageError(error.what, where=error.where, fix=made) from error
        raise


def _what_makes(ground: Ground, place: str) -> str | None:
    """The command of the recipe that makes a dataset, and what it reads."""
    name, recipe, store = ground
    if recipe is None:
        return None
    for section in recipe.extract:
        for source in section.sources:
            if (section.space, source.modality, source.dataset) == parse_place(place):
                here = "" if store == recipe.store else f" --store {store}"
                named = "" if section.space == section.encoder else f" --space {section.space}"
                command = f"cmcr extract --encoder {section.encoder}{named} --pipeline {name}{here}"
                return f"`{command}` makes it, of {source.where}"
    return None
