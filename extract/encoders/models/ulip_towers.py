"""PointBERT, the point cloud tower of ULIP: farthest-point groups, a PointNet each, a transformer.

    tower = PointBERT().eval()
    features = tower(points)    # (batch, n, 3) in the unit sphere → (batch, 768)

https://arxiv.org/abs/2111.14819. Parameter names are those of salesforce/ULIP's PointTransformer.
The two compiled CUDA extensions of the original, for sampling and for neighbours, are plain
PyTorch here. A row of NaN is padding: no point is there, and the features are those without it.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cmcr.errors import EncoderError
from cmcr.typed import typed

GROUPS, GROUP_SIZE = 512, 32
HEAD = 64  # channels of an attention head
CLOUDS = 8  # whose groups are encoded at a time: 268 MB for the widest layer


@typed
def farthest_points(
    points: Float[Tensor, "batch n 3"], count: int, candidates: Bool[Tensor, "batch n"]
) -> Int[Tensor, "batch {count}"]:
    """Indices of `count` points: point 0, then each time the candidate farthest from all so far.

    Points may be infinite where they are no candidates, but not NaN. Between equally far
    candidates the first is taken, and when all are taken, the first again. As in the code that
    ULIP-2's file was trained with (salesforce/ULIP until June 2024) and C-MCR's copy of it, no
    point is left out; pointnet2_ops, which ULIP has used since, passes over those within 0.03 of
    the origin.
    """
    columns = points.transpose(1, 2).contiguous()  # (batch, 3, n)
    chosen = torch.zeros(len(points), count, dtype=torch.long, device=points.device)
    nearest = torch.where(candidates, torch.inf, -1.0)  # (batch, n), squared, to those chosen
    for step in range(1, count):
        latest = chosen[:, None, step - 1 : step].expand(-1, 3, -1)  # (batch, 3, 1)
        distance = (columns - columns.gather(2, latest)).square_().sum(1)  # (batch, n)
        nearest = torch.minimum(nearest, distance)
        chosen[:, step] = nearest.argmax(1)
    return chosen


@typed
def nearest_points(
    points: Float[Tensor, "batch n 3"], centres: Float[Tensor, "batch groups 3"], count: int
) -> Int[Tensor, "batch groups {count}"]:
    """Indices of the `count` points nearest to each centre, in no order."""
    exact = "donot_use_mm_for_euclid_dist"
    distance = torch.cdist(centres, points, compute_mode=exact)  # (batch, groups, n)
    return distance.topk(count, largest=False, sorted=False).indices


@typed
def take(
    points: Float[Tensor, "batch n 3"], indices: Int[Tensor, "batch *rest"]
) -> Float[Tensor, "batch *rest 3"]:
    """`points[indices]`, cloud by cloud."""
    clouds = torch.arange(len(points), device=points.device)  # (batch,)
    return points[clouds.view(-1, *[1] * (indices.ndim - 1)), indices]


class GroupEncoder(nn.Module):
    """A small PointNet: the points of a group, relative to its centre, to one vector."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(
            nn.Conv1d(3, 128, 1), nn.BatchNorm1d(128), nn.ReLU(), nn.Conv1d(128, 256, 1)
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(512, 512, 1), nn.BatchNorm1d(512), nn.ReLU(), nn.Conv1d(512, dim, 1)
        )

    def forward(self, groups: Float[Tensor, "batch groups size 3"]) -> Tensor:
        """To (batch, groups, dim)."""
        x = self.first_conv(groups.flatten(0, 1).transpose(1, 2))  # (batch·groups, 256, size)
        pooled = x.amax(2, keepdim=True)  # (batch·groups, 256, 1)
        # The next layer sees cat(pooled, x); what it makes of `pooled` is the same for each point.
        weight, bias = self.second_conv[0].parameters()  # (512, 512, 1), (512,)
        x = F.conv1d(x, weight[:, 256:], bias) + F.conv1d(pooled, weight[:, :256])
        tokens: Tensor = self.second_conv[1:](x).amax(2)  # (batch·groups, dim)
        return tokens.view(*groups.shape[:2], -1)


class Blocks(nn.Module):
    """Transformer blocks that see the positions anew in front of each."""

    def __init__(self, width: int, depth: int) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        self.blocks = nn.ModuleList(
            Block(width, width // HEAD, norm_layer=nn.LayerNorm) for _ in range(depth)
        )

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """Both (batch, tokens, width)."""
        for block in self.blocks:
            x = block(x + positions)
        return x


class PointBERT(nn.Module):
    """512 groups of 32 points, a PointNet for each, a transformer over them and a class token."""

    def __init__(self, width: int = 384, depth: int = 12, group_dim: int = 256) -> None:
        super().__init__()
        self.encoder = GroupEncoder(group_dim)
        self.reduce_dim = nn.Linear(group_dim, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.cls_pos = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))
        self.blocks = Blocks(width, depth)
        self.norm = nn.LayerNorm(width)

    def forward(self, points: Float[Tensor, "batch n 3"]) -> Tensor:
        """32 points or more each, in the unit sphere, to (batch, 2·width): class token, maximum."""
        there = ~points.isnan().any(2)  # (batch, n)
        points = torch.where(there[..., None], points, torch.inf)
        centres = take(points, farthest_points(points, GROUPS, there))  # (batch, 512, 3)
        some = zip(torch.split(points, CLOUDS), torch.split(centres, CLOUDS), strict=True)
        tokens = torch.cat([self.encode_groups(*clouds) for clouds in some])
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1)
        positions = self.pos_embed(centres)  # (batch, 512, width)
        positions = torch.cat([self.cls_pos.expand(len(tokens), -1, -1), positions], 1)
        x = self.norm(self.blocks(x, positions))  # (batch, 513, width)
        return torch.cat([x[:, 0], x[:, 1:].amax(1)], -1)

    def encode_groups(self, points: Tensor, centres: Tensor) -> Tensor:
        """The group around each of `centres` (batch, groups, 3) to (batch, groups, width)."""
        groups = take(points, nearest_points(points, centres, GROUP_SIZE))
        tokens: Tensor = self.reduce_dim(self.encoder(groups - centres[:, :, None]))
        return tokens


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
