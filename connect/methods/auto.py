"""`--method auto`: the best connection that the pairs allow; and a named one beside closed forms.

FOLDER/methods.json      {"chosen": model, "methods": {model: {"hit_rate@1": …, "mrr": …,
                         "log_likelihood": …, "pairs": held out,
                         "behind": standard errors behind the closed form that is preferred,
                         "told": whether that is worth a warning}}}
FOLDER/methods/MODEL/    what each trained method left on its way

Closed forms are cross-validated, and `cca` is preferred to what is not clearly better. Training
sees the pairs of all folds but one, and a trained method is taken where that one shows it to be
clearly better than the closed form; with few pairs that is done for several folds. What is taken is
fitted again on all pairs. With so few pairs that a fold shows nothing no training is tried; with
fewer, or nothing held out, `cca` is taken, and that is told. A named method is what it is, but
where a closed form is clearly better on the same held-out pairs, that is told.
"""

import json
import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from cmcr.connect.connection.connection import Connection
from cmcr.connect.connection.record import Record
from cmcr.connect.distributed import rank
from cmcr.connect.methods.problem import Problem
from cmcr.connect.methods.solve import (
    Judge,
    Solved,
    closed_forms,
    cross_validated,
    fit,
    joined,
    judged,
    on_held_out,
    solve,
    start,
    with_schedule,
)
from cmcr.connect.training.checkpoint import CHECKPOINT
from cmcr.connect.training.log import TRAINING_LOG
from cmcr.connect.training.loop import NotFiniteError
from cmcr.connect.training.validation import (
    DECIDES,
    FEWEST,
    Validated,
    behind,
    clearly_worse,
)
from cmcr.errors import StoreError
from cmcr.files import write_json

log = logging.getLogger(__name__)

METHODS = "methods.json"
WARNED = 4  # standard errors behind a closed form, of a method that was asked for by its name
PREFERRED = "cca"
SEEN = 256  # pairs that a trained method is judged by, where there are as many
FINAL = "final"  # of the folders in METHODS: training on all pairs


class Tried(NamedTuple):
    """A method, what it did with pairs that it did not see, and what the preferred one did."""

    problem: Problem
    validated: Validated
    beside: Tensor  # `Validated.each` of the preferred closed form, for the same pairs
    epoch: int = 0  # the one to stop at, of a trained method

    @property
    def summary(self) -> dict[str, float]:
        """For methods.json."""
        pairs, late = len(self.validated.items), behind(self.validated.each, self.beside)
        told = clearly_worse(self.validated.each, self.beside, WARNED)
        return self.validated.scores | {"pairs": pairs, "behind": late, "told": told}


def choose(problem: Problem, folder: Path, tensorboard: bool = False) -> Connection:
    """The connection of the method that is taken, fitted on all pairs.

    It is PREFERRED where nothing may be held out, or there is too little to hold out.
    """
    whole = problem.on(problem.data.whole)
    if not problem.config.validation or not whole.data.folds:
        final = whole.variant(method=PREFERRED, validation=0)
        return final.finished(start(final), {})
    closed = try_closed_forms(whole, cross_validated)
    standard = next(one for one in closed.values() if one.validated.each is one.beside)
    enough = len(whole.data.folds[0].rows[1]) >= FEWEST
    trained = try_trained(standard, folder, tensorboard) if enough else {}
    better = [one for one in trained.values() if clearly_worse(one.beside, one.validated.each)]
    taken = max(better, key=lambda one: one.validated.scores[DECIDES], default=standard)
    final = taken.problem.on(whole.data).variant(validation=0)
    projectors = None
    if taken is not standard:
        try:
            projectors, _ = fit(final, folder / "methods" / FINAL, tensorboard, taken.epoch)
        except NotFiniteError as error:
            log.warning("on all pairs: %s", error.what)
            taken, final = standard, standard.problem.variant(validation=0)
    name = taken.problem.config.model_name
    _write(folder, name, closed | trained)
    if rank() == 0 and taken is not standard:
        shutil.copyfile(folder / "methods" / name / TRAINING_LOG, folder / TRAINING_LOG)
    if rank() == 0:
        for checkpoint in (folder / "methods").rglob(CHECKPOINT):
            checkpoint.unlink()
    return _with_strengths(
        final.finished(projectors or start(final), taken.validated.scores), closed
    )


def keep_to(problem: Problem, folder: Path, tensorboard: bool = False) -> Connection:
    """The connection of the method that the config names; METHODS says what is beside it.

    Beside a trained method the closed forms see what it saw, and are judged by what it did not.
    """
    solved = solve(problem, folder, tensorboard)
    problem, validated = solved.problem, solved.validated
    if validated is None:
        return solved.connection
    judge = on_held_out if problem.config.trained else cross_validated
    closed = try_closed_forms(problem, judge, solved)
    name, beside = problem.config.model_name, next(iter(closed.values())).beside
    _write(folder, name, closed | {name: Tried(problem, validated, beside)})
    return _with_strengths(solved.connection, closed)


def _with_strengths(connection: Connection, closed: Mapping[str, Tried]) -> Connection:
    """Its record knows what the pairs chose for ridge, so that no evaluation asks them again."""
    ridge = {name: float(one.problem.config.ridge_strength or 0) for name, one in closed.items()
             if one.problem.config.method == "ridge"}  # fmt: skip
    connection.record = connection.record.model_copy(update={"ridge_strengths": ridge})
    return connection


def _write(folder: Path, chosen: str, tried: Mapping[str, Tried]) -> None:
    if rank() == 0:
        methods = {name: one.summary for name, one in tried.items()}
        write_json(folder / METHODS, {"chosen": chosen, "methods": methods})


def try_closed_forms(
    problem: Problem, judge: Judge, known: Solved | None = None
) -> dict[str, Tried]:
    """Every closed form, by its name, beside the preferred one; `known` is not judged again."""
    found: dict[str, tuple[Problem, Validated]] = {}
    for candidate in closed_forms(problem):
        name = candidate.config.model_name
        if known is not None and known.problem.config.model_name == name:
            one, validated = known.problem, known.validated
        else:
            one, validated = judged(candidate, judge)
        if validated is not None:
            found[name] = one, validated
    each = {name: validated.each for name, (_, validated) in found.items()}
    beside = each[preferred(each)]
    return {name: Tried(one, validated, beside) for name, (one, validated) in found.items()}


def preferred(each: Mapping[str, Tensor]) -> str:
    """Of methods and what each held-out group did with them, `cca` unless one is clearly better."""
    better = [name for name, one in each.items() if clearly_worse(each[PREFERRED], one)]
    return max(better, key=lambda name: float(each[name].mean()), default=PREFERRED)


def try_trained(standard: Tried, folder: Path, tensorboard: bool) -> dict[str, Tried]:
    """What is trained on all folds but one, by its name, beside the closed form on that one.

    With few pairs that is done again for other folds, until SEEN pairs are judged, no fold is left
    or the training is clearly behind. First a residual: where it gains nothing on what it starts
    from, no other training is tried. One whose loss is not finite is no candidate.
    """
    folds = standard.problem.data.folds
    folds = folds[: math.ceil(SEEN / len(folds[0].rows[1]))]
    closed = [standard.problem.on(fold) for fold in folds]
    beside = [one.score(start(one)).each for one in closed]
    tried: dict[str, Tried] = {}
    for projector in ("residual", "mlp"):
        changes = {"method": "c-mcr", "projector": projector, "centre": False}
        candidates = [with_schedule(one.variant(**changes)) for one in closed]
        name = candidates[0].config.model_name
        try:
            tried[name] = _on_folds(candidates, beside, folder / "methods" / name, tensorboard)
        except NotFiniteError as error:
            log.warning("%s is no candidate: %s", name, error.what)
            continue
        if not clearly_worse(tried[name].beside, tried[name].validated.each):
            break
    return tried


def _on_folds(
    candidates: list[Problem], beside: list[Tensor], folder: Path, tensorboard: bool
) -> Tried:
    """One training a fold; the epoch to stop at is the median of theirs."""
    seen: list[Validated] = []
    epochs: list[int] = []
    for number, candidate in enumerate(candidates):
        place = folder / f"fold-{number}" if number else folder
        projectors, epoch = fit(candidate, place, tensorboard)
        seen.append(candidate.score(projectors))
        epochs.append(epoch)
        validated, same = joined(seen), torch.cat(beside[: number + 1])
        if clearly_worse(validated.each, same):
            break
    return Tried(candidates[0], validated, same, round(median(epochs)))


def warning(folder: Path, record: Record) -> str:
    """One line where the connection's method is clearly behind a closed form; else empty.

    Also where `auto` had nothing to compare methods by.
    """
    if record.requested is not None and record.requested.method == "auto":
        return "" if record.validation else (
            f"auto took {record.model} without a comparison of methods: {_why(record)}"
        )  # fmt: skip
    methods, chosen = read_methods(folder), record.model
    closed = [name for name, one in methods.items() if one.get("behind") == 0 and name != chosen]
    if not closed or chosen not in methods or not methods[chosen].get("told"):
        return ""
    own, other = methods[chosen], methods[closed[0]]
    return (
        f"{chosen} is behind {closed[0]} by {own['behind']:.0f} standard errors on "
        f"{own['pairs']:,} held-out pairs: first places {own['hit_rate@1']:.3f} and "
        f"{other['hit_rate@1']:.3f}, log-likelihood {own[DECIDES]:.2f} and {other[DECIDES]:.2f}; "
        f"--method auto takes what does best"
    )


def _why(record: Record) -> str:
    if record.requested is not None and not record.requested.validation:
        return "validation=0 holds no pairs out"
    return f"{record.pairs} pairs are too few to hold some out"


def read_methods(folder: Path) -> dict[str, dict[str, float]]:
    """The validation of each method that was looked at, the best first; empty where none was.

    Raises StoreError for a file that does not say it.
    """
    path = folder / METHODS
    try:
        methods = json.loads(path.read_text())["methods"] if path.exists() else {}
        return dict(sorted(methods.items(), key=lambda item: -item[1][DECIDES]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            "what methods did with held-out pairs cannot be read",
            where=path,
            fix="delete the file, or connect again with --replace",
        ) from error
