"""hf gives what calling transformers with the model's processor gives, on tiny seeded models.

pytest tests/extract/test_hf.py
"""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from seeded import TINY, WORDS, hf_folder, text_tower
from torch import Tensor
from torch.nn import functional as F

from cmcr.cli.app import main
from cmcr.embeddings import Key, open_dataset
from cmcr.embeddings.schema import canonical_json, identity
from cmcr.errors import EncoderError, SourceError, UsageError
from cmcr.extract import encoder_spec, load_encoder
from cmcr.extract.encoders.hf.encoder import HfEncoder
from cmcr.extract.encoders.models import clap_audio
from cmcr.extract.items import Waveform

IMAGE_MODELS = ("clip", "siglip", "siglip2", "altclip", "chinese-clip")
AUDIO_MODELS = ("clap-fused", "clap-cropped")
MODELS = (*IMAGE_MODELS, *AUDIO_MODELS)
PADDED = ("siglip", "siglip2")  # trained with their padding
TEXTS = ["a dog", "the cat in the rain", "two red dog and a blue cat on snow " * 9, "x"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model, written by save_pretrained."""
    folder = tmp_path_factory.mktemp("models")
    return cache(lambda name: hf_folder(folder, name))


@pytest.fixture(scope="module")
def load(saved: Callable[[str], Path]) -> Callable[[str], HfEncoder]:
    @cache
    def loaded(name: str) -> HfEncoder:
        encoder = load_encoder(f"hf:{saved(name)}")
        assert isinstance(encoder, HfEncoder)
        return encoder

    return loaded


@cache
def theirs(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoProcessor

    return AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def direct(folder: Path, modality: str, inputs: Any) -> Tensor:
    """Unit vectors from transformers alone."""
    with torch.inference_mode():
        output = getattr(theirs(folder)[0], f"get_{modality}_features")(**inputs)
    return F.normalize(output.pooler_output, dim=-1)


def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8))
        for size in ((40, 70), (120, 33), (32, 32))
    ]


def sound(seconds: float, rate: int = 48_000) -> Waveform:
    random = np.random.default_rng(int(seconds * 1000))
    moments = np.arange(round(seconds * rate)) / rate
    tone = 0.3 * np.sin(2 * np.pi * random.uniform(100, 3000) * moments) * (moments % 1 < 0.5)
    return Waveform((tone + random.normal(0, 0.01, len(moments)))[None].astype(np.float32), rate)


def embed(encoder: HfEncoder, modality: Any, items: list[Any]) -> Tensor:
    return encoder.encode(modality, torch.stack([encoder.preprocess(modality, i) for i in items]))


def assert_same(ours: Tensor, expected: Tensor) -> None:
    assert F.cosine_similarity(ours, expected).min() > 0.999999
    assert (ours @ ours.T - torch.eye(len(ours))).max() < 0.9999  # the inputs are told apart


# The numbers


@pytest.mark.parametrize("name", MODELS)
def test_text_is_embedded_as_transformers_does(
    name: str, saved: Callable[[str], Path], load: Callable[[str], HfEncoder]
) -> None:
    encoder, processor = load(name), theirs(saved(name))[1]
    context = {"siglip": 10, "siglip2": 64, "altclip": 20, "chinese-clip": 16, "clip": 12}
    inputs = processor(
        text=TEXTS,
        padding="max_length" if name in PADDED else True,
        truncation=True,
        max_length=context.get(name, 20),
        return_tensors="pt",
    )
    expected = direct(saved(name), "text", inputs)
    assert_same(embed(encoder, "text", TEXTS), expected)
    for item, vector in zip(TEXTS, expected, strict=True):
        torch.testing.assert_close(embed(encoder, "text", [item])[0], vector, atol=1e-5, rtol=0)
    assert encoder.trims_padding == (name not in PADDED)
    rows = torch.stack([encoder.preprocess("text", item) for item in TEXTS])
    assert encoder.count_truncated(rows) == 1


def test_the_tokenizer_of_siglip_is_read_from_its_sentencepiece_file(tmp_path: Path) -> None:
    import sentencepiece
    import transformers as t

    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(" ".join(WORDS[start:]) for start in range(len(WORDS))))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "spiece"), vocab_size=60, pad_id=1,
        eos_id=2, unk_id=0, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    tokens = t.SiglipTokenizer(str(tmp_path / "spiece.model"), model_max_length=10)
    sizes = {**text_tower(10, projection_size=32), "vocab_size": len(tokens)}
    pictures = {**TINY, "image_size": 32, "patch_size": 8}
    model = t.SiglipModel(t.SiglipConfig(text_config=sizes, vision_config=pictures))
    processor = t.SiglipProcessor(t.SiglipImageProcessor(size={"height": 32, "width": 32}), tokens)
    model.save_pretrained(tmp_path / "siglip")
    processor.save_pretrained(tmp_path / "siglip")
    encoder = load_encoder(f"hf:{tmp_path / 'siglip'}")
    assert isinstance(encoder, HfEncoder)
    inputs = processor(text=TEXTS, padding="max_length", truncation=True, return_tensors="pt")
    assert inputs["input_ids"].max() > 10  # pieces of words, not the unknown one
    assert_same(embed(encoder, "text", TEXTS), direct(tmp_path / "siglip", "text", inputs))


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_images_are_embedded_as_transformers_does(
    name: str, saved: Callable[[str], Path], load: Callable[[str], HfEncoder]
) -> None:
    inputs = theirs(saved(name))[1](images=pictures(), return_tensors="pt")
    assert_same(embed(load(name), "image", pictures()), direct(saved(name), "image", inputs))
    grey = embed(load(name), "image", [Image.new(mode, (50, 40), "gray") for mode in ("L", "RGB")])
    torch.testing.assert_close(grey[0], grey[1])


@pytest.mark.parametrize("name", AUDIO_MODELS)
def test_audio_is_embedded_as_transformers_does(
    name: str, saved: Callable[[str], Path], load: Callable[[str], HfEncoder]
) -> None:
    sounds = [sound(11.3), sound(1.0), sound(10.004)]
    extractor = theirs(saved(name))[1].feature_extractor
    features = []
    for one in sounds:
        np.random.set_state(clap_audio.generator(one).get_state())
        features.append(
            extractor(one.samples[0], sampling_rate=48_000, return_tensors="pt")["input_features"]
        )
    longer = torch.tensor([[True], [False], [False]])
    inputs = {"input_features": torch.cat(features), "is_longer": longer}
    encoder, before = load(name), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    ours = embed(encoder, "audio", sounds)
    assert_same(ours, direct(saved(name), "audio", inputs))
    again = torch.cat([embed(encoder, "audio", [one]) for one in sounds])
    torch.testing.assert_close(again, ours, atol=1e-5, rtol=0)
    assert np.array_equal(np.random.get_state()[1], before)  # type: ignore[index, arg-type]


def test_audio_of_another_rate_is_resampled(load: Callable[[str], HfEncoder]) -> None:
    import soxr

    stereo = Waveform(np.repeat(sound(1.5, 16_000).samples, 2, axis=0), 16_000)
    resampled = soxr.resample(stereo.samples[0], 16_000, 48_000, quality="HQ")
    ours = embed(load("clap-fused"), "audio", [stereo, Waveform(resampled[None], 48_000)])
    torch.testing.assert_close(ours[0], ours[1], atol=1e-5, rtol=0)


def test_mixed_precision(load: Callable[[str], HfEncoder]) -> None:
    for name, modality, items in (
        ("clap-fused", "audio", [sound(11.3), sound(1.0)]),
        ("clip", "image", pictures()),
    ):
        plain = embed(load(name), modality, items)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = embed(load(name), modality, items)
        assert mixed.dtype == torch.float32
        assert F.cosine_similarity(plain, mixed).min() > 0.99


def test_a_token_that_the_model_does_not_know_costs_its_text_only(
    load: Callable[[str], HfEncoder],
) -> None:
    preprocess = replace(load("clip").preprocess, vocabulary=10)
    assert preprocess("text", "a dog").dtype == torch.int64
    with pytest.raises(SourceError, match="the model knows 10"):
        preprocess("text", "two")


# Through the command line


def run(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["cmcr", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


def test_the_command_line_stores_them_and_finds_them_up_to_date(
    saved: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved("clip"), "my")
    Path("photos").mkdir()
    for number, picture in enumerate(pictures()):
        picture.save(f"photos/{number}.png")
    flags = ["--encoder", "hf:./my", "--source", "image=photos", "--precision", "float32"]
    flags += ["--workers", "0", "--part-rows", "2"]
    for shard in (1, 0):
        assert (
            run("extract", *flags, "--store", "S", "--num-shards", 2, "--shard-index", shard) == 0
        )
    assert run("extract", *flags, "--store", "T", "--workers", "1") == 0
    key = Key("hf-.-my", "image", "photos")
    parts = {store: sorted(key.folder(Path(store)).glob("part-*")) for store in "ST"}
    bytes_before = [part.read_bytes() for part in parts["S"]]
    assert len(bytes_before) == 2
    assert bytes_before == [part.read_bytes() for part in parts["T"]]
    assert run("extract", *flags, "--store", "S") == 0
    assert bytes_before == [part.read_bytes() for part in parts["S"]]

    rows = torch.from_numpy(np.concatenate(list(open_dataset(Path("S"), key).batches())))
    inputs = theirs(saved("clip"))[1](images=pictures(), return_tensors="pt")
    assert_same(rows, direct(saved("clip"), "image", inputs))


def test_another_model_under_the_same_name_is_refused(
    saved: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved("clip"), "a/b")
    shutil.copytree(saved("altclip"), "a-b")
    Path("texts.txt").write_text("a dog\nthe cat\n")
    flags = ["--source", "text=texts.txt", "--store", "S", "--workers", "0"]
    assert run("extract", "--encoder", "hf:./a/b", *flags) == 0
    assert run("extract", "--encoder", "hf:./a-b", *flags) == 1
    assert "encoder.checkpoint_sha256" in capsys.readouterr().err


def test_the_list_of_encoders_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("encoders", "--json") == 0
    lines = {line["encoder"]: line for line in json.loads(capsys.readouterr().out)["encoders"]}
    assert lines["hf"]["dim"] is None
    assert lines["hf"]["weights"] == "named after the colon"


# What makes them


def test_cache_and_folder_have_one_fingerprint(
    saved: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--name"
    shutil.copytree(saved("clip"), repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    cached = load_encoder("hf:owner/name").fingerprint()
    folder = load_encoder("hf:owner/name", checkpoint=saved("clip")).fingerprint()
    assert identity(cached) == identity(folder)
    assert cached["where"] == "owner/name"
    assert folder["where"] == str(saved("clip"))
    assert json.loads(canonical_json(dict(cached))) == cached


def test_what_decides_the_numbers_is_in_the_fingerprint(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    def changed(file: str, old: str, new: str) -> str:
        folder = tmp_path / new
        shutil.copytree(saved("clip"), folder)
        content = (folder / file).read_text()
        assert old in content
        (folder / file).write_text(content.replace(old, new))
        return identity(load_encoder(f"hf:{folder}").fingerprint())

    identities = {
        identity(load_encoder(f"hf:{saved('clip')}").fingerprint()),
        changed("config.json", "quick_gelu", "relu"),
        changed("processor_config.json", "0.26862954", "0.25"),
        changed("tokenizer.json", '"dog"', '"wolf"'),
        changed("tokenizer_config.json", '"model_max_length": 12', '"model_max_length": 11'),
    }
    assert len(identities) == 5


def test_shards_are_hashed_together(saved: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(saved("clip"), tmp_path / "sharded")
    (tmp_path / "sharded" / "model.safetensors").unlink()
    theirs(saved("clip"))[0].save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    encoder = load_encoder(f"hf:{tmp_path / 'sharded'}")
    assert isinstance(encoder, HfEncoder)
    whole = load_encoder(f"hf:{saved('clip')}")
    assert encoder.checkpoint_sha256 != whole.fingerprint()["checkpoint_sha256"]
    embedded = embed(encoder, "text", TEXTS)
    rows = torch.stack([whole.preprocess("text", item) for item in TEXTS])
    torch.testing.assert_close(embedded, whole.encode("text", rows))
    next((tmp_path / "sharded").glob("model-00001-*")).unlink()
    with pytest.raises(EncoderError, match="1 of the"):
        load_encoder(f"hf:{tmp_path / 'sharded'}")


def test_preprocess_is_sent_to_workers_without_weights(load: Callable[[str], HfEncoder]) -> None:
    for name in ("siglip2", "clap-fused"):
        sent = pickle.dumps(load(name).preprocess)
        assert len(sent) < 1_500
        assert torch.equal(
            pickle.loads(sent)("text", "a dog"), load(name).preprocess("text", "a dog")
        )


# What cannot be used


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without(*names: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def configured(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:1_000])


def larger(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = 49_408
    (folder / "config.json").write_text(json.dumps(config))


def uncropped(folder: Path) -> None:
    settings = json.loads((folder / "processor_config.json").read_text())
    settings["image_processor"]["do_center_crop"] = False
    (folder / "processor_config.json").write_text(json.dumps(settings))


def unpadded(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("spoil", "what", "fix"),
    [
        (uncropped, "image of different shapes", "one size"),
        (unpadded, "the processor cannot take text", "as its publisher saved it"),
        (pickled, "only there as a pickle", "save_pretrained('converted')"),
        (without("model.safetensors"), "no weights here", "save_pretrained"),
        (without("config.json"), "no config.json", "save_pretrained"),
        (without("processor_config.json"), "processor", "preprocessor_config.json"),
        (without("tokenizer.json", "tokenizer_config.json"), "tokenizer has 2", "tokenizer.json"),
        (larger, "knows 49,408 tokens, its tokenizer has", "tokenizer.json"),
        (cut, "weights do not fit", "whole"),
        (configured(projection_dim=16), "of another shape", "whole"),
        (configured(model_type="bert"), "BertModel is no dual encoder", "CLIP"),
        (configured(model_type="altclip"), "tensors are missing", "whole"),
        (configured(model_type="new"), "does not know the model type 'new'", "CLIP"),
    ],
)
def test_folders_that_cannot_be_used(
    spoil: Callable[[Path], None],
    what: str,
    fix: str,
    saved: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "spoilt"
    shutil.copytree(saved("clip"), folder)
    spoil(folder)
    with pytest.raises(EncoderError) as raised:
        load_encoder(f"hf:{folder}")
    assert what in raised.value.what
    assert str(folder) in str(raised.value.where)
    assert fix in str(raised.value.fix)


def test_a_model_that_is_not_here_is_asked_for_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EncoderError) as raised:
        load_encoder("hf:owner/name@v2")
    assert "owner/name@v2" in raised.value.what
    assert str(tmp_path) in str(raised.value.where)
    assert "hf download owner/name --revision v2" in str(raised.value.fix)


def test_names_that_name_no_model(tmp_path: Path) -> None:
    for spec in ("hf", "hf:nothing", f"hf:{tmp_path}/nothing", "hf:./nothing"):
        with pytest.raises(UsageError) as raised:
            load_encoder(spec)
        assert "OWNER/NAME" in str(raised.value.fix)
    with pytest.raises(UsageError, match="takes a folder as --checkpoint"):
        load_encoder("hf:owner/name", checkpoint=tmp_path / "model.safetensors")
    assert encoder_spec("hf:owner/name").dim is None
