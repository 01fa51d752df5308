"""The ulip encoder: its towers, its point sampling, its checkpoint file, and what it refuses."""

import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from seeded import prefixed, seeded, ulip_checkpoint, ulip_weights
from torch import Tensor

from cmcr.embeddings import Dataset, Key, open_dataset
from cmcr.errors import EncoderError, MismatchError, SourceError, UsageError
from cmcr.extract import extract, open_source
from cmcr.extract.encoders.models.ulip_towers import (
    PointBERT,
    PointTower,
    farthest_points,
    nearest_points,
)
from cmcr.extract.encoders.ulip import (
    ULIP,
    Preprocess,
    UlipEncoder,
    farthest_indices,
    open_encoder,
    parse_variant,
    prepare_points,
)

# By n, the first six values of the unit embedding of `cloud(n)` under the weights
# `seeded(…, 0.1)`, as salesforce/ULIP's own ULIP_PointBERT gives them (commit 2fed30f,
# pc_normalize and encode_pc; its sampling starts at the first point instead of a random one).
PUBLISHED = {
    8192: [0.047344, 0.058312, 0.018569, 0.009345, 0.072062, -0.017635],
    100: [0.055991, 0.053969, 0.020722, -0.000019, 0.059941, -0.022797],
}


def cloud(n: int) -> np.ndarray:
    """Half an ellipsoid of normally distributed points, the same wherever it is made."""
    points = np.random.RandomState(n).standard_normal((n, 3)) * [1.0, 0.5, 0.3]
    points[:, 1] = np.abs(points[:, 1])
    return points.astype(np.float32)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return ulip_weights()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ulip_checkpoint(tmp_path_factory.mktemp("ulip"))


@pytest.fixture(scope="module")
def ulip(checkpoint: Path) -> UlipEncoder:
    return open_encoder(variant="points=1024", checkpoint=checkpoint, device="cpu")


# Towers


def test_point_embeddings_are_the_publishers() -> None:
    state = prefixed("point_encoder", PointBERT().state_dict())
    state = seeded(state | {"pc_projection": torch.zeros(768, 512)}, 0.1)
    tower = PointTower(state).eval()
    tower.load_state_dict(state)
    clouds = np.stack([prepare_points(cloud(n), 8192, "mean") for n in PUBLISHED])
    with torch.inference_mode():
        embeddings = torch.nn.functional.normalize(tower(torch.from_numpy(clouds)), dim=-1)
    torch.testing.assert_close(
        embeddings[:, :6], torch.tensor(list(PUBLISHED.values())), atol=1e-5, rtol=0
    )


def test_the_image_tower_is_timms(ulip: UlipEncoder, weights: dict[str, Tensor]) -> None:
    from timm import create_model

    vit: Any = create_model(
        "vit_base_patch16_224", num_classes=0, embed_dim=64, depth=1, num_heads=1
    ).eval()
    own = {n.removeprefix("visual."): t for n, t in weights.items() if n.startswith("visual.")}
    vit.load_state_dict(own)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = vit(images) @ weights["image_projection"]
    torch.testing.assert_close(
        ulip.encode("image", images), torch.nn.functional.normalize(expected, dim=-1)
    )


def test_the_text_tower_is_clips(ulip: UlipEncoder, weights: dict[str, Tensor]) -> None:
    from open_clip import tokenize
    from open_clip.transformer import QuickGELU, TextTransformer

    clip = TextTransformer(width=64, heads=1, layers=1, act_layer=QuickGELU).eval()
    clip.load_state_dict({name: weights[name] for name in clip.state_dict()})
    texts = ["a toilet", "Two  chairs &amp; a table!", "word " * 100]
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(clip(tokenize(texts)), dim=-1)
    tokens = torch.stack([ulip.preprocess("text", text) for text in texts])
    torch.testing.assert_close(ulip.encode("text", tokens), expected)


def test_texts_beyond_the_context_are_counted(ulip: UlipEncoder) -> None:
    texts = ["word " * words for words in (75, 76, 77, 200)]  # 75 words fill the context
    tokens = torch.stack([ulip.preprocess("text", text) for text in texts])
    assert ulip.count_truncated(tokens) == 3
    assert ulip.count_truncated(tokens[:1]) == 0
    texts = ["this " * 100, "that " * 100]
    one, other = ulip.encode("text", torch.stack([ulip.preprocess("text", t) for t in texts]))
    assert one @ other < 0.999


@pytest.mark.parametrize("modality", ["pointcloud", "image", "text"])
def test_an_embedding_does_not_depend_on_its_batch(ulip: UlipEncoder, modality: Any) -> None:
    items: dict[str, list[Any]] = {
        "pointcloud": [cloud(n) for n in (1024, 200, 5000)],
        "image": [Image.new("RGB", (300, 224), colour) for colour in ("red", "grey", "blue")],
        "text": ["a", "a much longer text than the first", "two words"],
    }
    inputs = torch.stack([ulip.preprocess(modality, item) for item in items[modality]])
    together = ulip.encode(modality, inputs)
    assert together.shape == (3, 512)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(3))
    alone = torch.cat([ulip.encode(modality, one[None]) for one in inputs])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = ulip.encode(modality, inputs)
    assert mixed.dtype == torch.float32
    assert (mixed * together).sum(1).min() > 0.999


# Points


def farthest(points: np.ndarray, count: int) -> list[int]:
    """Point 0, then each time the one that is farthest from all so far, in float64."""
    chosen, distance = [0], np.full(len(points), np.inf)
    while len(chosen) < count:
        offset = points.astype(np.float64) - points[chosen[-1]]
        distance = np.minimum(distance, np.square(offset).sum(1))
        chosen.append(int(distance.argmax()))
    return chosen


def test_farthest_points_are_those_of_a_float64_search() -> None:
    points = np.stack([cloud(3001)[:3000], cloud(3000)])
    candidates = torch.ones(2, 3000, dtype=torch.bool)
    candidates[1, 2500:] = False
    chosen = farthest_points(torch.from_numpy(points), 200, candidates)
    assert chosen.tolist() == [farthest(points[0], 200), farthest(points[1, :2500], 200)]


def test_points_near_the_origin_are_the_centres_of_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rod through the origin: what is left out around its middle moves the other centres too."""
    rod = np.random.RandomState(0).uniform(-1, 1, (4000, 3)) * [1, 0.02, 0.02]
    points = rod.astype(np.float32)
    expected = points[farthest(points, 512)]
    assert (np.square(expected).sum(1) <= 1e-3).any()
    tower = PointBERT(64, 1, 32).eval()
    seen: list[Tensor] = []
    encode_groups = tower.encode_groups
    monkeypatch.setattr(
        tower, "encode_groups", lambda clouds, at: seen.append(at) or encode_groups(clouds, at)
    )
    with torch.inference_mode():
        tower(torch.from_numpy(points)[None])
    assert np.array_equal(seen[0][0].numpy(), expected)


@pytest.mark.parametrize("points", [cloud(20_000), np.tile(cloud(300), (30, 1))])
def test_one_large_cloud_is_sampled_as_a_batch_is(points: np.ndarray) -> None:
    everywhere = torch.ones(1, len(points), dtype=torch.bool)
    expected = farthest_points(torch.from_numpy(points)[None], 500, everywhere)[0]
    assert farthest_indices(points, 500).tolist() == expected.tolist()


def test_nearest_points_are_those_of_a_float64_search() -> None:
    points = torch.from_numpy(cloud(2000))[None]
    found = nearest_points(points, points[:, :50], 32)
    distance = (points[0, :50, None].double() - points[0].double()).square().sum(2)  # (50, 2000)
    expected = distance.argsort(1)[:, :32]
    assert torch.equal(found[0].sort(1).values, expected.sort(1).values)


def test_points_are_centred_scaled_and_padded() -> None:
    points = prepare_points(cloud(500) * 40 + 1000, 512, "mean")
    assert np.isnan(points[500:]).all()
    np.testing.assert_allclose(points[:500].mean(0), 0, atol=1e-6)
    assert np.linalg.norm(points[:500], axis=1).max() == pytest.approx(1)
    coloured = np.concatenate([cloud(500), np.ones((500, 3), np.float32)], axis=1)
    np.testing.assert_array_equal(
        prepare_points(coloured, 512, "mean"), prepare_points(cloud(500), 512, "mean")
    )
    sampled = prepare_points(cloud(5000), 512, "mean")
    assert np.isfinite(sampled).all()
    assert len(np.unique(sampled, axis=0)) == 512


def test_centre_box_is_as_the_box_and_leaves_what_is_so() -> None:
    points = prepare_points(cloud(500) * 40 + 1000, 500, "box")
    np.testing.assert_allclose(points.max(0), -points.min(0), atol=1e-6)
    assert np.linalg.norm(points, axis=1).max() == pytest.approx(1)
    assert np.abs(points.mean(0)).max() > 0.02
    np.testing.assert_allclose(prepare_points(points, 500, "box"), points, atol=1e-6)


def test_which_axis_is_up_is_the_sources(ulip: UlipEncoder, tmp_path: Path) -> None:
    """Meshes that lie and clouds that stand get the same vectors, in one space."""
    standing = cloud(900)
    # (x, y, z) with y up is (x, -z, y) with z up.
    lying = standing[:, [0, 2, 1]] * np.array([1, -1, 1], np.float32)
    store = tmp_path / "store"
    for name, points in {"standing": standing, "lying": lying}.items():
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a.npy", points)

    def embedded(name: str, up: Any) -> Dataset:
        source = open_source("pointcloud", str(tmp_path / name), up=up)
        dataset = f"{name}-{up}"
        extract(store, ulip, source, dataset, workers=0, index=None, precision="float32")
        return open_dataset(store, Key("ulip", "pointcloud", dataset))

    plain, turned, fallen = (
        embedded(*which) for which in (("standing", "y"), ("lying", "z"), ("lying", "y"))
    )
    np.testing.assert_allclose(turned.embeddings(), plain.embeddings(), atol=1e-5)
    assert np.abs(fallen.embeddings() - plain.embeddings()).max() > 1e-3
    assert turned.encoder_identity == plain.encoder_identity
    assert turned.manifest.source["up"] == "z"
    assert "up" not in plain.manifest.source
    source = open_source("pointcloud", str(tmp_path / "lying"))
    with pytest.raises(MismatchError, match=r"source\.up"):
        extract(store, ulip, source, "lying-z", workers=0, index=None, precision="float32")


def test_only_point_clouds_have_an_axis_that_is_up() -> None:
    with pytest.raises(UsageError, match="no axis of text points upwards"):
        open_source("text", "builtin:digits/phrases", up="z")


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (cloud(10), "10 distinct points"),
        (np.ones((9000, 3), np.float32), "1 distinct points"),
        (cloud(500)[:, :2], r"\(n, 3\)"),
        (np.full((500, 3), np.nan, np.float32), "NaN"),
    ],
    ids=["too few", "one place", "flat", "nan"],
)
def test_a_cloud_without_enough_points_is_refused(points: np.ndarray, reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        Preprocess()("pointcloud", points)


def test_images_of_every_mode_are_normalised() -> None:
    mean, std = Fraction("0.485"), Fraction("0.229")
    for mode in ("RGB", "L", "RGBA", "P", "CMYK"):
        image = Image.new("RGB", (300, 600), (255, 255, 255)).convert(mode)
        tensor = Preprocess()("image", image)
        assert tensor.shape == (3, 224, 224)
        assert tensor[0].mean().item() == pytest.approx(float((1 - mean) / std), abs=1e-5)


# Checkpoint, variants, pipeline


def test_a_checkpoint_of_something_else_is_refused(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "other.pt"
    smaller = weights | {"pc_projection": torch.zeros(128, 256)}
    headless = {name: tensor for name, tensor in weights.items() if "visual" not in name}
    narrow = weights | {"visual.norm.weight": torch.ones(32)}
    for state in ({"linear.weight": torch.zeros(3, 3)}, smaller, headless, narrow):
        torch.save({"state_dict": state}, path)
        with pytest.raises(EncoderError, match="not a checkpoint of ULIP") as caught:
            open_encoder(variant=None, checkpoint=path, device="cpu")
        assert caught.value.where == str(path)
        assert "SFXX/ulip" in (caught.value.fix or "")


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "harmful.pt"
    torch.save({"state_dict": {"w": torch.zeros(1)}, "args": Fraction(1, 2)}, path)
    with pytest.raises(EncoderError, match=r"names fractions\.Fraction"):
        open_encoder(variant=None, checkpoint=path, device="cpu")


def test_a_missing_checkpoint_is_named() -> None:
    with pytest.raises(EncoderError, match="ULIP-2-PointBERT") as caught:
        open_encoder(variant=None, checkpoint=None, device="cpu")
    assert "huggingface.co/datasets/SFXX/ulip" in (caught.value.where or "")
    assert not ULIP.weights_present()


def test_variants_set_the_points_and_the_fingerprint(ulip: UlipEncoder, checkpoint: Path) -> None:
    assert parse_variant(None) == Preprocess(8192, "mean")
    assert parse_variant("centre=box,points=2048") == Preprocess(2048, "box")
    fingerprint = ulip.fingerprint()
    assert fingerprint["encoder"] == "ulip:points=1024"
    assert fingerprint["preprocessing"]["pointcloud"]["points"] == 1024
    boxed = open_encoder(variant="centre=box", checkpoint=checkpoint, device="cpu").fingerprint()
    assert boxed["encoder"] == "ulip:centre=box"
    assert boxed["checkpoint_sha256"] == fingerprint["checkpoint_sha256"]
    assert boxed["preprocessing"]["pointcloud"]["centre"] == "box"
    with pytest.raises(UsageError, match="--up z"):
        parse_variant("points=2048,up=z")
    for variant in (
        "centre=top",
        "points=many",
        "points=31",
        "points=²",
        "colour=yes",
        "1024",
        ",",
    ):
        with pytest.raises(UsageError, match="no variant"):
            parse_variant(variant)


def test_a_worker_is_sent_no_weights(ulip: UlipEncoder) -> None:
    pickled = pickle.dumps(ulip.preprocess)
    assert len(pickled) < 500
    assert pickle.loads(pickled) == ulip.preprocess


def test_other_modalities_are_refused(ulip: UlipEncoder) -> None:
    with pytest.raises(UsageError, match="does not embed audio"):
        ulip.preprocess("audio", "")
    with pytest.raises(UsageError, match="does not embed audio"):
        ulip.encode("audio", torch.zeros(1, 3))


def test_a_folder_of_clouds_becomes_a_dataset(ulip: UlipEncoder, tmp_path: Path) -> None:
    for name, points in {"a": cloud(900), "b": cloud(2000), "few": cloud(10)}.items():
        (tmp_path / "clouds" / "chair").mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "clouds" / "chair" / f"{name}.npy", points)
    source = open_source("pointcloud", str(tmp_path / "clouds"))
    summary = extract(
        tmp_path / "store", ulip, source, "clouds", workers=0, max_failures=0.5, index=None
    )
    assert (summary.rows, summary.failures) == (2, 1)
    dataset = open_dataset(tmp_path / "store", Key("ulip", "pointcloud", "clouds"))
    inputs = [ulip.preprocess("pointcloud", cloud(n)) for n in (900, 2000)]
    expected = ulip.encode("pointcloud", torch.stack(inputs))
    np.testing.assert_allclose(dataset.embeddings(), expected, atol=1e-3)
