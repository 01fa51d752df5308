"""Prompts as a source of texts: every template filled with every class name.

    open_source("text", "builtin:prompts/modelnet40")         # 40 classes in ULIP's 64 templates
    open_source("text", "prompts:classes.txt:templates.txt")  # your own, one a line
    open_source("text", "prompts:classes.txt:ulip64")         # `sound`, or `none`: the bare names

A row's `label` is its class, its column `template` says what was filled, and its id names both by
number, so that the same lists give the same ids in every space.
"""

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cmcr.embeddings import Modality
from cmcr.errors import UsageError
from cmcr.extract.items import Item
from cmcr.extract.sources.source import Source
from cmcr.templates import CLASSES, fill, read_classes, read_templates

PREFIXES = ("prompts:", "builtin:prompts/")


def prompts(modality: Modality, where: str) -> Source:
    """The prompts that `where` names. Raises UsageError for lists that are not there or empty."""
    names, templates = _lists(where)
    if modality != "text":
        raise UsageError(f"prompts are text, not {modality}", fix=f"--source text={where}")
    classes, fillings = read_classes(names), read_templates(templates)
    digest = hashlib.sha256(repr((classes, fillings)).encode()).hexdigest()
    return Source(
        modality,
        name=Path(names).stem,
        description={"kind": "prompts", "where": where, "sha256": digest},
        items=partial(_items, where, classes, fillings),
        total=len(classes) * len(fillings),
        columns=("template",),
        sealed=True,
    )


def _lists(where: str) -> tuple[str, str]:
    """Where the class names and where the templates are."""
    if where.startswith("builtin:"):
        name = where.removeprefix("builtin:prompts/")
        if name not in CLASSES:
            raise UsageError(
                f"there are no prompts named {where}",
                fix=f"one of: {', '.join(f'builtin:prompts/{other}' for other in CLASSES)}",
            )
        return name, "ulip64"
    names, colon, templates = where.removeprefix("prompts:").partition(":")
    if not (names and colon and templates):
        raise UsageError(
            f"{where!r} is not prompts:CLASSES:TEMPLATES",
            fix="two text files with one a line, such as prompts:classes.txt:templates.txt",
        )
    return names, templates


def _items(where: str, classes: tuple[str, ...], templates: tuple[str, ...]) -> Iterator[Item]:
    for number, name in enumerate(classes):
        for filling, template in enumerate(templates):
            id = f"prompt-{number:04d}-{filling:04d}"
            text = fill(template, name)
            yield Item(id, f"{where}#{id}", text, label=(name,), extra={"template": template})
