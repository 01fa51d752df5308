"""`--method auto`: every method on the same pairs, and the one that is to be preferred.

FOLDER/methods.json      {"chosen": model, "methods": {model: {"hit_rate@1": …, "mrr": …,
                         "behind": standard errors behind the best}}}
FOLDER/methods/MODEL/    what each trained method left on its way
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cmcr.connect.connection.connection import Connection
from cmcr.connect.distributed import rank
from cmcr.connect.methods.problem import Problem
from cmcr.connect.methods.solve import closed_forms, solve
from cmcr.connect.training.checkpoint import CHECKPOINT
from cmcr.connect.training.log import TRAINING_LOG
from cmcr.connect.training.validation import DECIDES, behind, clearly_worse
from cmcr.errors import UsageError
from cmcr.files import write_json

METHODS = "methods.json"

# Where held-out pairs show no difference: a residual starts from the closed form below it and may
# grow beyond it, and centring takes away what all pseudo partners have in common (docs/methods.md).
PREFERRED = (
    "c-mcr-residual-centred",
    "ex-mcr-residual-centred",
    "linear-centred",
    "ridge-centred",
    "procrustes-centred",
    "ridge",
    "procrustes",
    "c-mcr",
    "ex-mcr",
    "identity",
)


def choose(problem: Problem, folder: Path, tensorboard: bool = False) -> Connection:
    """The first of `PREFERRED` that the held-out pairs do not show to be worse than the best.

    Raises UsageError when nothing is held out.
    """
    if problem.data.held is None:
        raise UsageError(
            "`auto` has nothing to choose by", fix="hold some pairs out: --set validation=0.1"
        )
    made = {}
    for candidate in candidates(problem):
        name = candidate.config.model_name
        made[name] = solve(candidate, folder / "methods" / name, tensorboard)
    validated = {name: problem.score(one.projectors) for name, one in made.items()}
    each = {name: one.each for name, one in validated.items()}
    chosen = preferred(each)
    best = max(each.values(), key=_mean)
    scores = {
        name: one.scores | {"behind": behind(one.each, best)} for name, one in validated.items()
    }
    if rank() == 0:
        write_json(folder / METHODS, {"chosen": chosen, "methods": scores})
        log = folder / "methods" / chosen / TRAINING_LOG
        if log.exists():
            shutil.copyfile(log, folder / TRAINING_LOG)
        for name in made:
            (folder / "methods" / name / CHECKPOINT).unlink(missing_ok=True)
    connection = made[chosen].to("cpu")
    connection.record = connection.record.model_copy(update={"requested": problem.config})
    return connection


def preferred(each: Mapping[str, Tensor]) -> str:
    """Of methods and what each held-out item did with them, the method that `auto` takes."""
    best = max(each.values(), key=_mean)
    return next(name for name in PREFERRED if name in each and not clearly_worse(each[name], best))


def _mean(each: Tensor) -> float:
    return float(each.mean())


def candidates(problem: Problem) -> list[Problem]:
    """The problem of every method, the simplest first."""
    trained: list[dict[str, Any]] = [
        {"method": "linear", "centre": True},
        {"method": "ex-mcr", "projector": "residual", "centre": True},
        {"method": "c-mcr", "projector": "residual", "centre": True},
        {"method": "ex-mcr", "projector": "mlp"},
        {"method": "c-mcr", "projector": "mlp"},
    ]
    return [
        *closed_forms(problem),
        *(problem.variant(**{"centre": False} | variant) for variant in trained),
    ]


def read_methods(folder: Path) -> dict[str, dict[str, float]]:
    """The validation of each method that `auto` tried, the best first; empty where it did not."""
    path = folder / METHODS
    methods = json.loads(path.read_text())["methods"] if path.exists() else {}
    return dict(sorted(methods.items(), key=lambda item: -item[1][DECIDES]))
