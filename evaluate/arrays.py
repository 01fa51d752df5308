"""Two arrays of one joint space in, the rows of `cmcr evaluate retrieval` out: `cmcr.evaluate`.

    rows = cmcr.evaluate(x, y)                                     # row i of both is a pair
    rows = cmcr.evaluate(x, y, labels=(labels_of_x, labels_of_y))  # what shares a label matches
    rows = cmcr.evaluate(x, y, paired=False)                       # nothing says what matches
    rich.print(cmcr.evaluate.results_table(rows))

`cmcr.evaluate` is a package of modules too. A module object can have a class of its own (Python's
language reference, "Customizing module attribute access"), and that of this package, `Evaluate`,
has a `__call__`: the function is found by either way to import it, and every
`from cmcr.evaluate import ...` stays as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import torch.nn.functional as F
from torch import Tensor

from cmcr.devices import Vectors, float32, refuse_what_has_no_direction, rows, threads_for
from cmcr.errors import CmcrError, MismatchError, SourceError, UsageError
from cmcr.evaluate.ranking.matches import Matches, find_matches, match_ids, unknown_matches
from cmcr.evaluate.ranking.rankings import rank_by_chance, rank_by_model, tell_what_lies_behind
from cmcr.evaluate.results import Row, Selected

MODEL = "identity"  # as the command calls vectors that are compared as they are

Labels: TypeAlias = Sequence[Any] | np.ndarray  # one a row: a name, several, or none: None, NaN, []


@dataclass(frozen=True)
class _Name:
    """What a row calls an array."""

    dataset: str

    def __str__(self) -> str:
        return self.dataset


@dataclass(frozen=True)
class _Rows:
    """An array, and what is known of its rows."""

    key: _Name
    vectors: Tensor  # (rows, joint), unit norm
    table: pa.Table  # id, label and group

    @property
    def selected(self) -> Selected:
        """All of them."""
        return Selected(where={}, items=len(self.vectors), of=len(self.vectors))


def evaluate_arrays(
    x: Vectors,
    y: Vectors,
    *,
    labels: tuple[Labels, Labels] | None = None,
    groups: tuple[Labels, Labels] | None = None,
    paired: bool = True,
) -> list[Row]:
    """Search `y`, (m, D), for `x`, (n, D), by cosine, then the other way.

    Arrays, tensors or lists of any float precision, in one joint space; they are L2-normalised.
    With `labels` or `groups`, one a row of each, what shares a group matches, or a label where one
    of the two has no group. A row may have several labels, or none: None, NaN, an empty list. Else
    row i of both is a pair, and with `paired=False` nothing says what matches: the rows tell of
    hubs and coverage then.

    The rows are those of `cmcr evaluate retrieval`, by the same functions: of each direction
    `chance`, then the arrays as `identity`, with intervals, classes and worst queries, whose ids
    are row numbers. Raises UsageError for options that do not go together, MismatchError for
    arrays, labels or groups of other lengths, SourceError for rows that are not finite or zero,
    CmcrError when nothing matches.
    """
    known = labels is not None or groups is not None
    if known and not paired:
        raise UsageError(
            "paired=False says that nothing matches, and labels= or groups= say what does",
            fix="leave one of them out",
        )
    query = _as_rows("x", x, 0, labels, groups)
    gallery = _as_rows("y", y, 1, labels, groups)
    (n, dim), (m, other) = query.vectors.shape, gallery.vectors.shape
    if dim != other:
        raise MismatchError(
            f"x has vectors of {dim} values, y of {other}: they lie in no joint space",
            fix="project both by one connection (`cmcr.fit`, `connection.project`)",
        )
    matches = _matches(query, gallery, known=known, paired=paired)
    rankings = []
    with threads_for(n * m * dim):
        for asked, found, relevant in ((query, gallery, matches),
                                       (gallery, query, matches.reverse())):  # fmt: skip
            vectors = (asked.vectors, found.vectors)
            rankings.append(rank_by_chance(asked, found, relevant))
            rankings.append(rank_by_model(asked, found, relevant, MODEL, vectors))
            tell_what_lies_behind(rankings[-1])
    return [ranking.row for ranking in rankings]


class Evaluate(ModuleType):
    """The package `cmcr.evaluate`, which can be called as `evaluate_arrays` can."""

    __call__ = staticmethod(evaluate_arrays)


def _matches(query: _Rows, gallery: _Rows, *, known: bool, paired: bool) -> Matches:
    n, m = len(query.vectors), len(gallery.vectors)
    if known:
        matches = find_matches(query.table, gallery.table)
        if not matches.truth:
            raise CmcrError(
                "no row of x has a match in y",
                fix="use the same names in both labels=, or both groups=",
            )
        return matches
    if not paired:
        return unknown_matches(n, m, "paired=False")
    if n != m:
        raise MismatchError(
            f"row i of x and of y is a pair, and x has {n:,} rows, y {m:,}",
            fix="give labels=(of_x, of_y) or groups=, or paired=False where nothing matches",
        )
    return match_ids(query.table["id"], gallery.table["id"])


def _as_rows(
    name: str,
    given: Vectors,
    side: int,
    labels: tuple[Labels, Labels] | None,
    groups: tuple[Labels, Labels] | None,
) -> _Rows:
    array = rows(given, None, name)
    if not len(array):
        raise SourceError(f"there are no rows of {name}", fix="give one vector a row")
    vectors = float32(array, "cpu").detach()  # (rows, D)
    refuse_what_has_no_direction(vectors, name, 0)
    columns = {
        "id": pa.array(map(str, range(len(vectors))), pa.string()),
        "label": pa.array(_column("labels", labels, side, name, len(vectors)),
                          pa.list_(pa.string())),
        "group": pa.array((names and names[0] for names in
                           _column("groups", groups, side, name, len(vectors))), pa.string()),
    }  # fmt: skip
    return _Rows(_Name(name), F.normalize(vectors, dim=1), pa.table(columns))


def _column(
    what: str, both: tuple[Labels, Labels] | None, side: int, name: str, count: int
) -> list[list[str] | None]:
    """The names that each row of one side has."""
    if both is None:
        return [None] * count
    if not isinstance(both, tuple) or len(both) != 2 or any(one is None for one in both):
        raise UsageError(f"{what}= are those of x and those of y", fix=f"{what}=(of_x, of_y)")
    given = both[side]
    if len(given) != count:
        raise MismatchError(
            f"{name} has {count:,} rows and {len(given):,} {what}", fix="give one a row, or None"
        )
    return [_names(one) for one in given]


def _names(one: Any) -> list[str] | None:
    several = one if isinstance(one, list | tuple | np.ndarray) else [one]
    return [str(name) for name in several if not _is_missing(name)] or None


def _is_missing(name: Any) -> bool:
    """Whether it is None, NaN or another of pandas' marks; its NA has no truth value."""
    return name is None or type(name).__name__ == "NAType" or bool(name != name)
