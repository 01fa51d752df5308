"""The page of a search: what was asked, and what was found, to see, hear and turn.

write_found(store, [(inputs, hits), ...], Path("found.html"), find_media)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cmcr.embeddings import Key, Modality
from cmcr.embeddings.search.mixed import Hit
from cmcr.evaluate.report.page import render_template
from cmcr.evaluate.report.previews import Find, Shown, show, show_input
from cmcr.files import write_text


class Place(Protocol):
    """Where an input of a search lies, and its text where it is one."""

    @property
    def uri(self) -> str: ...

    @property
    def content(self) -> str | bytes | None: ...


class Input(Protocol):
    """An input of a search."""

    @property
    def modality(self) -> Modality: ...

    @property
    def item(self) -> Place: ...


@dataclass(frozen=True)
class Result:
    """One item that was found."""

    item: Shown
    hit: Hit


@dataclass(frozen=True)
class Section:
    """One query, of one input or of several, and its results."""

    inputs: Sequence[Shown]
    results: Sequence[Result]


def write_found(
    store: Path, found: Sequence[tuple[Sequence[Input], Sequence[Hit]]], out: Path, find: Find
) -> Path:
    """Write the page about `found`, queries with what `store` has for them, to `out`.

    `find(modality, uris)` gives what each uri decodes to, or an exception.
    """
    shown: dict[tuple[str, str], Shown] = {}
    hits = [hit for _, own in found for hit in own]
    for dataset in dict.fromkeys(hit.dataset for hit in hits):
        ids = [hit.item["id"] for hit in hits if hit.dataset == dataset]
        items = show(store, Key.parse(dataset), ids, find)
        shown |= {(dataset, name): item for name, item in items.items()}
    sections = [
        Section(
            [_input(one, find) for one in inputs],
            [Result(shown[hit.dataset, hit.item["id"]], hit) for hit in own],
        )
        for inputs, own in found
    ]
    write_text(out, render_template("found.html", sections=sections, store=store))
    return out


def _input(one: Input, find: Find) -> Shown:
    content = one.item.content
    text = content if isinstance(content, str) else None
    return show_input(one.modality, "asked", one.item.uri, text, find)
