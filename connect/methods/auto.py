"""`--method auto`: the best connection that the pairs allow; and a named one beside closed forms.

FOLDER/methods.json      {"chosen": model, "methods": {model: {"hit_rate@1": …, "mrr": …,
                         "log_likelihood": …, "pairs": held out,
                         "behind": standard errors behind the closed form that is preferred}}}
FOLDER/methods/MODEL/    what each trained method left on its way

Closed forms are cross-validated, and `cca` is preferred to what is not clearly better. Training
sees the pairs of all folds but one, and a trained method is taken where that one shows it to be
clearly better than the closed form. What is taken is fitted again on all pairs. With so few pairs
that a fold shows nothing no training is tried; with fewer, or nothing held out, `cca` is taken, and
that is told. A named method is what it is, but where a closed form is clearly better on the same
held-out pairs, that is told.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from cmcr.connect.connection.connection import Connection
from cmcr.connect.connection.record import Record
from cmcr.connect.distributed import rank
from cmcr.connect.methods.problem import LEAST_FOLDED, Problem
from cmcr.connect.methods.solve import closed_forms, cross_validated, filled_in, fit, solve, start
from cmcr.connect.training.checkpoint import CHECKPOINT
from cmcr.connect.training.log import TRAINING_LOG
from cmcr.connect.training.validation import DECIDES, Validated, behind, clearly_worse
from cmcr.files import write_json

METHODS = "methods.json"
PREFERRED = "cca"
WARNED = 4  # standard errors behind a closed form, of a method that was asked for by its name
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
        pairs, late = len(self.beside), behind(self.validated.each, self.beside)
        return self.validated.scores | {"pairs": pairs, "behind": late}


def choose(problem: Problem, folder: Path, tensorboard: bool = False) -> Connection:
    """The connection of the method that is taken, fitted on all pairs."""
    whole = problem.on(problem.data.whole)
    if not problem.config.validation or not whole.data.folds:
        final = whole.variant(method=PREFERRED, validation=0)
        return final.finished(start(final), {})
    closed = try_closed_forms(whole, cross_validated)
    standard = next(one for one in closed.values() if one.validated.each is one.beside)
    enough = len(whole.data.folds[0].rows[1]) >= LEAST_FOLDED
    trained = try_trained(standard, folder, tensorboard) if enough else {}
    better = [one for one in trained.values() if clearly_worse(one.beside, one.validated.each)]
    taken = max(better, key=lambda one: one.validated.scores[DECIDES], default=standard)
    name = taken.problem.config.model_name
    _write(folder, name, closed | trained)
    final = taken.problem.on(whole.data).variant(validation=0)
    if taken is standard:
        return _with_strengths(final.finished(start(final), taken.validated.scores), closed)
    place = folder / "methods" / FINAL
    projectors, _ = fit(final, place, tensorboard, taken.epoch)
    if rank() == 0:
        shutil.copyfile(folder / "methods" / name / TRAINING_LOG, folder / TRAINING_LOG)
        for checkpoint in (folder / "methods").glob(f"*/{CHECKPOINT}"):
            checkpoint.unlink()
    return _with_strengths(final.finished(projectors, taken.validated.scores), closed)


def keep_to(problem: Problem, folder: Path, tensorboard: bool = False) -> Connection:
    """The connection of the method that the config names; METHODS says what is beside it."""
    connection = solve(problem, folder, tensorboard)
    validated: Validated | None = None
    if problem.config.trained and problem.data.held is not None:
        validated, closed = problem.score(connection.projectors), try_closed_forms(problem, _seen)
    elif problem.config.validation and problem.data.whole.folds:
        whole = problem.on(problem.data.whole)
        validated, closed = (
            cross_validated(filled_in(whole)),
            try_closed_forms(whole, cross_validated),
        )
    if validated is None:
        return connection
    name, beside = problem.config.model_name, next(iter(closed.values())).beside
    _write(folder, name, closed | {name: Tried(problem, validated, beside)})
    return _with_strengths(connection.to("cpu"), closed)


def _with_strengths(connection: Connection, closed: Mapping[str, Tried]) -> Connection:
    """Its record knows what the pairs chose for ridge, so that no evaluation asks them again."""
    ridge = {name: float(one.problem.config.ridge_strength or 0) for name, one in closed.items()
             if one.problem.config.method == "ridge"}  # fmt: skip
    connection.record = connection.record.model_copy(update={"ridge_strengths": ridge})
    return connection


def _seen(problem: Problem) -> Validated:
    return problem.score(start(problem))


def _write(folder: Path, chosen: str, tried: Mapping[str, Tried]) -> None:
    if rank() == 0:
        methods = {name: one.summary for name, one in tried.items()}
        write_json(folder / METHODS, {"chosen": chosen, "methods": methods})


def try_closed_forms(
    problem: Problem, judge: Callable[[Problem], Validated | None]
) -> dict[str, Tried]:
    """Every closed form that reaches all modalities, by its name, beside the preferred one."""
    candidates = [filled_in(one) for one in closed_forms(problem) if _reaches_all(one)]
    validated = {one.config.model_name: (one, found) for one in candidates if (found := judge(one))}
    each = {name: found.each for name, (_, found) in validated.items()}
    beside = each[preferred(each)]
    return {name: Tried(one, found, beside) for name, (one, found) in validated.items()}


def preferred(each: Mapping[str, Tensor]) -> str:
    """Of methods and what each held-out item did with them, `cca` unless one is clearly better."""
    better = [name for name, one in each.items() if clearly_worse(each[PREFERRED], one)]
    return max(better, key=lambda name: float(each[name].mean()), default=PREFERRED)


def try_trained(standard: Tried, folder: Path, tensorboard: bool) -> dict[str, Tried]:
    """What is trained on all folds but one, by its name, beside the closed form on that one.

    First a residual: where it gains nothing on what it starts from, no other training is tried.
    """
    fold = standard.problem.data.folds[0]
    closed = standard.problem.on(fold)
    beside = closed.score(start(closed)).each
    tried: dict[str, Tried] = {}
    for projector in ("residual", "mlp"):
        candidate = filled_in(closed.variant(method="c-mcr", projector=projector, centre=False))
        name = candidate.config.model_name
        projectors, epoch = fit(candidate, folder / "methods" / name, tensorboard)
        tried[name] = Tried(candidate, candidate.score(projectors), beside, epoch)
        if not clearly_worse(beside, tried[name].validated.each):
            break
    return tried


def _reaches_all(problem: Problem) -> bool:
    """Whether it can project a modality that a space has no memory of."""
    return not problem.config.centre or all(space.memory for space in problem.data.spaces)


def warning(folder: Path, record: Record) -> str:
    """One line where the connection's method is clearly behind a closed form, or was taken by
    `auto` unseen; else empty.
    """
    methods = read_methods(folder)
    if not methods and record.requested and record.requested.method == "auto":
        held = record.requested.validation
        why = f"{record.pairs} pairs are too few to hold any out" if held else "validation is 0"
        return f"{why}: auto took {record.model} and compared no method"
    chosen = json.loads((folder / METHODS).read_text())["chosen"] if methods else ""
    closed = [name for name, one in methods.items() if one["behind"] == 0 and name != chosen]
    if not closed or methods[chosen]["behind"] <= WARNED:
        return ""
    own, other = methods[chosen], methods[closed[0]]
    return (
        f"{chosen} is behind {closed[0]} by {own['behind']:.0f} standard errors on "
        f"{own['pairs']:,} held-out pairs: first places {own['hit_rate@1']:.3f} and "
        f"{other['hit_rate@1']:.3f}, log-likelihood {own[DECIDES]:.2f} and {other[DECIDES]:.2f}; "
        f"--method auto takes what does best"
    )


def read_methods(folder: Path) -> dict[str, dict[str, float]]:
    """The validation of each method that was looked at, the best first; empty where none was."""
    path = folder / METHODS
    methods = json.loads(path.read_text())["methods"] if path.exists() else {}
    return dict(sorted(methods.items(), key=lambda item: -item[1][DECIDES]))
