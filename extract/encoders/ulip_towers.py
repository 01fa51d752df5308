"""ULIP's three towers with a checkpoint's weights, and what they do to a batch.

    towers = build_towers(load_state_dict_file(path))
    towers["text"](tokens)      # (batch, 77) → (batch, 512)

Point clouds: PointBERT. Images: timm's ViT. Text: open_clip's transformer. Image and text tower
are SLIP's (https://arxiv.org/abs/2112.12750), which ULIP keeps frozen. Widths and depths are read
off the checkpoint; every attention head in it has 64 channels.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cmcr.errors import EncoderError
from cmcr.extract.encoders.pointbert import HEAD, PointBERT

DIM = 512
CONTEXT = 77  # tokens
VOCABULARY = 49_408

State = Mapping[str, Tensor]


def build_towers(state: State) -> nn.ModuleDict:
    """The towers by modality, on the CPU, for evaluation.

    `state` has the names of salesforce/ULIP's ULIP_WITH_IMAGE. Raises EncoderError when it is of
    another model.
    """
    try:
        towers = {
            "pointcloud": PointTower(state),
            "image": ImageTower(state),
            "text": TextTower(state),
        }
        for tower in towers.values():
            own = {name.partition(".")[0] for name in tower.state_dict()}
            tower.load_state_dict({n: v for n, v in state.items() if n.partition(".")[0] in own})
    except KeyError as missing:
        wrong = f"it has no {missing.args[0]}"
    except (RuntimeError, IndexError, ValueError, ZeroDivisionError) as error:
        wrong = " ".join(str(error).split())[:200]
    else:
        return nn.ModuleDict(towers).eval()
    raise EncoderError(f"this is not a checkpoint of ULIP with PointBERT: {wrong}")


def depth(state: State, blocks: str) -> int:
    """How many `BLOCKS.0…`, `BLOCKS.1…` there are."""
    width = len(blocks) + 1
    numbers = {n[width:].partition(".")[0] for n in state if n.startswith(f"{blocks}.")}
    return len(numbers)


class PointTower(nn.Module):
    """PointBERT, projected."""

    def __init__(self, state: State) -> None:
        super().__init__()
        group_dim = state["point_encoder.reduce_dim.weight"].shape[1]
        width = state["point_encoder.norm.weight"].shape[0]
        self.point_encoder = PointBERT(
            width, depth(state, "point_encoder.blocks.blocks"), group_dim
        )
        self.pc_projection = nn.Parameter(torch.empty(2 * width, DIM))

    def forward(self, points: Float[Tensor, "batch n 3"]) -> Tensor:
        """Points in the unit sphere, rows of NaN being padding, to (batch, 512)."""
        projected: Tensor = self.point_encoder(points) @ self.pc_projection
        return projected


class ImageTower(nn.Module):
    """A ViT with patches of 16 on 224 × 224 pixels, projected."""

    def __init__(self, state: State) -> None:
        from timm import create_model

        super().__init__()
        width = state["visual.norm.weight"].shape[0]
        self.visual = create_model(
            "vit_base_patch16_224",
            num_classes=0,
            embed_dim=width,
            depth=depth(state, "visual.blocks"),
            num_heads=width // HEAD,
        )
        self.image_projection = nn.Parameter(torch.empty(width, DIM))

    def forward(self, images: Float[Tensor, "batch 3 224 224"]) -> Tensor:
        """To (batch, 512)."""
        projected: Tensor = self.visual(images) @ self.image_projection
        return projected


class TextTower(nn.Module):
    """CLIP's text transformer, projected."""

    def __init__(self, state: State) -> None:
        from open_clip.transformer import QuickGELU, Transformer

        super().__init__()
        width = state["positional_embedding"].shape[1]
        layers = depth(state, "transformer.resblocks")
        self.token_embedding = nn.Embedding(VOCABULARY, width)
        self.positional_embedding = nn.Parameter(torch.empty(CONTEXT, width))
        self.transformer = Transformer(width, layers, width // HEAD, act_layer=QuickGELU)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, DIM))

    def forward(self, tokens: Int[Tensor, "batch 77"]) -> Tensor:
        """Tokens, the end token being the highest, to (batch, 512).

        No token sees a later one, so what follows the last end token of the batch is left out.
        """
        end = tokens.argmax(1)  # (batch,)
        tokens = tokens[:, : int(end.max()) + 1]  # (batch, length)
        length = tokens.shape[1]
        mask = torch.full((length, length), -torch.inf, device=tokens.device).triu(1)
        x = self.token_embedding(tokens) + self.positional_embedding[:length]
        x = self.ln_final(self.transformer(x, attn_mask=mask))  # (batch, length, width)
        projected: Tensor = x[torch.arange(len(x), device=x.device), end] @ self.text_projection
        return projected
