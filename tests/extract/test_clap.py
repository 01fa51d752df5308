"""clap gives what laion_clap's model gives, at the real architecture, with seeded random weights.

    pytest tests/extract/test_clap.py

benchmarks/parity_clap.py compares with all of laion_clap, its loaders included, and on more clips.
"""

import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from seeded import cache_tokenizer, clap_checkpoint, published, publisher, random_state
from torch import Tensor
from torch.nn import functional as F

from cmcr.embeddings.schema import canonical_json
from cmcr.errors import EncoderError, SourceError, UsageError
from cmcr.extract.encoders import clap
from cmcr.extract.encoders.clap import CLAP, CONTEXT, END, PAD, TOKENIZER_FILES, VOCABULARY
from cmcr.extract.encoders.models import clap_audio
from cmcr.extract.items import Waveform
from cmcr.files import sha256_file

MUSIC = "music_audioset_epoch_15_esc_90.14"
VARIANTS = ("630k-fusion-best", "630k-best", MUSIC)
CLIP_CASES = [(1.0, 8_000, 1), (5.0, 22_050, 2), (10.004, 48_000, 1)]
LONG_CASE = (12.3, 16_000, 2)


def clip(seconds: float, rate: int, channels: int) -> Waveform:
    """A tone of its own in noise of its own."""
    random = np.random.default_rng(int(seconds * 1000) + rate)
    moments = np.arange(round(seconds * rate)) / rate
    tone = 0.3 * np.sin(2 * np.pi * random.uniform(100, 3000) * moments)
    tone *= moments % 1 < random.uniform(0.2, 0.8)
    noise = random.normal(0, 10 ** random.uniform(-4, -1), (channels, len(moments)))
    return Waveform((tone + noise).astype(np.float32), rate)


# laion_clap's model, and checkpoints of it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clap")


@pytest.fixture(scope="module")
def load(folder: Path) -> Callable[[str], clap.ClapEncoder]:
    """The encoder of a variant, from a checkpoint in the publisher's layout."""

    @cache
    def loaded(variant: str) -> clap.ClapEncoder:
        file = clap_checkpoint(folder, variant)
        return clap.open_encoder(variant=variant, checkpoint=file, device="cpu")

    return loaded


def embed(encoder: clap.ClapEncoder, clips: list[Waveform]) -> Tensor:
    return encoder.encode("audio", torch.stack([encoder.preprocess("audio", c) for c in clips]))


# Audio


def published_features(waveform: Waveform, fusion: bool) -> dict[str, Tensor]:
    """The recipe of laion_clap's hook.py and training/data.py, in the libraries they use."""
    import librosa
    from torchaudio.transforms import AmplitudeToDB, MelSpectrogram
    from torchvision.transforms import Resize

    mono = librosa.to_mono(waveform.samples)
    mono = librosa.resample(mono, orig_sr=waveform.sample_rate, target_sr=48_000)
    mono = (np.clip(mono, -1, 1) * 32767.0).astype(np.int16)
    samples = torch.from_numpy((mono / 32767.0).astype(np.float32))
    spectrogram = MelSpectrogram(
        48_000, n_fft=1024, hop_length=480, f_min=50, f_max=14_000, n_mels=64
    )
    random = clap_audio.generator(waveform)
    if len(samples) <= 480_000:
        samples = samples.repeat(480_000 // len(samples))
        samples = F.pad(samples, (0, 480_000 - len(samples)))
    mel = AmplitudeToDB(top_db=None)(spectrogram(samples)).T  # (frames, 64)
    longer = fusion and len(mel) > 1001
    if longer:
        thirds = np.array_split(list(range(len(mel) - 1001 + 1)), 3)
        chunks = [mel[start : start + 1001] for start in map(random.choice, thirds)]
        shrink = Resize([1001, 64], antialias=False)  # as torchvision did when CLAP was trained
        mels = torch.stack([shrink(mel[None])[0], *chunks])
    else:
        mels = torch.stack([mel[:1001]] * 4)
        start = random.randint(0, len(samples) - 480_000 + 1)
        samples = samples[start : start + 480_000]
    return {"mel_fusion": mels, "waveform": samples[:480_000], "longer": torch.tensor([longer])}


@pytest.mark.parametrize("variant", VARIANTS)
def test_audio_is_embedded_as_laion_clap_does(
    variant: str, load: Callable[[str], clap.ClapEncoder]
) -> None:
    cases = (*(CLIP_CASES[:1] if variant == MUSIC else CLIP_CASES), LONG_CASE)
    clips = [clip(*case) for case in cases]
    features = [published_features(c, clap.VARIANTS[variant].fusion) for c in clips]
    theirs = publisher(variant)
    with torch.inference_mode():
        expected = theirs.get_audio_embedding(features)
    embeddings = embed(load(variant), clips)

    assert F.cosine_similarity(expected, embeddings).min() > 0.9999
    mean = expected.mean(0)
    assert F.cosine_similarity(expected - mean, embeddings - mean).min() > 0.9999
    between = F.normalize(embeddings - mean, dim=1) @ F.normalize(embeddings - mean, dim=1).T
    assert (between - torch.eye(len(clips))).max() < 0.999  # the weights tell the clips apart


def test_a_long_clip_has_one_embedding(load: Callable[[str], clap.ClapEncoder]) -> None:
    encoder, sound = load(VARIANTS[0]), clip(*LONG_CASE)
    again = Waveform(sound.samples.copy(), sound.sample_rate)
    assert torch.equal(embed(encoder, [sound]), embed(encoder, [again]))

    mel = clap_audio.spectrogram(clap_audio.quantised(sound))
    chunks = [clap_audio.fused(mel, np.random.RandomState(seed)) for seed in (0, 0, 1)]
    assert torch.equal(chunks[0], chunks[1])
    assert not torch.equal(chunks[0], chunks[2])
    assert torch.equal(chunks[0][0], chunks[2][0])


def test_a_long_clip_is_shrunk_without_antialiasing() -> None:
    """Linear between the two nearest frames, as torchvision before 0.17 did by default."""
    mel = torch.randn(3_001, 64, generator=torch.Generator().manual_seed(0)) * 20
    places = (np.arange(1_001) + 0.5) * len(mel) / 1_001 - 0.5
    expected = [np.interp(places, np.arange(len(mel)), column) for column in mel.double().numpy().T]
    shrunk = clap_audio.fused(mel, np.random.RandomState(0))[0]
    np.testing.assert_allclose(shrunk, np.stack(expected, axis=1), atol=0.05)


def test_an_embedding_does_not_depend_on_its_batch(
    load: Callable[[str], clap.ClapEncoder],
) -> None:
    encoder = load(VARIANTS[0])
    clips = [clip(*LONG_CASE), clip(*CLIP_CASES[0]), clip(*CLIP_CASES[1])]
    together = embed(encoder, clips)
    for sound, embedding in zip(clips, together, strict=True):
        torch.testing.assert_close(embed(encoder, [sound])[0], embedding, atol=1e-5, rtol=0)


def test_a_long_spectrogram_is_computed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = clap_audio.quantised(clip(*LONG_CASE))
    whole = clap_audio.spectrogram(samples)
    monkeypatch.setattr(clap_audio, "FRAMES_AT_ONCE", 100)
    torch.testing.assert_close(clap_audio.spectrogram(samples), whole)


def test_mixed_precision(load: Callable[[str], clap.ClapEncoder]) -> None:
    encoder, clips = load(VARIANTS[0]), [clip(*CLIP_CASES[0]), clip(*LONG_CASE)]
    records = torch.stack([encoder.preprocess("audio", sound) for sound in clips])
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = encoder.encode("audio", records)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))
    assert F.cosine_similarity(embeddings, encoder.encode("audio", records)).min() > 0.999


@pytest.mark.parametrize("samples", [np.ones((1, 1)), np.zeros((2, 100)), np.full((1, 9_000), 7.0)])
def test_odd_clips_are_embedded(
    samples: np.ndarray, load: Callable[[str], clap.ClapEncoder]
) -> None:
    embeddings = embed(load(VARIANTS[0]), [Waveform(samples.astype(np.float32), 192_000)])
    assert embeddings.isfinite().all()


def test_a_clip_without_samples_is_refused() -> None:
    with pytest.raises(SourceError, match="no samples"):
        clap.Preprocess(fusion=True)("audio", Waveform(np.zeros((1, 0), np.float32), 48_000))


# Text


def test_text_is_embedded_as_laion_clap_does(load: Callable[[str], clap.ClapEncoder]) -> None:
    encoder = load(VARIANTS[0])
    generator = torch.Generator().manual_seed(0)
    tokens = torch.full((4, CONTEXT + 1), PAD)
    for row, length in zip(tokens, (3, 12, 77, 78), strict=True):
        row[:length] = torch.randint(4, VOCABULARY - 1, (length,), generator=generator)
        row[0], row[length - 1] = 0, END
    tokens[1, 5] = PAD  # a text that names the padding token
    assert encoder.count_truncated(tokens) == 1

    cut = tokens[:, :CONTEXT].clone()
    cut[3, -1] = END
    mask = torch.arange(CONTEXT) < torch.tensor([3, 12, 77, 77])[:, None]
    with torch.inference_mode():
        expected = publisher(VARIANTS[0]).get_text_embedding(
            {"input_ids": cut, "attention_mask": mask.long()}
        )
    torch.testing.assert_close(encoder.encode("text", tokens), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.encode("text", tokens[:1]), expected[:1], atol=1e-5, rtol=0)
    assert (expected @ expected.T - torch.eye(4)).max() < 0.99


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    clap.tokenizer.cache_clear()
    return tmp_path


def test_text_is_cut_and_padded(hub: Path) -> None:
    cache_tokenizer(hub, VOCABULARY)
    preprocess = clap.Preprocess(fusion=True)
    short, long = (preprocess("text", text) for text in ("ab", "a" * 200))
    assert short[0] == 0
    assert short[3] == END
    assert (short[4:] == PAD).all()
    assert len(short) == len(long) == CONTEXT + 1
    assert long[-1] == END


def test_text_without_a_tokenizer_stops_before_anything_is_written(
    hub: Path, load: Callable[[str], clap.ClapEncoder]
) -> None:
    encoder = load(VARIANTS[0])
    encoder.ready("audio")
    with pytest.raises(EncoderError) as raised:
        encoder.ready("text")
    for part in (*TOKENIZER_FILES, "hf download roberta-base", str(hub)):
        assert part in str(raised.value)


def test_another_tokenizer_is_refused(hub: Path) -> None:
    cache_tokenizer(hub, 300)
    with pytest.raises(EncoderError, match=r"50,265 entries, this one has 300"):
        clap.tokenizer()


# Checkpoints


@pytest.mark.parametrize(
    ("protocol", "zipped"), [(2, False), (3, True), (4, True), (4, False), (5, True)]
)
def test_published_files_of_every_protocol(protocol: int, zipped: bool, folder: Path) -> None:
    torch.save(
        published(VARIANTS[0]),
        folder / "other.pt",
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=zipped,
    )
    read = clap.published_state(VARIANTS[0], folder / "other.pt")
    expected = random_state(publisher(VARIANTS[0]))
    assert read.keys() <= expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read.items())


def test_keys_with_and_without_prefix_and_positions(folder: Path) -> None:
    states = []
    for name, held in (
        ("nested.pt", published(VARIANTS[0])),
        ("bare.pt", random_state(publisher(VARIANTS[0]))),
    ):
        torch.save(held, folder / name)
        states.append(clap.published_state(VARIANTS[0], folder / name))
    nested, bare = states
    assert nested.keys() == bare.keys()
    assert all(torch.equal(nested[name], bare[name]) for name in nested)


def test_the_fingerprint_names_variant_and_checkpoint(
    folder: Path, load: Callable[[str], clap.ClapEncoder]
) -> None:
    fingerprints = [load(variant).fingerprint() for variant in VARIANTS]
    assert fingerprints[0]["encoder"] == "clap:630k-fusion-best"
    assert fingerprints[0]["checkpoint_sha256"] == sha256_file(folder / "630k-fusion-best.pt")
    assert fingerprints[0]["preprocessing"]["audio"]["antialias"] is False
    assert "antialias" not in fingerprints[1]["preprocessing"]["audio"]
    assert fingerprints[1]["preprocessing"] == fingerprints[2]["preprocessing"]
    canonical_json(dict(fingerprints[0]))


def test_wrong_checkpoints_are_refused(
    tmp_path: Path, load: Callable[[str], clap.ClapEncoder]
) -> None:
    def refused(state: dict[str, Tensor], variant: str = VARIANTS[0]) -> str:
        torch.save(state, tmp_path / "wrong.pt")
        with pytest.raises(EncoderError) as raised:
            CLAP.load(variant=variant, checkpoint=tmp_path / "wrong.pt", device="cpu")
        return str(raised.value)

    state = random_state(publisher(VARIANTS[0]))
    assert "not a checkpoint of CLAP" in refused({"weight": torch.zeros(1)})
    wrong = refused(state, MUSIC)
    assert "HTSAT-tiny with fusion" in wrong
    assert "clap:630k-fusion-best or clap:630k-audioset-fusion-best" in wrong
    state.pop("text_projection.0.bias")
    assert "text_projection.0.bias" in refused(state)


def test_a_published_file_is_named_when_it_is_taken_for_another(
    folder: Path, load: Callable[[str], clap.ClapEncoder]
) -> None:
    load(MUSIC)  # which writes its file
    with pytest.raises(EncoderError) as raised:
        CLAP.load(variant=None, checkpoint=folder / f"{MUSIC}.pt", device="cpu")
    assert "HTSAT-base without fusion" in raised.value.what
    assert raised.value.fix == f"write --encoder clap:{MUSIC}"


def test_unknown_variants_and_modalities_are_refused() -> None:
    with pytest.raises(UsageError, match="no variant 'music'"):
        CLAP.load(variant="music", checkpoint=None, device="cpu")
    with pytest.raises(UsageError, match="does not embed image"):
        clap.Preprocess(fusion=True)("image", "text")


def test_published_weights_are_asked_for_by_name(hub: Path) -> None:
    assert not CLAP.weights_present()
    with pytest.raises(EncoderError, match=r"630k-best\.pt"):
        CLAP.load(variant="630k-best", checkpoint=None, device="cpu")


def test_preprocess_is_sent_to_workers_without_weights(
    load: Callable[[str], clap.ClapEncoder],
) -> None:
    sent = pickle.dumps(load(VARIANTS[0]).preprocess)
    assert len(sent) < 1_000
    sound = clip(*CLIP_CASES[0])
    assert torch.equal(
        pickle.loads(sent)("audio", sound), clap.Preprocess(fusion=True)("audio", sound)
    )


def test_the_model_is_loaded_without_laion_claps_import() -> None:
    program = """
import socket, sys
def refuse(*arguments): raise AssertionError("network")
socket.getaddrinfo = socket.socket.connect = refuse
path = list(sys.path)
from cmcr.extract.encoders import clap
from cmcr.extract.encoders.models import htsat
assert not any(name.partition(".")[0] in ("laion_clap", "transformers") for name in sys.modules)
htsat.untrained(htsat.Architecture("tiny", fusion=True))
assert not any(name.partition(".")[0] in ("laion_clap", "clap_module") for name in sys.modules)
assert sys.path == path
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
