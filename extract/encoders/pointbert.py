"""PointBERT, the point cloud tower of ULIP: farthest-point groups, a PointNet each, a transformer.

    tower = PointBERT().eval()
    features = tower(points)    # (batch, n, 3) in the unit sphere → (batch, 768)

https://arxiv.org/abs/2111.14819. Parameter names are those of salesforce/ULIP's PointTransformer.
The two compiled CUDA extensions of the original, for sampling and for neighbours, are plain
PyTorch here. A row of NaN is padding: no point is there, and the features are those without it.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

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
