"""Classes to tell apart: the prompts that speak of them, and the items that are of them.

    prompts = choose_prompts(choose_rows(texts), "modelnet40", "ulip64")    # of opened datasets
    items = choose_items(choose_rows(shapes, {"split": ["test"]}), prompts.classes)

Both datasets say it by `label`. Names are compared as retrieval does (`plain_name`): ModelNet40's
folder `night_stand` is ULIP's class "night stand".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cmcr.embeddings import Dataset
from cmcr.errors import CmcrError, UsageError
from cmcr.evaluate.inputs.selection import Selection
from cmcr.evaluate.ranking.matches import plain_name
from cmcr.templates import read_classes, read_templates


@dataclass(frozen=True)
class Prompts:
    """Classes, and the rows of a dataset of texts that speak of them."""

    texts: Selection
    classes: tuple[str, ...]
    rows: np.ndarray  # (prompts,) of the dataset; a text of two classes is there twice
    class_of: np.ndarray  # (prompts,) the number of the class


@dataclass(frozen=True)
class ClassItems:
    """What is to be classified: the items that are of one of the classes."""

    chosen: Selection
    rows: np.ndarray  # (items,) of the dataset
    right: np.ndarray  # (items, classes) bool
    left_out: int  # chosen items of no class that has prompts


def choose_prompts(
    chosen: Selection, classes: str | None = None, templates: str | None = None
) -> Prompts:
    """Those of `chosen` that are of `classes` and made with `templates`, by default all.

    Class names are compared with "_" as a space. Raises UsageError for texts without labels, a
    class without a prompt, or templates where the texts have no column `template`.
    """
    texts, labels = chosen.dataset, _labels(chosen.dataset)
    kept = np.zeros(len(labels), bool)
    kept[chosen.rows] = [bool(labels[row]) for row in chosen.rows]
    if not kept.any():
        raise UsageError(
            f"{texts.key} has no labels, so nothing says which class a prompt is of",
            where=texts.folder,
            fix="extract prompts:CLASSES:TEMPLATES, or a manifest with a column `label`",
        )
    if templates:
        if "template" not in texts.manifest.columns:
            raise UsageError(
                f"{texts.key} does not say which template a prompt was made with",
                where=texts.folder,
                fix="leave --templates out, or extract prompts:CLASSES:TEMPLATES",
            )
        wanted = set(read_templates(templates))
        made_with = texts.table(["template"])["template"].to_pylist()
        kept &= np.array([template in wanted for template in made_with])
        if not kept.any():
            raise UsageError(
                f"no prompt of {texts.key} was made with these templates",
                where=texts.folder,
                fix=f"its templates are such as {made_with[0]!r}",
            )
    rows = np.flatnonzero(kept)
    there = dict.fromkeys(name for row in rows for name in labels[row])
    names = tuple(map(plain_name, read_classes(classes))) if classes else tuple(there)
    if missing := [name for name in names if name not in there]:
        raise UsageError(
            f"{len(missing)} of {len(names)} classes have no prompt in {texts.key}: {missing[0]!r}",
            where=texts.folder,
            fix=f"its classes are such as {', '.join(list(there)[:5]) or 'none'}; extract prompts "
            "with these classes and templates",
        )
    number = {name: at for at, name in enumerate(names)}
    both = [(row, number[name]) for row in rows for name in labels[row] if name in number]
    rows, class_of = np.array(both).T  # (prompts,), (prompts,)
    return Prompts(chosen, names, rows, class_of)


def choose_items(chosen: Selection, classes: Sequence[str]) -> ClassItems:
    """Those of `chosen` that are of one of `classes`. Raises CmcrError when there is none."""
    every = _labels(chosen.dataset)
    labels = [every[row] for row in chosen.rows]
    number = {name: at for at, name in enumerate(classes)}
    right = np.zeros((len(labels), len(classes)), bool)
    for row, names in enumerate(labels):
        right[row, [number[name] for name in names if name in number]] = True
    kept = right.any(axis=1)
    if not kept.any():
        there = list(dict.fromkeys(name for names in labels for name in names))
        raise CmcrError(
            f"no item of {chosen.key} is of one of the classes",
            where=f"its labels are such as {', '.join(there[:5]) or 'none'}; the classes are such "
            f"as {', '.join(classes[:5])}",
            fix="use the same names in both datasets",
        )
    return ClassItems(chosen, chosen.rows[kept], right[kept], left_out=int((~kept).sum()))


def _labels(dataset: Dataset) -> list[list[str]]:
    labels = dataset.table(["label"])["label"].to_pylist()
    return [[plain_name(name) for name in names or () if name] for names in labels]
