"""clip: the numbers of open_clip's own code, on seeded random weights in its checkpoint layout.

    pytest tests/extract/test_clip.py

`python benchmarks/parity_clip.py` compares on other models and on real pictures and captions.
"""

import io
import pickle
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from seeded import clip_checkpoint
from torch import Tensor

from cmcr.embeddings import Key, open_dataset
from cmcr.embeddings.schema import canonical_json
from cmcr.errors import CmcrError, EncoderError, UsageError
from cmcr.extract import Item, extract, load_encoder, open_source
from cmcr.extract.encoders.clip import CLIP, ClipEncoder
from cmcr.extract.encoders.registry import Encoder
from cmcr.extract.media.decode import decode

SMALL = "ViT-S-32-alt"  # 256-d; it has no published weights
TEXTS = [
    "a dog barks",
    "A  photo\nof &amp; from Zürich: ☃ 日本語 🐕",
    "?!",
    "dog " * 75,  # with the start and the end: just fits
    "dog " * 76,
    "rain falls on the tin roof " * 40,
]
TRUNCATED = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clip")


def publisher(model: str, **options: Any) -> tuple[Any, Any]:
    """open_clip's own model, with random weights or those it finds, and its transform."""
    import open_clip

    torch.manual_seed(0)
    net, _, transform = open_clip.create_model_and_transforms(model, **options)
    return net.eval(), transform


def text_features(net: Any, model: str) -> Tensor:
    """open_clip's own embeddings of TEXTS."""
    import open_clip

    tokens = open_clip.get_tokenizer(model)(TEXTS)
    with torch.inference_mode():
        features: Tensor = net.encode_text(tokens, normalize=True)
    return features


@pytest.fixture(scope="module")
def reference() -> tuple[Any, Any]:
    return publisher("ViT-B-32", force_quick_gelu=True)


@pytest.fixture(scope="module")
def checkpoint(folder: Path, reference: tuple[Any, Any]) -> Path:
    save_file(reference[0].state_dict(), folder / "open_clip_model.safetensors")
    return folder / "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def clip(checkpoint: Path) -> Encoder:
    return CLIP.load(variant=None, checkpoint=checkpoint, device="cpu")


@pytest.fixture(scope="module")
def small() -> Any:
    return publisher(SMALL)[0]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache; the tests are offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(cache: Path, repo: str, filename: str, state: dict[str, Tensor]) -> None:
    """Lay weights into a cache as huggingface_hub lays them."""
    place = cache / f"models--{repo.replace('/', '--')}"
    for name in ("refs", "snapshots/main"):
        (place / name).mkdir(parents=True)
    (place / "refs" / "main").write_text("main")
    save_file(state, place / "snapshots" / "main" / filename)


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


PICTURES: dict[str, Callable[[], bytes]] = {
    "wide jpeg": lambda: encoded(Image.fromarray(pixels(100, 613, 3)), "JPEG"),
    "tiny png": lambda: encoded(Image.fromarray(pixels(7, 5, 3)), "PNG"),
    "exact png": lambda: encoded(Image.fromarray(pixels(224, 224, 3)), "PNG"),
    "odd webp": lambda: encoded(Image.fromarray(pixels(301, 255, 3)), "WEBP"),
    "rgba": lambda: encoded(Image.fromarray(pixels(90, 80, 4)), "PNG"),
    "grey": lambda: encoded(Image.fromarray(pixels(90, 80)), "PNG"),
    "grey with alpha": lambda: encoded(Image.fromarray(pixels(90, 80, 2), "LA"), "PNG"),
    "black and white": lambda: encoded(Image.fromarray(pixels(90, 80)).convert("1"), "PNG"),
    "palette": lambda: encoded(Image.fromarray(pixels(90, 80, 3)).quantize(64), "PNG"),
    "cmyk": lambda: encoded(Image.fromarray(pixels(90, 80, 4), "CMYK"), "JPEG"),
    "animation": lambda: encoded(
        Image.fromarray(pixels(90, 80, 3)).quantize(64),
        "GIF",
        save_all=True,
        append_images=[Image.new("P", (80, 90), 3)],
    ),
}


def texts(encoder: Encoder) -> Tensor:
    return torch.stack([encoder.preprocess("text", text) for text in TEXTS])


def taken(picture: bytes) -> Image.Image:
    """The picture as an encoder gets it."""
    image = decode("image", Item("x", "x", picture))
    assert isinstance(image, Image.Image)
    return image


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_preprocessed_as_open_clip_does(
    name: str, clip: Encoder, reference: tuple[Any, Any]
) -> None:
    picture = PICTURES[name]()
    expected = reference[1](Image.open(io.BytesIO(picture)))
    assert torch.equal(clip.preprocess("image", taken(picture)), expected)


def test_grey_of_16_bits_is_scaled_to_8(clip: Encoder) -> None:
    grey = np.random.default_rng(0).integers(0, 65_536, (90, 80), dtype=np.uint16)
    scaled = Image.fromarray((grey >> 8).astype(np.uint8))
    image = taken(encoded(Image.fromarray(grey), "PNG"))
    assert torch.equal(clip.preprocess("image", image), clip.preprocess("image", scaled))


def test_images_are_embedded_as_open_clip_does(
    clip: Encoder, reference: tuple[Any, Any], checkpoint: Path
) -> None:
    model = reference[0]
    batch = torch.stack([clip.preprocess("image", taken(make())) for make in PICTURES.values()])
    with torch.inference_mode():
        expected = model.encode_image(batch, normalize=True)
    embeddings = clip.encode("image", batch)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings, expected, rtol=0, atol=1e-6)


def test_texts_are_embedded_as_open_clip_does(clip: Encoder, reference: tuple[Any, Any]) -> None:
    assert isinstance(clip, ClipEncoder)
    batch = texts(clip)
    expected = text_features(reference[0], "ViT-B-32")
    torch.testing.assert_close(clip.encode("text", batch), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(clip.encode("text", batch[:1]), expected[:1], rtol=0, atol=1e-6)
    assert clip.count_truncated(batch) == TRUNCATED


def test_embeddings_are_unit_float32_under_autocast(clip: Encoder) -> None:
    batch = texts(clip)[:2]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = clip.encode("text", batch)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(2))
    assert (embeddings * clip.encode("text", batch)).sum(dim=-1).min() > 0.99


def test_the_default_has_openais_activation_and_a_fingerprint(clip: Encoder) -> None:
    description = clip.fingerprint()
    assert clip.dim == CLIP.dim == 512
    assert description["encoder"] == "clip:ViT-B-32/openai"
    assert description["quick_gelu"]
    assert len(description["checkpoint_sha256"]) == 64
    assert description["preprocessing"]["image"]["interpolation"] == "bicubic"
    canonical_json(description)


def test_preprocess_travels_to_workers_without_weights(clip: Encoder) -> None:
    pickled = pickle.dumps(clip.preprocess)
    assert len(pickled) < 10_000
    image = Image.fromarray(pixels(30, 40, 3))
    there = pickle.loads(pickled)
    assert torch.equal(there("image", image), clip.preprocess("image", image))
    assert torch.equal(there("text", "a dog"), clip.preprocess("text", "a dog"))


def test_a_folder_becomes_a_dataset(tmp_path: Path, clip: Encoder) -> None:
    pictures = tmp_path / "media" / "noise"
    pictures.mkdir(parents=True)
    for number, name in enumerate(("cmyk", "palette")):
        (pictures / f"{number}.png").write_bytes(PICTURES[name]())
    (pictures / "2.jpg").write_bytes(b"no picture")
    source = open_source("image", str(tmp_path / "media"))
    extract(tmp_path / "store", clip, source, "media", workers=0, max_failures=0.5)
    dataset = open_dataset(tmp_path / "store", Key("clip", "image", "media"))
    expected = clip.encode(
        "image",
        torch.stack(
            [clip.preprocess("image", taken(PICTURES[name]())) for name in ("cmyk", "palette")]
        ),
    )
    np.testing.assert_allclose(dataset.embeddings(), expected, atol=1e-3)
    assert dataset.manifest.failures == 1


def test_a_variant_brings_its_own_transform_and_is_found_in_the_cache(cache: Path) -> None:
    import open_clip

    model = "PE-Core-T-16-384"  # squashes, bilinear, mean 0.5; 32 tokens; its tower is timm's
    theirs, _ = publisher(model)
    put(cache, f"timm/{model}", "open_clip_model.safetensors", theirs.state_dict())
    half = (0.5, 0.5, 0.5)
    transform = open_clip.image_transform(
        384, is_train=False, mean=half, std=half, resize_mode="squash", interpolation="bilinear"
    )
    ours = CLIP.load(variant=f"{model}/meta", checkpoint=None, device="cpu")
    assert isinstance(ours, ClipEncoder)
    image = Image.fromarray(pixels(50, 90, 3))
    inputs = ours.preprocess("image", image)[None]
    assert torch.equal(inputs[0], transform(image))
    with torch.inference_mode():
        expected = theirs.encode_image(inputs, normalize=True)
    torch.testing.assert_close(ours.encode("image", inputs), expected, rtol=0, atol=1e-6)
    batch, expected = texts(ours), text_features(theirs, model)
    torch.testing.assert_close(ours.encode("text", batch), expected, rtol=0, atol=1e-6)
    assert ours.count_truncated(batch) == 3


def test_a_training_checkpoint_of_a_model_without_tags(tmp_path: Path, small: Any) -> None:
    state = {f"module.{name}": value for name, value in small.state_dict().items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": state}, tmp_path / "epoch_3.pt")
    ours = CLIP.load(variant=SMALL, checkpoint=tmp_path / "epoch_3.pt", device="cpu")
    embeddings = ours.encode("text", texts(ours))
    torch.testing.assert_close(embeddings, text_features(small, SMALL), rtol=0, atol=1e-6)
    assert ours.dim == 256
    assert not ours.fingerprint()["quick_gelu"]


@pytest.mark.parametrize(("protocol", "zipped"), [(2, False), (4, True)])
def test_checkpoints_of_every_protocol(
    protocol: int, zipped: bool, tmp_path: Path, small: Any, caplog: pytest.LogCaptureFixture
) -> None:
    content = {"epoch": np.int64(3), "state_dict": small.state_dict(), "loss": np.float64(0.5)}
    torch.save(
        content,
        tmp_path / "a.pt",
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=zipped,
    )
    ours = CLIP.load(variant=SMALL, checkpoint=tmp_path / "a.pt", device="cpu")
    loaded = ours.model.state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(loaded[name], value) for name, value in small.state_dict().items())
    assert "randomly" not in caplog.text


def test_another_layout_is_loaded_as_open_clip_loads_it(tmp_path: Path, small: Any) -> None:
    import open_clip

    state = dict(small.state_dict())
    state["logit_scale"] = state["logit_scale"][None]
    state["positional_embedding"] = torch.randn(50, 256)
    state["visual.positional_embedding"] = torch.randn(82, 384)
    path = tmp_path / "a.pt"
    torch.save({"state_dict": {f"module.{name}": t for name, t in state.items()}}, path)
    theirs = open_clip.create_model(SMALL, pretrained=str(path)).state_dict()
    ours = CLIP.load(variant=SMALL, checkpoint=path, device="cpu")
    loaded = ours.model.state_dict()  # type: ignore[attr-defined]
    assert loaded.keys() == theirs.keys()
    assert all(torch.equal(loaded[name], value) for name, value in theirs.items())


def complaint(error: type[CmcrError], variant: str | None, checkpoint: Path | None) -> str:
    with pytest.raises(error) as caught:
        CLIP.load(variant=variant, checkpoint=checkpoint, device="cpu")
    assert caught.value.where
    assert caught.value.fix
    return str(caught.value)


def test_absent_weights_are_named_with_their_place_and_the_flag(cache: Path) -> None:
    message = complaint(EncoderError, None, None)
    for part in ("open_clip_model.safetensors", "timm/vit_base_patch32_clip_224.openai"):
        assert part in message
    assert "--checkpoint" in message
    assert not CLIP.weights_present()


def test_unknown_variants_name_what_is_near(cache: Path) -> None:
    assert "did you mean ViT-B-32" in complaint(UsageError, "ViT-B32/openai", None)
    assert "clip:ViT-L-14/laion2b_s32b_b82k" in complaint(UsageError, "ViT-L-14/laion2b", None)
    assert "clip:ViT-L-14/openai" in complaint(UsageError, "ViT-L-14", None)
    assert f"clip:{SMALL}" in complaint(UsageError, SMALL, None)


def test_a_tokenizer_that_is_not_here_is_named_before_anything_is_embedded(cache: Path) -> None:
    message = complaint(EncoderError, "roberta-ViT-B-32/laion2b_s12b_b32k", None)
    assert "https://huggingface.co/roberta-base" in message


def test_checkpoints_that_are_none_are_refused(tmp_path: Path, small: Any) -> None:
    absent = tmp_path / "absent.pt"
    assert "no such checkpoint" in complaint(EncoderError, None, absent)
    text = tmp_path / "text.safetensors"
    text.write_text("not weights")
    assert "damaged" in complaint(EncoderError, SMALL, text)
    torch.save(subprocess.Popen, tmp_path / "pickle.pt", pickle_protocol=4)
    assert "names subprocess.Popen" in complaint(EncoderError, SMALL, tmp_path / "pickle.pt")
    save_file({"visual.proj": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    message = complaint(EncoderError, SMALL, tmp_path / "other.safetensors")
    assert "another model: Missing key(s)" in message


def test_openais_archives_are_refused_with_the_way_to_convert_them(
    tmp_path: Path, small: Any
) -> None:
    archive = tmp_path / "ViT-S.pt"
    save_archive(small, archive)
    message = complaint(EncoderError, SMALL, archive)
    assert "https://huggingface.co/timm/vit_base_patch32_clip_224.openai" in message
    command = message.partition('python -c "')[2].partition('"')[0]
    done = forked.run("-c", command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ours = CLIP.load(variant=SMALL, checkpoint=tmp_path / "clip.pt", device="cpu")
    assert torch.equal(ours.model.visual.proj, small.visual.proj)  # type: ignore[attr-defined]


def save_archive(model: Any, path: Path) -> None:
    """Write the state dict of `model` and the entries that OpenAI adds, as OpenAI did."""

    class Archive(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, child in model.named_children():
                self.add_module(name, child)
            for name, value in model.named_parameters(recurse=False):
                self.register_parameter(name, value)
            for name in ("input_resolution", "context_length", "vocab_size"):
                self.register_buffer(name, torch.tensor(77))

        def forward(self, x: Tensor) -> Tensor:
            return self.ln_final(x)  # type: ignore[no-any-return, operator]

    with warnings.catch_warnings():  # torch.jit is deprecated; OpenAI's files are as they are
        warnings.simplefilter("ignore", DeprecationWarning)
        archive = torch.jit.trace(  # type: ignore[no-untyped-call]
            Archive().eval(), torch.zeros(1, 77, 256)
        )
        torch.jit.save(archive, path)


def test_weights_of_another_model_are_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"^the checkpoint is of another model: text pos_embed"):
        load_encoder("clip", checkpoint=clip_checkpoint(tmp_path))
