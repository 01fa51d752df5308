"""The digits world: what ships in the package is what its documentation says.

    pytest tests/extract/test_digits.py

FSDD is not part of the package, so the accuracy on it is only printed by `pretrain`.
"""

import io
import json
import pickle
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cmcr.embeddings.schema import Modality, canonical_json
from cmcr.errors import EncoderError, SourceError, UsageError
from cmcr.extract.digits.towers import shipped
from cmcr.extract.digits.world import phrases as written
from cmcr.extract.digits.world.builtin import BUILTIN
from cmcr.extract.digits.world.handwriting import pictures
from cmcr.extract.digits.world.phrases import Kind, phrases
from cmcr.extract.digits.world.scenes import scenes
from cmcr.extract.digits.world.shapes import extruded, turned
from cmcr.extract.digits.world.speech import SHIPPED, clips
from cmcr.extract.encoders.registry import Encoder, load_encoder
from cmcr.extract.items import Decoded, Item, Waveform
from cmcr.extract.media.crops import Box, Crop, crop

NAMES = ("digits-clip", "digits-clap", "digits-ulip")
READERS = ("digits-clip", "digits-clap")  # of text
SPLITS = ("train", "test")
KINDS: dict[str, tuple[Kind, Kind]] = {
    "digits-clip": ("picture", "either"),
    "digits-clap": ("recording", "either"),
}


@cache
def encoder(name: str) -> Encoder:
    return load_encoder(name)


@cache
def items(source: str) -> tuple[Item, ...]:
    return tuple(BUILTIN[source].read())


def decode(modality: Modality, content: str | bytes | None) -> Decoded:
    if isinstance(content, bytes) and modality == "image":
        return Image.open(io.BytesIO(content))
    if isinstance(content, bytes) and modality == "pointcloud":
        points: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
        return points
    if isinstance(content, bytes):
        import soundfile

        samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
        return Waveform(samples.T, rate)
    assert isinstance(content, str)
    return content


def preprocessed(name: str, modality: Modality, contents: list) -> Tensor:
    return torch.stack(
        [encoder(name).preprocess(modality, decode(modality, content)) for content in contents]
    )


def tone(rate: int = 8000, seconds: float = 0.5) -> Waveform:
    time = np.arange(int(rate * seconds), dtype=np.float32) / rate
    return Waveform(np.sin(2 * np.pi * 440 * time)[None].astype(np.float32), rate)


def drawn(digit: int, size: int, ink: int, paper: int) -> Image.Image:
    image = Image.new("L", (size, size), paper)
    font = ImageFont.load_default(size * 0.7)
    ImageDraw.Draw(image).text((size / 2, size / 2), str(digit), ink, font, anchor="mm")
    return image


@cache
def classes(name: str) -> Tensor:
    asked = phrases(*KINDS[name])
    embedded = encoder(name).encode(
        "text", preprocessed(name, "text", [phrase.text for phrase in asked])
    )
    digits = torch.tensor([phrase.digit for phrase in asked])
    means = torch.stack([embedded[digits == digit].mean(0) for digit in range(10)])
    return torch.nn.functional.normalize(means, dim=1)


@pytest.mark.parametrize(
    ("name", "source", "least"),
    [
        ("digits-clip", "digits/handwriting-test", 0.97),
        ("digits-clap", "digits/speech-test", 0.95),
    ],
)
def test_zero_shot_on_held_out_inputs(name: str, source: str, least: float) -> None:
    modality = BUILTIN[source].modality
    inputs = preprocessed(name, modality, [item.content for item in items(source)])
    answers = (encoder(name).encode(modality, inputs) @ classes(name).T).argmax(1)
    digits = torch.tensor([int(item.label[0]) for item in items(source)])
    assert (answers == digits).float().mean() >= least


@pytest.mark.parametrize("name", READERS)
def test_phrases_of_the_other_kind_are_understood(name: str) -> None:
    embedded = encoder(name).encode(
        "text", preprocessed(name, "text", [phrase.text for phrase in phrases()])
    )
    digits = torch.tensor([phrase.digit for phrase in phrases()])
    assert ((embedded @ classes(name).T).argmax(1) == digits).float().mean() >= 0.95


@pytest.mark.parametrize(("ink", "paper"), [(255, 0), (0, 255), (230, 40)])
@pytest.mark.parametrize("size", [28, 300])
def test_a_picture_from_elsewhere_is_recognised(size: int, ink: int, paper: int) -> None:
    inputs = torch.stack(
        [
            encoder("digits-clip").preprocess("image", drawn(digit, size, ink, paper))
            for digit in range(10)
        ]
    )
    answers = (encoder("digits-clip").encode("image", inputs) @ classes("digits-clip").T).argmax(1)
    assert (answers == torch.arange(10)).sum() >= 8


def test_bridge_phrases() -> None:
    templates = [*written.PICTURE, *written.RECORDING, *written.EITHER]
    texts = [item.content for item in items("digits/phrases")]
    assert len(set(templates)) == len(templates) >= 40
    assert len(set(texts)) == len(texts) >= 800
    assert Counter(item.label for item in items("digits/phrases")) == {
        (str(digit),): len(texts) // 10 for digit in range(10)
    }


def test_train_and_test_are_disjoint() -> None:
    def voices(source: str) -> set[str]:
        return {item.extra["voice"] for item in items(source)}

    assert len(voices("digits/speech-test")) >= 15
    assert not voices("digits/speech-train") & voices("digits/speech-test")
    for kind in ("handwriting", "speech", "shapes"):
        train, test = ({item.content for item in items(f"digits/{kind}-{s}")} for s in SPLITS)
        assert not train & test
    assert sum(len(items(f"digits/handwriting-{split}")) for split in SPLITS) == 1797


def test_every_id_names_one_item() -> None:
    ids = [item.id for source in BUILTIN for item in items(source)]
    assert len(set(ids)) == len(ids)
    assert all(item.group is None for source in BUILTIN for item in items(source))


def test_sources_have_a_stable_hash() -> None:
    hashes = {source: BUILTIN[source].sha256() for source in BUILTIN}
    assert hashes == {source: BUILTIN[source].sha256() for source in BUILTIN}
    assert len(set(hashes.values())) == len(BUILTIN)


def test_shipped_files_are_small() -> None:
    assert SHIPPED.stat().st_size <= 4e6
    assert all(shipped(name).stat().st_size <= 2e6 for name in NAMES)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("digits-clip", "digits/handwriting-test"),
        ("digits-clip", "digits/phrases"),
        ("digits-clap", "digits/speech-test"),
        ("digits-clap", "digits/phrases"),
        ("digits-ulip", "digits/handwriting-test"),
        ("digits-ulip", "digits/shapes-test"),
    ],
)
def test_embeddings_do_not_depend_on_the_batch(name: str, source: str) -> None:
    modality = BUILTIN[source].modality
    contents = [item.content for item in items(source)[::23][:16]]
    inputs = preprocessed(name, modality, contents)
    together = encoder(name).encode(modality, inputs)
    alone = torch.cat([encoder(name).encode(modality, one) for one in inputs.split(1)])
    assert together.shape == (len(inputs), 64)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(inputs)))


@pytest.mark.parametrize("name", READERS)
def test_a_pickled_encoder_gives_the_same_numbers(name: str) -> None:
    copy: Encoder = pickle.loads(pickle.dumps(encoder(name)))
    assert canonical_json(copy.fingerprint()) == canonical_json(encoder(name).fingerprint())
    inputs = preprocessed(name, "text", ["seven", "", "ÄÖ" * 500, "the number 7"])
    assert torch.equal(copy.preprocess("text", "seven"), inputs[0])
    assert torch.equal(copy.encode("text", inputs), encoder(name).encode("text", inputs))


@pytest.mark.parametrize("name", NAMES)
def test_fingerprint(name: str) -> None:
    fingerprint = encoder(name).fingerprint()
    assert fingerprint["encoder"] == name
    assert set(fingerprint["preprocessing"]) == encoder(name).modalities
    assert len(fingerprint["checkpoint_sha256"]) == 64
    json.dumps(fingerprint)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (8, 8), (37, 91)])
def test_any_picture_is_taken(mode: str, size: tuple[int, int]) -> None:
    cells = encoder("digits-clip").preprocess("image", Image.new(mode, size))
    assert torch.isfinite(cells).all()


@pytest.mark.parametrize("rate", [4000, 8000, 11025, 44100, 96000])
@pytest.mark.parametrize("seconds", [0.01, 0.5, 3.0])
def test_any_sample_rate_and_length_is_taken(rate: int, seconds: float) -> None:
    preprocess = encoder("digits-clap").preprocess
    mono = tone(rate, seconds)
    stereo = Waveform(np.repeat(mono.samples, 2, axis=0), rate)
    assert torch.isfinite(preprocess("audio", mono)).all()
    assert torch.equal(preprocess("audio", stereo), preprocess("audio", stereo))
    torch.testing.assert_close(preprocess("audio", stereo), preprocess("audio", mono))


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros((1, 0), np.float32),
        np.zeros((2, 8000), np.float32),
        np.full((1, 8000), np.nan, np.float32),
        np.array([[0.1, np.inf, 0.2]], np.float32),
    ],
    ids=["empty", "silent", "nan", "inf"],
)
def test_bad_audio_is_a_source_error(samples: np.ndarray) -> None:
    with pytest.raises(SourceError):
        encoder("digits-clap").preprocess("audio", Waveform(samples, 8000))


def garbage(file: Path) -> None:
    file.write_bytes(b"not safetensors at all")


def another_encoder(file: Path) -> None:
    file.write_bytes(shipped("digits-clap").read_bytes())


def truncated(file: Path) -> None:
    file.write_bytes(shipped("digits-clip").read_bytes()[:5000])


def missing(file: Path) -> None:
    assert not file.exists()


@pytest.mark.parametrize("spoil", [garbage, another_encoder, truncated, missing])
def test_wrong_checkpoint(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    file = tmp_path / "weights.safetensors"
    spoil(file)
    with pytest.raises(EncoderError, match=r"where: .*weights\.safetensors"):
        load_encoder("digits-clip", checkpoint=file)


def test_a_copy_of_the_weights_is_the_same_encoder(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(shipped("digits-clip").read_bytes())
    copy = load_encoder("digits-clip", checkpoint=file)
    assert copy.fingerprint() == encoder("digits-clip").fingerprint()


# Shapes


def test_a_held_out_shape_is_nearest_to_pictures_of_its_digit() -> None:
    vectors, digits = {}, {}
    for modality, kind in (("pointcloud", "shapes"), ("image", "handwriting")):
        found = items(f"digits/{kind}-test")
        inputs = preprocessed("digits-ulip", modality, [item.content for item in found])
        vectors[modality] = encoder("digits-ulip").encode(modality, inputs)
        digits[modality] = torch.tensor([int(item.label[0]) for item in found])
    nearest = (vectors["pointcloud"] @ vectors["image"].T).argmax(1)
    assert (digits["image"][nearest] == digits["pointcloud"]).float().mean() >= 0.9


def test_a_shape_is_handwriting_seen_from_the_front() -> None:
    picture = pictures("test")[0]
    points = extruded(picture.pixels, np.random.default_rng(0))
    assert points.shape == (256, 3)
    column, row = ((points[:, :2] * (1, -1) + 1) * 4).astype(int).T
    assert picture.pixels[row, column].mean() > 2 * picture.pixels.mean()
    for seed in range(50):
        rng = np.random.default_rng(seed)
        right, up, front = turned(np.eye(3, dtype=np.float32), rng)
        assert right[0] > 0.4
        assert up[1] > 0.8
        assert front[2] > 0.4


@pytest.mark.parametrize("count", [1, 3, 256, 5000])
def test_any_number_of_points_is_taken(count: int) -> None:
    cloud = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    preprocess = encoder("digits-ulip").preprocess
    points = preprocess("pointcloud", cloud)
    assert points.shape == (256, 3)
    assert points.norm(dim=1).max() <= 1 + 1e-6
    torch.testing.assert_close(points, preprocess("pointcloud", 50 * cloud + 3), atol=1e-4, rtol=0)


# Scenes


def area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def shared(one: Box, other: Box) -> float:
    low, high = map(max, one[:2], other[:2]), map(min, one[2:], other[2:])
    return area((*low, *high))  # type: ignore[arg-type]


def test_scenes_show_digits_apart_in_boxes_that_hold_all_their_ink() -> None:
    assert len({scene.id for scene in scenes()}) == len(scenes()) >= 200
    assert {len(scene.shown) for scene in scenes()} == {2, 3, 4}
    for scene in scenes():
        height, width = scene.pixels.shape
        digits, boxes = zip(*scene.shown, strict=True)
        assert len(set(digits)) == len(digits)
        assert all(0 <= place <= 1 for box in (*boxes, *scene.distractors) for place in box)
        left = scene.pixels.copy()
        for number, box in enumerate(boxes):
            x0, x1 = (round(place * width) for place in box[::2])
            y0, y1 = (round(place * height) for place in box[1::2])
            assert left[y0:y1, x0:x1].max() > 100
            left[y0:y1, x0:x1] = 0
            assert not any(shared(box, other) for other in boxes[:number])
            assert all(shared(box, other) <= 0.5 * area(box) + 1e-9 for other in scene.distractors)
        assert not left.any()
    touching = sum(
        any(shared(distractor, box) for _, box in scene.shown)
        for scene in scenes()
        for distractor in scene.distractors
    )
    assert 0.2 < touching / (6 * len(scenes())) < 0.9


def test_a_scene_is_asked_about_digits_that_it_shows_and_about_others() -> None:
    shown = {scene.id: {str(digit): box for digit, box in scene.shown} for scene in scenes()}
    voices = {clip.voice for clip in clips("test")}
    counts: Counter[tuple[str, bool]] = Counter()
    for item in items("digits/scene-sounds"):
        scene, digit = shown[item.extra["image"]], item.label[0]
        boxes = json.loads(item.extra["boxes"])
        assert boxes == ([list(scene[digit])] if digit in scene else [])
        assert item.extra["voice"] in voices
        counts[item.extra["image"], digit in scene] += 1
    assert set(counts.values()) == {2}
    assert len(counts) == 2 * len(scenes())


def test_regions_of_scenes_are_the_boxes_and_the_distractors() -> None:
    regions = [item for item in items("digits/scene-regions") if isinstance(item, Crop)]
    assert len(regions) == sum(len(scene.shown) + 6 for scene in scenes())
    boxes = {(item.extra["image"], item.box) for item in regions if item.label}
    assert boxes == {(scene.id, box) for scene in scenes() for _, box in scene.shown}
    true = [item for item in regions if item.label][:200]
    inputs = [encoder("digits-clip").preprocess("image", crop(item)[1]) for item in true]
    vectors = encoder("digits-clip").encode("image", torch.stack(inputs))
    digits = torch.tensor([int(item.label[0]) for item in true])
    assert ((vectors @ classes("digits-clip").T).argmax(1) == digits).float().mean() >= 0.9


def test_wrong_usage() -> None:
    with pytest.raises(UsageError, match="no variant"):
        load_encoder("digits-clip:large")
    with pytest.raises(UsageError, match="does not embed audio"):
        encoder("digits-clip").preprocess("audio", tone())
