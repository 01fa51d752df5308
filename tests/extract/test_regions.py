"""Regions of pictures: files of boxes, the grid, a detector's; what is wrong with one of them."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cmcr.embeddings import Dataset, Key, open_dataset
from cmcr.errors import EncoderError, MismatchError, SourceError, UsageError
from cmcr.evaluate.inputs.items import select
from cmcr.evaluate.inputs.scenes import find_scenes
from cmcr.evaluate.inputs.selection import choose_rows
from cmcr.evaluate.inputs.truth import SoundImage
from cmcr.extract import Encoder, Source, extract, load_encoder, open_regions, open_source
from cmcr.extract.items import Item
from cmcr.extract.media.crops import crop, crops
from cmcr.extract.regions.boxes import grid
from cmcr.extract.regions.detector import propose

BOX = ("x0", "y0", "x1", "y1")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures of 40 x 20 pixels: a left half of one shade, a right half of another."""
    folder = tmp_path / "photos"
    for number, name in enumerate(("cat/a.png", "cat/b.png", "dog/c.png")):
        pixels = np.full((20, 40), 10 * number, np.uint8)
        pixels[:, 20:] = 200
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    return folder


def write_boxes(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        lines = [",".join(rows[0])] + [",".join(map(str, row.values())) for row in rows]
        path.write_text("\n".join(lines) + "\n")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def row(image: str, *box: float, **more: Any) -> dict[str, Any]:
    return {"image": image, **dict(zip(BOX, box, strict=True)), **more}


def opened(photos: Path, where: str | Path) -> Source:
    folder = photos.parent / "store" / "folder"
    return open_regions(open_source("image", str(photos)), str(where), folder, "cpu")


def extracted(
    photos: Path, encoder: Encoder, where: str | Path, **options: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of the regions, and the failures."""
    store = photos.parent / "store"
    options = {"workers": 0, "max_failures": 1.0, **options}
    extract(store, encoder, opened(photos, where), "t", **options)
    dataset = open_dataset(store, Key("bytes", "image", "t"))
    failures = pq.read_table(dataset.folder / "failures.parquet").to_pylist()
    return dataset.table(("id", "uri", "label", "image", *BOX)).to_pylist(), failures


def places(rows: list[dict[str, Any]]) -> list[list[float]]:
    return [[float(known[place]) for place in BOX] for known in rows]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_file_of_boxes_gives_a_row_a_region(
    photos: Path, encoder: Encoder, tmp_path: Path, suffix: str
) -> None:
    boxes = [
        row("dog/c.png", 0.0, 0.0, 0.5, 1.0, label="ear"),
        row("cat/a.png", 0.25, 0.5, 1.0, 1.0, label=""),
        row("dog/c.png", 20, 0, 40, 10, label=""),  # pixels
    ]
    rows, failures = extracted(photos, encoder, write_boxes(tmp_path / f"b.{suffix}", boxes))
    assert not failures
    assert [(known["id"], known["image"], known["label"]) for known in rows] == [
        ("cat/a.png#0", "cat/a.png", ["cat"]),
        ("dog/c.png#0", "dog/c.png", ["ear"]),
        ("dog/c.png#1", "dog/c.png", ["dog"]),
    ]
    assert places(rows) == [[0.25, 0.5, 1, 1], [0, 0, 0.5, 1], [0.5, 0, 1, 0.5]]
    assert rows[1]["uri"].endswith("photos/dog/c.png")


def test_a_region_is_what_lies_in_its_box(photos: Path, encoder: Encoder, tmp_path: Path) -> None:
    boxes = [row("dog/c.png", 0, 0, 0.5, 1), row("dog/c.png", 0.5, 0, 1, 1)]
    extracted(photos, encoder, write_boxes(tmp_path / "b.jsonl", boxes))
    left, right = open_dataset(tmp_path / "store", Key("bytes", "image", "t")).embeddings()
    for found, shade in ((left, 20), (right, 200)):
        pixels = encoder.preprocess("image", Image.new("L", (20, 20), shade))
        expected = encoder.encode("image", pixels[None])[0].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_places_are_numbers_in_the_store_and_text_is_still_read(
    photos: Path, encoder: Encoder, tmp_path: Path, make_dataset: Callable[..., Dataset]
) -> None:
    boxes = [row("dog/c.png", 0, 0, 1 / 3, 1), row("dog/c.png", 0.5, 0, 1, 1)]
    extracted(photos, encoder, write_boxes(tmp_path / "b.jsonl", boxes))
    regions = open_dataset(tmp_path / "store", Key("bytes", "image", "t"))
    table = regions.table(("image", *BOX))
    assert table.schema.types == [pa.string(), *[pa.float64()] * 4]
    assert places(table.to_pylist()) == [[0, 0, 1 / 3, 1], [0.5, 0, 1, 1]]
    assert len(select(regions, {"x0": ["0.5"]}).rows) == 1
    sounds = make_dataset("bytes/audio:s", np.eye(8, dtype=np.float32)[:1], id=["s"])
    text = make_dataset(
        "bytes/image:text", np.eye(8, dtype=np.float32)[:2],
        id=["0", "1"], image=["dog/c.png"] * 2,
        **{name: list(map(str, table[name].to_pylist())) for name in BOX},
    )  # fmt: skip
    assert text.table(BOX).schema.types == [pa.string()] * 4
    pair = SoundImage("s", "dog/c.png", np.array([[0.5, 0, 1, 1]]))
    for dataset in (regions, text):
        assert find_scenes(choose_rows(sounds), choose_rows(dataset), [pair]).ciou[0].tolist() == [
            0,
            1,
        ]


def test_the_grid_covers_the_picture_at_four_scales(photos: Path, encoder: Encoder) -> None:
    rows, failures = extracted(photos, encoder, "grid")
    assert not failures
    assert len(rows) == 3 * 84 == opened(photos, "grid").total
    assert extracted(photos, encoder, "grid") == (rows, [])  # and is taken up again
    windows = grid()
    assert places(rows)[:84] == [list(box) for box in windows]
    sides = np.array([box[2] - box[0] for box in windows])
    assert [int(np.isclose(sides, 1 / part).sum()) for part in (1, 2, 3, 4)] == [1, 9, 25, 49]
    assert windows[0] == (0, 0, 1, 1)
    assert np.min(windows) == 0
    assert np.max(windows) == 1


def test_a_coarser_grid_ends_at_larger_windows(photos: Path, encoder: Encoder) -> None:
    rows, failures = extracted(photos, encoder, "grid:3")
    assert failures == []
    assert places(rows)[:35] == [list(box) for box in grid()[:35]]
    assert len(rows) == 3 * 35 == opened(photos, "grid:3").total
    assert opened(photos, "grid:2").total == 3 * 10
    same, finest = opened(photos, "grid"), opened(photos, "grid:4")
    assert same.description == finest.description != opened(photos, "grid:3").description
    for wrong in ("grid:0", "grid:x", "grid:99", "grid:1.5"):
        with pytest.raises(UsageError, match="is no grid"):
            opened(photos, wrong)


def test_a_bad_box_costs_only_itself(photos: Path, encoder: Encoder, tmp_path: Path) -> None:
    bad = {
        "no area": (0.5, 0.5, 0.5, 0.9),
        "the wrong way round": (0.9, 0.1, 0.2, 0.8),
        "outside": (-3.0, -2.0, -1.0, -0.5),
        "outside, in pixels": (50, 0, 60, 10),
        "less than a pixel": (1.2, 3.0, 1.7, 9.0),
        "not a number": (math.nan, 0.0, 1.0, 1.0),
        "infinite": (0.0, 0.0, math.inf, 1.0),
    }
    rows = [row("cat/a.png", *box) for box in bad.values()]
    rows += [row("cat/a.png", 0.5, 0.5, 0.9, 0.9), row("cat/a.png", -10, 0, 20, 30)]
    rows += [{"image": "cat/a.png", "x0": "left", "y0": 0, "x1": 1}]
    rows += [row("lost.png", 0, 0, 1, 1), row("lost.png", 0, 0, 0.5, 1)]
    known, failures = extracted(photos, encoder, write_boxes(tmp_path / "b.jsonl", rows))
    assert [one["id"] for one in known] == ["cat/a.png#7", "cat/a.png#8"]
    assert places(known)[1] == [0, 0, 0.5, 1]  # clipped to the picture
    ids = [f"cat/a.png#{number}" for number in (*range(7), 9)]
    assert [failure["id"] for failure in failures] == [*ids, "lost.png#0"]
    assert {failure["error"] for failure in failures} == {"SourceError"}
    assert "no picture 'lost.png'" in failures[-1]["message"]


@pytest.mark.parametrize("options", [{}, {"part_rows": 5, "batch_size": 3}, {"batch_size": 1}])
def test_a_broken_picture_is_one_failure(
    photos: Path, encoder: Encoder, options: dict[str, int]
) -> None:
    (photos / "cat/b.png").write_bytes(b"\x89PNG and then nothing")
    rows, failures = extracted(photos, encoder, "grid", **options)
    assert len(rows) == 2 * 84
    assert [failure["id"] for failure in failures] == ["cat/b.png#0"]
    assert failures[0]["uri"].endswith("cat/b.png")


def test_worker_processes_give_the_same_bytes(photos: Path) -> None:
    encoder = load_encoder("digits-clip")  # the tests' own cannot be sent to another process

    def parts(workers: int) -> dict[str, bytes]:
        store = photos.parent / f"store-{workers}"
        options = {"workers": workers, "part_rows": 50, "batch_size": 7}
        extract(store, encoder, opened(photos, "grid"), "t", **options)  # type: ignore[arg-type]
        folder = Key("digits-clip", "image", "t").folder(store)
        return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}

    assert parts(0) == parts(1)


def test_other_regions_are_refused(photos: Path, encoder: Encoder, tmp_path: Path) -> None:
    extracted(photos, encoder, write_boxes(tmp_path / "b.jsonl", [row("cat/a.png", 0, 0, 1, 1)]))
    extracted(photos, encoder, tmp_path / "b.jsonl")
    with pytest.raises(MismatchError, match=r"source\.regions"):
        extracted(photos, encoder, "grid")
    write_boxes(tmp_path / "b.jsonl", [row("cat/a.png", 0, 0, 1, 0.5)])
    with pytest.raises(MismatchError, match=r"source\.regions"):
        extracted(photos, encoder, tmp_path / "b.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("b.jsonl", '{"image": "a", "x0": 0, "y0": 0, "x1": 1}\n', UsageError, "no column y1"),
        ("b.jsonl", "", SourceError, "lists no region"),
        ("b.jsonl", "[1, 2]\n", SourceError, "not a JSON object"),
        ("b.txt", "0 0 1 1\n", UsageError, "regions are not read from"),
        ("none.csv", None, UsageError, "regions are not read from"),
    ],
)
def test_a_file_that_cannot_be_used(
    photos: Path, tmp_path: Path, name: str, content: str | None, error: type, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message):
        opened(photos, tmp_path / name)


def test_regions_are_of_pictures(tmp_path: Path) -> None:
    texts = open_source("text", "builtin:digits/phrases")
    with pytest.raises(UsageError, match="regions are of pictures"):
        open_regions(texts, "grid", tmp_path, "cpu")


@given(
    st.tuples(*[st.floats(-0.5, 1.5, width=32)] * 4),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
def test_a_crop_is_the_rounded_box(
    box: tuple[float, float, float, float], size: tuple[int, int]
) -> None:
    item = Item("a", "a", content=b"")
    (region,) = crops(item, [(box, None)])
    picture = Image.fromarray(np.arange(size[0] * size[1], dtype=np.int32).reshape(size[::-1]))
    x0, y0, x1, y1 = (min(max(place, 0.0), 1.0) for place in box)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cmcr.extract.media.crops.decode", lambda *_: picture)
        if x0 >= x1 or y0 >= y1:
            with pytest.raises(SourceError, match="no area"):
                crop(region)
            return
        known, cut = crop(region)
    assert [float(known.extra[place]) for place in BOX] == [x0, y0, x1, y1]
    assert abs(cut.width - (x1 - x0) * size[0]) <= 1
    assert abs(cut.height - (y1 - y0) * size[1]) <= 1
    first = int(np.asarray(cut)[0, 0])
    assert abs(first % size[0] - x0 * size[0]) <= 1
    assert abs(first // size[0] - y0 * size[1]) <= 1


SIDE = st.integers(1, 5000)


@given(SIDE, SIDE, st.floats(0.2, 5), st.data())
def test_a_box_at_the_corner_of_a_picture_is_cut_there(
    width: int, height: int, zoom: float, data: st.DataObject
) -> None:
    """Float32 boxes of a resized picture, scaled back as detectors do, then made fractions."""
    size = (width, height)
    shown = [max(1, round(side * zoom)) for side in size]
    first = [data.draw(st.integers(0, side - 1)) for side in size]
    box = np.array(
        [*(at * s / side for at, s, side in zip(first, shown, size, strict=True)), *shown]
    )
    scale = np.tile([side / s for side, s in zip(size, shown, strict=True)], 2).astype(np.float32)
    sides = np.tile(size, 2).astype(np.float32)
    fractions = (box.astype(np.float32) * scale / sides).astype(float)
    (region,) = crops(Item("a", "a", content=b""), [((*fractions,), None)])
    with pytest.MonkeyPatch.context() as patch:
        picture = SimpleNamespace(size=size, crop=lambda box: box)
        patch.setattr("cmcr.extract.media.crops.decode", lambda *_: picture)
        patch.setattr("cmcr.extract.media.crops.refuse_line", lambda *_: None)
        known, cut = crop(region)
    assert cut == (*first, width, height)
    assert places([known.extra])[0][2:] == pytest.approx([1, 1], abs=1e-6)
    assert max(places([known.extra])[0]) <= 1


def test_boxes_that_leave_the_picture_are_clipped_and_pixels_are_pixels() -> None:
    just_over = float(np.nextafter(np.float32(1), np.float32(2)))  # 1.00000012
    cases = {
        (0, 0, 1, just_over): (0, 0, 40, 20),
        (0.5, 0.5, 1.03, 1.02): (20, 10, 40, 20),  # a detector that does not clip
        (0, 0, 2, 2): (0, 0, 2, 2),  # pixels
        (1, 0, 2, 1): (1, 0, 2, 1),
    }
    for box, expected in cases.items():
        (region,) = crops(Item("a", "a", content=b""), [(box, None)])
        with pytest.MonkeyPatch.context() as patch:
            picture = SimpleNamespace(size=(40, 20), crop=lambda box: box)
            patch.setattr("cmcr.extract.media.crops.decode", lambda *_, picture=picture: picture)
            assert crop(region)[1] == expected


# A detector


def halves(seen: list[int]) -> Callable[[np.ndarray], list[list[float]]]:
    """Finds the left half of a picture, and nothing in one whose first pixel is 10."""

    def detect(pixels: np.ndarray) -> list[list[float]]:
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3
        height, width = pixels.shape[:2]
        seen.append(int(pixels[0, 0, 0]))
        return [] if pixels[0, 0, 0] == 10 else [[0, 0, width / 2, height]]

    return detect


def test_what_a_detector_finds_becomes_a_file(photos: Path, tmp_path: Path) -> None:
    (photos / "cat/broken.png").write_bytes(b"no picture")
    pictures = open_source("image", str(photos))
    seen: list[int] = []
    file = propose(pictures, tmp_path / "boxes", {"threshold": 1}, lambda: halves(seen))
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        row("cat/a.png", 0.0, 0.0, 0.5, 1.0),
        row("cat/b.png", 0.0, 0.0, 1.0, 1.0),
        row("cat/broken.png", 0.0, 0.0, 1.0, 1.0),
        row("dog/c.png", 0.0, 0.0, 0.5, 1.0),
    ]
    assert propose(pictures, tmp_path / "boxes", {"threshold": 1}, lambda: halves(seen)) == file
    assert seen == [0, 10, 20]
    assert propose(pictures, tmp_path / "boxes", {"threshold": 2}, lambda: halves(seen)) != file


def test_a_picture_replaced_by_one_of_its_size_is_looked_at_again(
    photos: Path, tmp_path: Path
) -> None:
    picture = photos / "cat/b.png"
    seen: list[int] = []
    for shade in (1, 2):
        Image.fromarray(np.full((20, 40), shade, np.uint8)).save(picture, "BMP")  # uncompressed
        os.utime(picture, ns=(0, shade))
        pictures = open_source("image", str(photos))
        propose(pictures, tmp_path / "boxes", {}, lambda: halves(seen))
    assert seen == [0, 1, 20, 0, 2, 20]


def test_what_a_detector_finds_lies_in_the_picture(photos: Path, tmp_path: Path) -> None:
    """torchvision scales its boxes back to the picture in float32."""
    over = [float(np.nextafter(np.float32(side), np.float32(100))) for side in (40, 20)]
    file = propose(
        open_source("image", str(photos)),
        tmp_path / "boxes",
        {},
        lambda: lambda _: [[-1, 0, *over]],
    )
    assert json.loads(file.read_text().splitlines()[0]) == row("cat/a.png", 0.0, 0.0, 1.0, 1.0)


def test_detection_goes_on_where_it_stopped(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmcr.extract.regions.detector.RUN", 1)
    pictures = open_source("image", str(photos))
    seen: list[int] = []

    def stops(pixels: np.ndarray) -> list[list[float]]:
        if pixels[0, 0, 0] == 20:
            raise KeyboardInterrupt
        return halves(seen)(pixels)

    with pytest.raises(KeyboardInterrupt):
        propose(pictures, tmp_path / "boxes", {}, lambda: stops)
    assert seen == [0, 10]
    file = propose(pictures, tmp_path / "boxes", {}, lambda: halves(seen))
    assert seen == [0, 10, 20]
    assert (
        file.read_bytes()
        == propose(pictures, tmp_path / "others", {}, lambda: halves([])).read_bytes()
    )


def test_a_detector_without_weights_says_what_to_fetch(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(EncoderError, match=r"fetch .*fasterrcnn_resnet50_fpn_v2_coco.*\.pth") as it:
        opened(photos, "torchvision")
    assert it.value.where == str(
        tmp_path / "hub/checkpoints/fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth"
    )
    torch.save({"weight": "no tensor"}, tmp_path / "other.pth")
    with pytest.raises(EncoderError, match="no tensors by name"):
        opened(photos, f"torchvision:{tmp_path / 'other.pth'}")
