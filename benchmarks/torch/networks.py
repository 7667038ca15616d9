"""PSPNet on ResNet in PyTorch, with mmsegmentation's names and channels, in NCHW.

The code shares nothing with `kdjax.models`, because kdjax is compared with it.
"""

import torch
from torch import nn
from torch.nn import functional


def conv(given: int, wanted: int, size: int, **options) -> nn.Conv2d:
    """A square convolution without bias, padded so that stride 1 keeps the size."""
    padding = options.get("dilation", 1) * (size // 2)
    return nn.Conv2d(given, wanted, size, padding=padding, bias=False, **options)


def resize(x, size):
    return functional.interpolate(x, size, mode="bilinear", align_corners=False)


class ConvModule(nn.Module):
    def __init__(self, given, wanted, size, activation=functional.relu, **options):
        super().__init__()
        self.conv, self.bn = conv(given, wanted, size, **options), nn.BatchNorm2d(wanted)
        self.activation = activation

    def forward(self, x):
        return self.activation(self.bn(self.conv(x)))


def shortcut(given: int, wanted: int, stride: int) -> nn.Module:
    if stride == 1 and given == wanted:
        return nn.Identity()
    return nn.Sequential(conv(given, wanted, 1, stride=stride), nn.BatchNorm2d(wanted))


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, given, channels, stride=1, dilation=1):
        super().__init__()
        self.conv1 = conv(given, channels, 3, stride=stride, dilation=dilation)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = shortcut(given, channels, stride)

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, given, channels, stride=1, dilation=1):
        super().__init__()
        self.conv1 = conv(given, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3, stride=stride, dilation=dilation)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = conv(channels, 4 * channels, 1)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.downsample = shortcut(given, 4 * channels, stride)

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return functional.relu(y + self.downsample(x))


DEPTHS = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(nn.Module):
    """The four stages, with the deep stem of v1c. Output stride 8 if dilated, else 32."""

    def __init__(self, depth: int, width: int, *, deep_stem: bool = True, dilated: bool = True):
        super().__init__()
        block, counts = DEPTHS[depth]
        if deep_stem:
            half = width // 2
            self.stem = nn.Sequential(
                *(conv(3, half, 3, stride=2), nn.BatchNorm2d(half), nn.ReLU()),
                *(conv(half, half, 3), nn.BatchNorm2d(half), nn.ReLU()),
                *(conv(half, width, 3), nn.BatchNorm2d(width), nn.ReLU()),
            )
        else:
            self.conv1, self.bn1 = conv(3, width, 7, stride=2), nn.BatchNorm2d(width)
        self.deep_stem = deep_stem
        strides, dilations = ((1, 2, 1, 1), (1, 1, 2, 4)) if dilated else ((1, 2, 2, 2), (1,) * 4)
        given, self.channels = width, []
        for index, (count, stride, dilation) in enumerate(
            zip(counts, strides, dilations, strict=True)
        ):
            channels = width * 2**index
            # The first block of a dilated stage has half the dilation ("contract dilation").
            blocks = [block(given, channels, stride, max(1, dilation // 2))]
            given = channels * block.expansion
            blocks += [block(given, channels, 1, dilation) for _ in range(count - 1)]
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
            self.channels.append(given)

    def forward(self, x):
        x = self.stem(x) if self.deep_stem else functional.relu(self.bn1(self.conv1(x)))
        x = functional.max_pool2d(x, 3, 2, 1)
        stages = []
        for index in range(1, 5):
            x = self.get_submodule(f"layer{index}")(x)
            stages.append(x)
        return stages


class FCNHead(nn.Module):
    """Convolutions in a row; returns the map that `conv_seg` reads."""

    def __init__(self, given, channels, classes, count=1, size=3, concat=False):
        super().__init__()
        self.convs = nn.Sequential(
            *(ConvModule(channels if i else given, channels, size) for i in range(count))
        )
        if concat:
            self.conv_cat = ConvModule(given + channels, channels, size)
        self.concat = concat
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, x):
        read = self.convs(x)
        return self.conv_cat(torch.cat([x, read], 1)) if self.concat else read


class PSPHead(nn.Module):
    """The pyramid; returns the map that `conv_seg` reads."""

    def __init__(self, given, channels, classes):
        super().__init__()
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), ConvModule(given, channels, 1))
            for bins in (1, 2, 3, 6)
        )
        self.bottleneck = ConvModule(given + 4 * channels, channels, 3)
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, x):
        pools = [resize(module(x), x.shape[2:]) for module in self.psp_modules]
        return self.bottleneck(torch.cat([x, *pools], 1))


class PSPNet(nn.Module):
    """Returns its maps by kdjax's names: "head", "logits" and, with the auxiliary head, two more.

    Args:
      depth: 18, 34, 50 or 101.
      width: channels of the first stage. 64 is the published network.
      classes: number of classes.
      auxiliary: True to build the head that only training reads.
      dropout: share of the channels that training drops before the classifiers.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        classes: int,
        *,
        auxiliary: bool = True,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.backbone = ResNet(depth, width)
        channels = (8 if DEPTHS[depth][0] is Bottleneck else 2) * width
        *_, third, last = self.backbone.channels
        self.channels = channels
        self.decode_head = PSPHead(last, channels, classes)
        self.auxiliary_head = FCNHead(third, channels // 2, classes) if auxiliary else None
        self.dropout = nn.Dropout2d(dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for name, parameter in self.named_parameters():
            if name.endswith("conv_seg.weight"):
                nn.init.normal_(parameter, std=0.01)
            elif name.endswith("conv_seg.bias"):
                nn.init.zeros_(parameter)

    def forward(self, images):
        *_, third, last = self.backbone(images)
        head = self.decode_head(last)
        maps = {"head": head, "logits": self.decode_head.conv_seg(self.dropout(head))}
        if self.auxiliary_head is not None:
            head = self.auxiliary_head(third)
            maps["aux_head"] = head
            maps["aux_logits"] = self.auxiliary_head.conv_seg(self.dropout(head))
        return maps
