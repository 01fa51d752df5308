"""Seeded random weights in the publishers' own layout, small where the architecture allows.

clip_checkpoint(folder)      # for clip:ViT-S-32-alt
clap_checkpoint(folder)      # for clap, at the real architecture; cache_tokenizer for its texts
ulip_checkpoint(folder)      # for ulip, one layer a tower
"""

import argparse
import json
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


def clip_checkpoint(folder: Path, seed: int = 0) -> Path:
    """open_clip's file of its own model."""
    import open_clip

    torch.manual_seed(seed)
    path = folder / f"clip-{seed}.safetensors"
    save_file(open_clip.create_model(SMALL_CLIP).state_dict(), path)
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
