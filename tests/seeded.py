"""Seeded random weights in the publishers' own layout, small where the architecture allows.

clip_checkpoint(folder)      # for clip:ViT-S-32-alt
clap_checkpoint(folder)      # for clap, at the real architecture; cache_tokenizer for its texts
ulip_checkpoint(folder)      # for ulip, one layer a tower
hf_folder(folder, name)      # for hf:FOLDER/NAME, two layers a tower
"""

import argparse
import json
import string
import warnings
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cmcr.extract.encoders import clap
from cmcr.extract.encoders.clap import END, TOKENIZER_FILES, VOCABULARY
from cmcr.extract.encoders.models import htsat
from cmcr.extract.encoders.models.ulip_towers import PointBERT

SMALL_CLIP = "ViT-S-32-alt"  # 256-d; it has no published weights

# clip


def clip_checkpoint(folder: Path, seed: int = 0, model: str = SMALL_CLIP) -> Path:
    """open_clip's file of its own model."""
    import open_clip

    torch.manual_seed(seed)
    path = folder / f"clip-{seed}.safetensors"
    save_file(open_clip.create_model(model).state_dict(), path)
    return path


# clap: laion_clap's model, and checkpoints of it


@cache
def shared_roberta() -> nn.Module:
    model: nn.Module = clap.roberta()
    return model


@cache
def publisher(variant: str) -> Any:
    """laion_clap's own class CLAP with random weights, its text model built without network."""
    from transformers import RobertaModel

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # timm's and torch's, about how laion_clap uses them
        patch.setattr(RobertaModel, "from_pretrained", lambda name: shared_roberta())
        module = htsat.clap_module("model")
        size, fusion = clap.VARIANTS[variant].size, clap.VARIANTS[variant].fusion
        model = module.CLAP(
            embed_dim={"tiny": 768, "base": 1024}[size],
            audio_cfg={"model_type": "HTSAT", "model_name": size, "hop_size": 480},
            text_cfg={**dict.fromkeys(("vocab_size", "width", "heads", "layers"), 1)}
            | {"model_type": "roberta", "context_length": 77},
            enable_fusion=fusion,
            fusion_type="aff_2d" if fusion else "None",
        )
    model.load_state_dict(random_state(model))
    return model.eval()


def random_state(model: nn.Module) -> dict[str, Tensor]:
    """Random weights that fill a small file: matrices whose rows are one row, shifted."""
    state = model.state_dict()
    for name, value in state.items():
        kept = "extractor" in name or "attn_mask" in name
        if value.is_floating_point() and value.ndim > 1 and not kept:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            row = torch.randn(sum(value.shape), generator=generator)
            row *= (2 / value[0].numel()) ** 0.5
            state[name] = row.as_strided(value.shape, (1,) * value.ndim)
    state["audio_branch.bn0.running_mean"] = torch.full((64,), -40.0)  # where decibels lie
    state["audio_branch.bn0.running_var"] = torch.full((64,), 400.0)
    return state


def published(variant: str) -> dict[str, Any]:
    """What a published file holds: training state beside the weights."""
    state = random_state(publisher(variant))
    state["text_branch.embeddings.position_ids"] = torch.arange(514)[None]
    return {
        "epoch": 45,
        "name": "2022-11-10",
        "metrics": {"best": np.float64(0.5), "step": np.int64(3)},
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": []},
        "scaler": {"scale": 65536.0, "_growth_tracker": 0},
        "state_dict": {f"module.{name}": value for name, value in state.items()},
    }


def clap_checkpoint(folder: Path, variant: str = clap.DEFAULT) -> Path:
    """A file as laion_clap's training wrote it."""
    path = folder / f"{variant}.pt"
    torch.save(published(variant), path)
    return path


def cache_tokenizer(hub: Path, entries: int = VOCABULARY) -> None:
    """A tokenizer of single letters and fillers, as the hub's client caches roberta-base."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    fillers = [f"filler{number}" for number in range(entries - len(special) - len(letters) - 1)]
    vocabulary = {word: i for i, word in enumerate([*special, *letters, *fillers, "<mask>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", END), ("<s>", 0))
    contents = json.dumps(vocabulary), "#version: 0.2\n", tokenizer.to_str()
    repository = hub / f"models--{clap.TOKENIZER}"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    for name, content in zip(TOKENIZER_FILES, contents, strict=True):
        (snapshot / name).write_text(content)


# ulip


def seeded(state: Mapping[str, Tensor], scale: float = 0.05) -> dict[str, Tensor]:
    """Random weights of the shapes in `state`, name by name from one stream; scales around 1."""
    random = np.random.RandomState(0)
    made = dict(state)
    for name in sorted(name for name, tensor in state.items() if tensor.is_floating_point()):
        values = np.asarray(scale * random.standard_normal(tuple(state[name].shape)))
        if values.ndim == 1 and name.endswith(("weight", "running_var")):
            values += 1
        made[name] = torch.from_numpy(values.astype(np.float32))
    return made


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


def ulip_weights() -> dict[str, Tensor]:
    """A state dict with the published names, one layer a tower."""
    from open_clip.transformer import TextTransformer
    from timm import create_model

    vit: Any = create_model(
        "vit_base_patch16_224", num_classes=0, embed_dim=64, depth=1, num_heads=1
    )
    return seeded(
        prefixed("point_encoder", PointBERT(64, 1, 32).state_dict())
        | prefixed("visual", vit.state_dict())
        | TextTransformer(width=64, heads=1, layers=1).state_dict()
        | {"pc_projection": torch.zeros(128, 512), "image_projection": torch.zeros(64, 512)}
        | {"logit_scale": torch.zeros(())}
    )


def ulip_checkpoint(folder: Path) -> Path:
    """A file as ULIP's training wrote it, its flags and all."""
    path = folder / "pointbert_ULIP-2.pt"
    flags = argparse.Namespace(model="ULIP_PointBERT", npoints=8192, betas=(0.9, 0.98), gpu=None)
    torch.save(
        {
            "epoch": "last",
            "state_dict": prefixed("module", ulip_weights()),
            "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
            "best_acc1": 75.6,
            "args": flags,
        },
        path,
    )
    return path


# hf


SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
SENTENCE = "a the of in on dog cat rain snow photo red blue two and"
WORDS = [*dict.fromkeys([*SPECIAL, *SENTENCE.split(), *string.ascii_letters])]
TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def word_tokenizer(length: int, reads: list[str] | None = None) -> Any:
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_max_length=length,
        model_input_names=reads or ["input_ids", "attention_mask"],
        padding_side="right",
        **names,
    )


def text_tower(length: int, **more: Any) -> dict[str, Any]:
    tokens = {"vocab_size": len(WORDS), "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    return {**TINY, **tokens, "max_position_embeddings": length, **more}


def hf_model(name: str) -> tuple[Any, Any]:
    """The model `name`, untrained, and its processor."""
    import transformers as t

    picture = {**TINY, "image_size": 32, "patch_size": 8}
    square = {"size": {"height": 32, "width": 32}}
    if name == "clip":
        clip = t.CLIPConfig(text_config=text_tower(12), vision_config=picture, projection_dim=24)
        cropped = t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
        return t.CLIPModel(clip), t.CLIPProcessor(cropped, word_tokenizer(12))
    if name == "siglip":
        siglip = t.SiglipConfig(
            text_config=text_tower(10, projection_size=32), vision_config=picture
        )
        processor = t.SiglipProcessor(
            t.SiglipImageProcessor(**square), word_tokenizer(10, ["input_ids"])
        )
        return t.SiglipModel(siglip), processor
    if name == "siglip2":
        patches = {**TINY, "num_patches": 16, "patch_size": 16}
        siglip2 = t.Siglip2Config(
            text_config=text_tower(64, projection_size=32), vision_config=patches
        )
        processor = t.Siglip2Processor(
            t.Siglip2ImageProcessor(), word_tokenizer(10**30, ["input_ids"])
        )
        return t.Siglip2Model(siglip2), processor
    if name == "altclip":  # its text tower is XLM-RoBERTa: two positions go to the padding
        roberta = text_tower(22, project_dim=32)
        altclip = t.AltCLIPConfig(text_config=roberta, vision_config=picture, projection_dim=24)
        cropped = t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
        return t.AltCLIPModel(altclip), t.AltCLIPProcessor(cropped, word_tokenizer(10**30))
    if name == "chinese-clip":
        reads = ["input_ids", "token_type_ids", "attention_mask"]
        chinese = t.ChineseCLIPConfig(
            text_config=text_tower(16), vision_config=picture, projection_dim=24
        )
        pictures = t.ChineseCLIPImageProcessor(**square, crop_size=32)
        return t.ChineseCLIPModel(chinese), t.ChineseCLIPProcessor(
            pictures, word_tokenizer(16, reads)
        )
    fused = name == "clap-fused"
    sound = {
        "patch_embeds_hidden_size": 8,
        "hidden_size": 64,
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
        "num_hidden_layers": 4,
        "projection_dim": 24,
        "enable_fusion": fused,
    }
    sounds = t.ClapConfig(
        text_config=text_tower(22, projection_dim=24), audio_config=sound, projection_dim=24
    )
    extractor = t.ClapFeatureExtractor(truncation="fusion" if fused else "rand_trunc")
    return t.ClapModel(sounds), t.ClapProcessor(extractor, word_tokenizer(20))


def hf_folder(folder: Path, name: str) -> Path:
    """The folder of the model `name`, as transformers itself saves it."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    model, processor = hf_model(name)
    for weight in model.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder / name)
    processor.save_pretrained(folder / name)
    return folder / name
