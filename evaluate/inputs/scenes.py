"""Sounds, the pictures they are asked about, and the regions of those pictures, joined.

    sounds = choose_rows(sounds, {"split": ["test"]})                # of opened datasets
    scenes = open_scenes(sounds, choose_rows(regions), [Path("vggss.json")])
    answers = locate(connection, scenes)       # of each pair the region nearest to the sound
    answers.confidence, answers.ciou, answers.rows

Regions are rows of a dataset of images with the columns `image` (which picture), `x0`, `y0`, `x1`
and `y1` (fractions of its width and height, numbers or text), as `cmcr extract --regions` writes
them.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cmcr.connect import JointSpace
from cmcr.embeddings import Dataset
from cmcr.embeddings.schema import canonical_json
from cmcr.errors import CmcrError, SourceError, UsageError
from cmcr.evaluate.inputs.ciou import CENTRE, consensus_iou
from cmcr.evaluate.inputs.items import project_rows
from cmcr.evaluate.inputs.selection import Selection
from cmcr.evaluate.inputs.truth import SoundImage, read_truth, truth_of
from cmcr.evaluate.ranking.ranks import TIE
from cmcr.evaluate.results import BOXES, Inputs, Metrics, Row, new_row
from cmcr.files import replacing

CORNERS = ("x0", "y0", "x1", "y1")


@dataclass(frozen=True)
class Scenes:
    """Pairs of a sound and a picture that the store has both of."""

    sounds: Selection
    regions: Selection
    pairs: Sequence[SoundImage]
    sound_rows: np.ndarray  # (pairs,) the sound of each pair
    region_rows: Sequence[np.ndarray]  # of each pair (candidates,), the regions of its picture
    ciou: Sequence[np.ndarray]  # of each pair (candidates,), 0 where the sound is not seen
    left_out: int  # pairs whose sound or picture the store does not have
    truth: Sequence[str] = ()  # the files that name the pairs, and a digest of each

    @property
    def visible(self) -> np.ndarray:
        """Whether the source of each sound is in its picture, (pairs,)."""
        return np.array([pair.visible for pair in self.pairs], bool)

    def only_visible(self) -> "Scenes":
        """The pairs in which the source of the sound is in the picture."""
        kept = np.flatnonzero(self.visible)
        return replace(
            self,
            pairs=[self.pairs[at] for at in kept],
            sound_rows=self.sound_rows[kept],
            region_rows=[self.region_rows[at] for at in kept],
            ciou=[self.ciou[at] for at in kept],
        )

    def at_random(self) -> np.ndarray:
        """The probability of each candidate of `ciou`, end to end, when one is drawn for a pair."""
        counts = np.array([len(rows) for rows in self.region_rows])
        return np.repeat(1 / counts, counts) / len(counts)

    def centre_ciou(self) -> np.ndarray:
        """The cIoU of a box at the centre that covers half of the picture, (pairs,)."""
        ciou = [consensus_iou(CENTRE, pair.boxes, pair.consensus)[0] for pair in self.pairs]
        return np.array(ciou)

    def row(self, task: str, model: str, metrics: Metrics) -> Row:
        """A row of results: `metrics`, how many pairs there are, and how many were left out."""
        seen = int(self.visible.sum())
        counts = {
            "pairs": seen,
            "silent_pairs": len(self.pairs) - seen,
            "pairs_left_out": self.left_out,
        }
        row = new_row(self.sounds, self.regions, task, model, metrics | counts)
        row["truth"] = BOXES
        return row


@dataclass(frozen=True)
class Answers:
    """The region that was chosen for each pair."""

    rows: np.ndarray  # (pairs,) of the dataset of regions
    confidence: np.ndarray  # (pairs,) its cosine with the sound
    ciou: np.ndarray  # (pairs,) its cIoU with where the sound is heard


def open_scenes(sounds: Selection, regions: Selection, truth: Sequence[Path]) -> Scenes:
    """The pairs of the files `truth`, else of the sounds' own columns, that both datasets have.

    Raises what `read_truth`, `truth_of` and `find_scenes` raise.
    """
    if not truth:
        return find_scenes(sounds, regions, truth_of(sounds.dataset))
    files = {path: read_truth([path]) for path in truth}
    scenes = find_scenes(sounds, regions, [pair for pairs in files.values() for pair in pairs])
    named = [f"{path.name} {_digest(pairs)[:8]}" for path, pairs in files.items()]
    return replace(scenes, truth=named)


def scene_inputs(scenes: Scenes, version: int) -> Inputs:
    """What decides the results, beside the connection: both datasets and the truth."""
    inputs: Inputs = {
        "version": version,
        "query": scenes.sounds.inputs,
        "gallery": scenes.regions.inputs,
        "truth": _digest(scenes.pairs, scenes.left_out),
    }
    return inputs | ({"chosen": {"truth": list(scenes.truth)}} if scenes.truth else {})


def _digest(pairs: Sequence[SoundImage], *beside: int) -> str:
    plain = [(pair.sound, pair.image, pair.boxes.tolist(), pair.consensus) for pair in pairs]
    return hashlib.sha256(canonical_json([plain, *beside]).encode()).hexdigest()


def find_scenes(sounds: Selection, regions: Selection, pairs: Sequence[SoundImage]) -> Scenes:
    """Join `pairs` with the rows of `sounds` by id and with those of `regions` by `image`.

    A pair whose sound or picture is in the store, but not selected, is not asked for: it counts
    nowhere. Raises UsageError for regions without places or when no pair is selected, SourceError
    for places that are none or a sound that is there twice, CmcrError when nothing joins.
    """
    boxes, of_image = _places(regions.dataset)
    row_of_sound = _rows_by_id(sounds.dataset)
    there = [pair for pair in pairs if pair.sound in row_of_sound and pair.image in of_image]
    if not there:
        raise CmcrError(
            "no sound and no region belong to a pair of the truth",
            where=f"the truth has the sound {pairs[0].sound!r} with the image {pairs[0].image!r}; "
            f"{sounds.key} has the id {next(iter(row_of_sound), None)!r}; {regions.key} has the "
            f"image {next(iter(of_image), None)!r}",
            fix="extract both from manifests whose `id` is the one that the truth uses",
        )
    heard, seen = _mask(sounds), _mask(regions)
    chosen = {image: rows[seen[rows]] for image, rows in of_image.items()}
    kept = [pair for pair in there if heard[row_of_sound[pair.sound]] and len(chosen[pair.image])]
    if not kept:
        raise UsageError(
            "no pair of the truth is of the selected sounds and regions",
            where=f"{sounds.key}: {len(sounds.rows):,} rows; {regions.key}: "
            f"{len(regions.rows):,} rows",
            fix=f"select others; without a selection there are {len(there):,} pairs",
        )
    region_rows = [chosen[pair.image] for pair in kept]
    return Scenes(
        sounds,
        regions,
        kept,
        np.array([row_of_sound[pair.sound] for pair in kept]),
        region_rows,
        [
            consensus_iou(boxes[rows], pair.boxes, pair.consensus)
            for pair, rows in zip(kept, region_rows, strict=True)
        ],
        left_out=len(pairs) - len(there),
    )


def locate(model: JointSpace, scenes: Scenes) -> Answers:
    """The region of each pair's picture that is nearest to its sound in the joint space.

    Where several are within `TIE` of the nearest, the one that covers least of the truth counts.
    """
    sounds, regions = (
        project_rows(chosen.dataset, chosen.rows, model).numpy()
        for chosen in (scenes.sounds, scenes.regions)
    )  # (selected sounds, joint), (selected regions, joint)
    sound_at = np.searchsorted(scenes.sounds.rows, scenes.sound_rows)  # (pairs,)
    regions_at = [np.searchsorted(scenes.regions.rows, rows) for rows in scenes.region_rows]
    chosen = [
        _nearest(regions[rows] @ sounds[sound], ciou)
        for sound, rows, ciou in zip(sound_at, regions_at, scenes.ciou, strict=True)
    ]
    picked = list(zip(chosen, scenes.region_rows, scenes.ciou, strict=True))
    return Answers(
        rows=np.array([rows[at] for (at, _), rows, _ in picked]),
        confidence=np.array([cosine for (_, cosine), _, _ in picked]),
        ciou=np.array([ciou[at] for (at, _), _, ciou in picked]),
    )


def write_answers(path: Path, scenes: Scenes, answers: Answers) -> None:
    """One row a pair: sound, image, the region that was chosen, its cosine and cIoU, `visible`."""
    columns: dict[str, Any] = {
        "sound": [pair.sound for pair in scenes.pairs],
        "image": [pair.image for pair in scenes.pairs],
        "visible": scenes.visible,
        "region": scenes.regions.dataset.table(["id"])["id"].take(answers.rows),
    }
    corners = scenes.regions.dataset.table(list(CORNERS)).take(answers.rows)
    columns |= {name: corners[name].cast(pa.float64()) for name in CORNERS}
    table = pa.table(columns | {"cosine": answers.confidence, "ciou": answers.ciou})
    with replacing(path) as unfinished:
        pq.write_table(table, unfinished)


def _nearest(cosines: np.ndarray, ciou: np.ndarray) -> tuple[int, float]:
    """The place of the nearest candidate, and its cosine; ties are decided against us."""
    best = np.flatnonzero(cosines >= cosines.max() - TIE)
    at = int(best[ciou[best].argmin()])
    return at, float(cosines[at])


def _mask(chosen: Selection) -> np.ndarray:
    """Whether each row of the dataset is selected, (rows,)."""
    return np.isin(np.arange(chosen.dataset.rows), chosen.rows)


def _places(regions: Dataset) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The boxes of all regions, (regions, 4), and the rows of each image."""
    missing = [name for name in ("image", *CORNERS) if name not in regions.manifest.columns]
    if missing:
        raise UsageError(
            f"{regions.key} does not say where its rows lie: it has no column {missing[0]!r}",
            where=regions.folder,
            fix="extract the images with --regions, and name that dataset",
        )
    table = regions.table(["image", *CORNERS])
    try:
        boxes = np.stack([np.array(table[name].to_pylist(), float) for name in CORNERS], axis=1)
    except (ValueError, TypeError) as error:
        raise SourceError(
            f"a region's place cannot be read: {error}",
            where=regions.folder,
            fix="extract it again with --regions",
        ) from error
    wrong = ~(np.isfinite(boxes).all(axis=1) & (boxes[:, :2] < boxes[:, 2:]).all(axis=1))
    if wrong.any():
        raise SourceError(
            f"a region has no area: {boxes[wrong][0].tolist()}",
            where=regions.folder,
            fix="x0 < x1 and y0 < y1 are fractions of the picture; extract it with --regions",
        )
    rows = defaultdict(list)
    for row, image in enumerate(table["image"].to_pylist()):
        rows[image].append(row)
    return boxes, {image: np.array(of_image) for image, of_image in rows.items()}


def _rows_by_id(sounds: Dataset) -> dict[str, int]:
    ids = sounds.ids()
    rows = {name: row for row, name in enumerate(ids)}
    if len(rows) < len(ids):
        twice = next(name for row, name in enumerate(ids) if rows[name] != row)
        raise SourceError(
            f"{sounds.key} has two sounds named {twice!r}",
            where=sounds.folder,
            fix="give every sound an id of its own, and extract again",
        )
    return rows
