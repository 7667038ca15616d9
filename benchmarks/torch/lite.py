"""A light feature pyramid on EfficientNet-Lite in PyTorch, with timm's names, in NCHW.

The code shares nothing with `kdjax.models`, because kdjax is compared with it.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from benchmarks.torch.networks import ConvModule, resize

# Channels and blocks of each layer; first strides, and the sizes of the depthwise kernels.
LAYERS = {
    "lite0": ((16, 1), (24, 2), (40, 2), (80, 3), (112, 3), (192, 4), (320, 1)),
    "lite2": ((16, 1), (24, 3), (48, 3), (88, 4), (120, 4), (208, 5), (352, 1)),
}
STRIDES, KERNELS = (1, 2, 2, 2, 1, 2, 1), (3, 3, 5, 3, 5, 5, 3)


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's "SAME" padding."""

    def __init__(self, given: int, wanted: int, size: int, stride: int = 1, groups: int = 1):
        padding = size // 2 if stride == 1 else 0
        super().__init__(given, wanted, size, stride, padding, groups=groups, bias=False)
        self.strided = stride > 1

    def forward(self, input):
        if self.strided:
            # An odd side needs one more row or column than an even one.
            rows, columns = (self.kernel_size[0] - 2 + side % 2 for side in input.shape[2:])
            ends = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
            input = functional.pad(input, ends)
        return super().forward(input)


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    """An inverted residual. The first layer does not widen."""

    def __init__(self, given: int, wanted: int, size: int, stride: int, *, widens: bool):
        super().__init__()
        hidden = 6 * given if widens else given
        self.widens, self.residual = widens, stride == 1 and given == wanted
        if widens:
            self.conv_pw, self.bn1 = SameConv(given, hidden, 1), norm(hidden)
            self.conv_dw = SameConv(hidden, hidden, size, stride, hidden)
            self.bn2 = norm(hidden)
            self.conv_pwl, self.bn3 = SameConv(hidden, wanted, 1), norm(wanted)
        else:
            self.conv_dw = SameConv(hidden, hidden, size, stride, hidden)
            self.bn1 = norm(hidden)
            self.conv_pw, self.bn2 = SameConv(hidden, wanted, 1), norm(wanted)

    def forward(self, x):
        if self.widens:
            y = functional.relu6(self.bn1(self.conv_pw(x)))
            y = functional.relu6(self.bn2(self.conv_dw(y)))
            y = self.bn3(self.conv_pwl(y))
        else:
            y = functional.relu6(self.bn1(self.conv_dw(x)))
            y = self.bn2(self.conv_pw(y))
        return x + y if self.residual else y


class EfficientNetLite(nn.Module):
    """Returns the last maps of strides 4, 8, 16, and 32."""

    def __init__(self, size: str):
        super().__init__()
        self.conv_stem, self.bn1 = SameConv(3, 32, 3, 2), norm(32)
        self.blocks, given = nn.ModuleList(), 32
        layers = zip(LAYERS[size], STRIDES, KERNELS, strict=True)
        for index, ((channels, count), stride, kernel) in enumerate(layers):
            self.blocks.append(
                nn.Sequential(
                    *(
                        Block(
                            channels if block else given,
                            channels,
                            kernel,
                            1 if block else stride,
                            widens=index > 0,
                        )
                        for block in range(count)
                    )
                )
            )
            given = channels
        self.channels = [LAYERS[size][index][0] for index in (1, 2, 4, 6)]

    def forward(self, x):
        x = functional.relu6(self.bn1(self.conv_stem(x)))
        maps = []
        for layer in self.blocks:
            x = layer(x)
            maps.append(x)
        return [maps[index] for index in (1, 2, 4, 6)]


class FPNHead(nn.Module):
    """The top-down path; returns the map that `conv_seg` reads."""

    def __init__(self, given: Sequence[int], channels: int, classes: int):
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvModule(count, channels, 1) for count in given)
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3) for _ in given[:-1])
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, stages):
        x = self.lateral_convs[-1](stages[-1])
        levels = [*zip(stages, self.lateral_convs, self.fpn_convs, strict=False)]
        for stage, lateral, smoother in reversed(levels):
            level = lateral(stage)
            x = smoother(level + resize(x, level.shape[2:]))
        return x


class LightFPN(nn.Module):
    """Returns its maps by kdjax's names: "head" and "logits".

    Args:
      size: "lite0" or "lite2".
      classes: number of classes.
    """

    channels = 96

    def __init__(self, size: str, classes: int):
        super().__init__()
        # mmpretrain's wrapper of timm gives it this name.
        self.backbone = nn.ModuleDict({"timm_model": EfficientNetLite(size)})
        network = self.backbone["timm_model"]
        assert isinstance(network, EfficientNetLite)
        self.decode_head = FPNHead(network.channels, self.channels, classes)

    def forward(self, images) -> dict[str, torch.Tensor]:
        head = self.decode_head(self.backbone["timm_model"](images))
        return {"head": head, "logits": self.decode_head.conv_seg(head)}
