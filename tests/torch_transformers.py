"""SegFormer and Swin in PyTorch with mmsegmentation's names, for the tests of ours.

Swin's windows are written as what they mean, one attention over the whole padded map in which only
positions of one window see each other, so that no trick of cutting and rolling is shared.
"""

import torch
from torch import nn
from torch.nn import functional


def channels_first(function, x):
    return function(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def resize(x, size):
    return channels_first(
        lambda x: functional.interpolate(x, size, mode="bilinear", align_corners=False), x
    )


class Embedding(nn.Module):
    def __init__(self, in_channels, channels, size, stride, padding, epsilon):
        super().__init__()
        self.projection = nn.Conv2d(in_channels, channels, size, stride, padding)
        self.norm = nn.LayerNorm(channels, eps=epsilon)

    def forward(self, x):
        return self.norm(channels_first(self.projection, x))


class MixAttention(nn.Module):
    def __init__(self, channels, heads, reduction):
        super().__init__()
        self.attn = nn.MultiheadAttention(channels, heads, batch_first=True)
        if reduction > 1:
            self.sr = nn.Conv2d(channels, channels, reduction, reduction)
            self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x):
        source = self.norm(channels_first(self.sr, x)) if hasattr(self, "sr") else x
        source = source.flatten(1, 2)
        return self.attn(x.flatten(1, 2), source, source)[0].reshape(x.shape)


class MixFFN(nn.Module):
    def __init__(self, channels):
        super().__init__()
        hidden = 4 * channels
        self.layers = nn.Sequential(
            nn.Conv2d(channels, hidden, 1),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
            nn.GELU(),
            nn.Identity(),
            nn.Conv2d(hidden, channels, 1),
        )

    def forward(self, x):
        return channels_first(self.layers, x)


class Block(nn.Module):
    def __init__(self, channels, attention, ffn, epsilon):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=epsilon)
        self.attn = attention
        self.norm2 = nn.LayerNorm(channels, eps=epsilon)
        self.ffn = ffn

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class MixTransformer(nn.Module):
    def __init__(self, head_channels, depths):
        super().__init__()
        self.layers = nn.Sequential()
        before = 3
        for i, depth in enumerate(depths):
            heads, reduction = (1, 2, 5, 8)[i], (8, 4, 2, 1)[i]
            channels = heads * head_channels
            size, stride = ((7, 4), (3, 2), (3, 2), (3, 2))[i]
            blocks = [
                Block(channels, MixAttention(channels, heads, reduction), MixFFN(channels), 1e-6)
                for _ in range(depth)
            ]
            embedding = Embedding(before, channels, size, stride, size // 2, 1e-6)
            norm = nn.LayerNorm(channels, eps=1e-6)
            self.layers.append(nn.Sequential(embedding, nn.Sequential(*blocks), norm))
            before = channels

    def forward(self, x):
        maps = []
        for stage in self.layers:
            x = stage(x)
            maps.append(x)
        return maps


class ConvModule(nn.Module):
    def __init__(self, in_channels, channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x):
        return functional.relu(channels_first(lambda x: self.bn(self.conv(x)), x))


class SegFormerHead(nn.Module):
    def __init__(self, in_channels, channels, num_classes):
        super().__init__()
        self.convs = nn.ModuleList(ConvModule(n, channels) for n in in_channels)
        self.fusion_conv = ConvModule(4 * channels, channels)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps):
        size = maps[0].shape[1:3]
        maps = [resize(conv(x), size) for conv, x in zip(self.convs, maps, strict=True)]
        return channels_first(self.conv_seg, self.fusion_conv(torch.cat(maps, -1)))


class SegFormer(nn.Module):
    def __init__(self, head_channels, depths, channels, num_classes):
        super().__init__()
        self.backbone = MixTransformer(head_channels, depths)
        stages = [head_channels * heads for heads in (1, 2, 5, 8)]
        self.decode_head = SegFormerHead(stages, channels, num_classes)

    def forward(self, x):
        maps = self.backbone(x)
        features = {f"stage{i + 1}": x for i, x in enumerate(maps)}
        return features | {"logits": self.decode_head(maps)}


class WindowAttention(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.randn(13 * 13, heads))
        self.register_buffer("relative_position_index", torch.zeros(49, 49, dtype=torch.int64))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)


class ShiftedWindowAttention(nn.Module):
    def __init__(self, channels, heads, shift):
        super().__init__()
        self.shift = shift
        self.w_msa = WindowAttention(channels, heads)

    def positions(self, size):
        """For every row: its window, its place in it, and whether the shift wrapped it around."""
        row = torch.arange(size)
        shifted = (row - self.shift) % size
        return shifted // 7, shifted % 7, row < self.shift

    def forward(self, x):
        _, height, width, channels = x.shape
        x = functional.pad(x, (0, 0, 0, -width % 7, 0, -height % 7))
        batch, rows, columns, _ = x.shape
        grid = [
            torch.stack(torch.meshgrid(a, b, indexing="ij")).flatten(1)
            for a, b in zip(self.positions(rows), self.positions(columns), strict=True)
        ]
        group = torch.cat([grid[0], grid[2]])
        together = (group[:, :, None] == group[:, None, :]).all(0)
        place = grid[1]
        down, right = (place[:, :, None] - place[:, None, :]) + 6
        bias = self.w_msa.relative_position_bias_table[down * 13 + right].permute(2, 0, 1)
        bias = bias.masked_fill(~together, -torch.inf)
        heads = self.w_msa.heads
        qkv = self.w_msa.qkv(x).reshape(batch, rows * columns, 3, heads, -1)
        attended = functional.scaled_dot_product_attention(
            *qkv.permute(2, 0, 3, 1, 4), attn_mask=bias
        )
        x = self.w_msa.proj(attended.transpose(1, 2).reshape(batch, rows, columns, channels))
        return x[:, :height, :width]


class Perceptron(nn.Module):
    def __init__(self, channels):
        super().__init__()
        first = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU())
        self.layers = nn.Sequential(first, nn.Linear(4 * channels, channels))

    def forward(self, x):
        return self.layers(x)


class PatchMerging(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x):
        height, width = -(-x.shape[1] // 2), -(-x.shape[2] // 2)
        x = functional.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = functional.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
        return self.reduction(self.norm(x.reshape(len(x), height, width, -1)))


class SwinStage(nn.Module):
    def __init__(self, channels, heads, depth, last):
        super().__init__()
        attentions = [ShiftedWindowAttention(channels, heads, 3 * (i % 2)) for i in range(depth)]
        self.blocks = nn.Sequential(
            *[Block(channels, attention, Perceptron(channels), 1e-5) for attention in attentions]
        )
        if not last:
            self.downsample = PatchMerging(channels)


class Swin(nn.Module):
    def __init__(self, head_channels, depths=(2, 2, 6, 2)):
        super().__init__()
        self.patch_embed = Embedding(3, 3 * head_channels, 4, 4, 0, 1e-5)
        self.stages = nn.ModuleList()
        for i, (heads, depth) in enumerate(zip((3, 6, 12, 24), depths, strict=True)):
            channels = heads * head_channels
            self.stages.append(SwinStage(channels, heads, depth, last=i == 3))
            self.add_module(f"norm{i}", nn.LayerNorm(channels))

    def forward(self, x):
        x = self.patch_embed(functional.pad(x, (0, 0, 0, -x.shape[2] % 4, 0, -x.shape[1] % 4)))
        features = {}
        for i, stage in enumerate(self.stages):
            x = stage.blocks(x)
            features[f"stage{i + 1}"] = getattr(self, f"norm{i}")(x)
            if i < 3:
                x = stage.downsample(x)
        return features


def randomise(net):
    """Sets every parameter and statistic so that nothing is the identity.

    What the embeddings' norms read is so small that their epsilon counts.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in [*net.named_parameters(), *net.named_buffers()]:
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(1 + 0.5 * noise.abs())
            elif name.endswith("projection.weight"):
                value.copy_(1e-3 * noise)
            elif name.endswith("projection.bias"):
                value.zero_()
            elif value.ndim == 1:
                value.copy_(0.2 * noise + name.endswith("weight"))
            else:
                value.copy_(noise / value[0].numel() ** 0.5)
    return net.eval()
