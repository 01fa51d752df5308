"""Sounds with labels: ESC-50 (karolpiczak/ESC-50)."""

import csv
from collections.abc import Iterator

from cmcr.extract.prepare.folder import SOUNDS, Folder
from cmcr.extract.prepare.published import Listed, Media, Published


def _esc50(folder: Folder) -> Iterator[Listed]:
    """meta/esc50.csv; in its first version `category` is a number and `category_name` the name."""
    sounds = folder.stems(SOUNDS)
    with folder.one("esc50.csv").open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            name = row["filename"].rpartition(".")[0]
            label = row.get("category_name") or row["category"]
            more = {"fold": row["fold"], "esc10": row["esc10"]}
            media: Media = {"audio": sounds.get(name)}
            yield Listed(name, media, (), label.replace("_", " "), more=more)


LABELLED = (
    Published(
        name="esc50",
        tables=("audio",),
        where="https://github.com/karolpiczak/ESC-50",
        licence="CC BY-NC",
        size="600 MB",
        counts={"all": 2000},
        read=_esc50,
        needs="meta/esc50.csv and audio/",
        classes=True,
    ),
)
