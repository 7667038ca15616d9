"""The convolutional networks written in PyTorch, with mmsegmentation's names, as small as they go.

They say once more what `kdjax.models` says, so that a comparison needs no mmsegmentation;
`benchmarks/parity.py` holds kdjax against the real one. ResNet and PSPNet's head are those that
`benchmarks/torch` trains.
"""

import torch
from torch import nn
from torch.nn import functional

from benchmarks.torch.networks import (
    BasicBlock,
    Bottleneck,
    ConvModule,
    FCNHead,
    PSPHead,
    ResNet,
    conv,
    resize,
)


def scaled(channels, width):
    return max(1, round(channels * width / 64))


class Separable(nn.Module):
    def __init__(self, given, wanted, **options):
        super().__init__()
        self.depthwise_conv = ConvModule(given, given, 3, groups=given, **options)
        self.pointwise_conv = ConvModule(given, wanted, 1)

    def forward(self, x):
        return self.pointwise_conv(self.depthwise_conv(x))


class Inverted(nn.Module):
    def __init__(self, given, wanted, expansion, stride, dilation):
        super().__init__()
        hidden = given * expansion
        self.conv = nn.Sequential()
        if expansion > 1:
            self.conv.append(ConvModule(given, hidden, 1, functional.relu6))
        options = {"stride": stride, "dilation": dilation, "groups": hidden}
        self.conv.append(ConvModule(hidden, hidden, 3, functional.relu6, **options))
        self.conv.append(ConvModule(hidden, wanted, 1, nn.Identity()))
        self.residual = stride == 1 and given == wanted

    def forward(self, x):
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self, width):
        super().__init__()
        given, self.channels = scaled(32, width), []
        self.conv1 = ConvModule(3, given, 3, functional.relu6, stride=2)
        plan = [
            *((1, 16, 1, 1, 1), (6, 24, 2, 2, 1), (6, 32, 3, 2, 1), (6, 64, 4, 1, 2)),
            *((6, 96, 3, 1, 2), (6, 160, 3, 1, 4), (6, 320, 1, 1, 4)),
        ]
        for index, (expansion, channels, count, stride, dilation) in enumerate(plan, 1):
            layer = nn.Sequential()
            for position in range(count):
                options = (stride, dilation) if position == 0 else (1, 1)
                layer.append(Inverted(given, scaled(channels, width), expansion, *options))
                given = scaled(channels, width)
            self.add_module(f"layer{index}", layer)
            if index in (2, 3, 5, 7):
                self.channels.append(given)

    def forward(self, x):
        x, stages = self.conv1(x), []
        for index in range(1, 8):
            x = self.get_submodule(f"layer{index}")(x)
            if index in (2, 3, 5, 7):
                stages.append(x)
        return stages


class ConvSame(nn.Conv2d):
    """Pads as TensorFlow's "SAME"."""

    def forward(self, x):  # pyright: ignore[reportIncompatibleMethodOverride]
        padding = []
        for length in (x.shape[3], x.shape[2]):
            size, stride = self.dilation[0] * (self.kernel_size[0] - 1) + 1, self.stride[0]
            whole = max(0, (-(-length // stride) - 1) * stride + size - length)
            padding += [whole // 2, whole - whole // 2]
        return super().forward(functional.pad(x, padding))


class LiteBlock(nn.Module):
    """Of timm: "pw" widens where the block expands, and narrows where it does not."""

    def __init__(self, given, wanted, expansion, size, stride, dilation):
        super().__init__()
        hidden = given * expansion
        depthwise = {"stride": stride, "dilation": dilation, "groups": hidden}
        plan = [("dw", hidden, hidden, size, depthwise)]
        if expansion > 1:
            plan = [("pw", given, hidden, 1, {}), *plan, ("pwl", hidden, wanted, 1, {})]
        else:
            plan.append(("pw", hidden, wanted, 1, {}))
        self.steps = []
        for index, (name, *channels_and_size, options) in enumerate(plan, 1):
            self.steps.append((f"conv_{name}", f"bn{index}"))
            self.add_module(f"conv_{name}", ConvSame(*channels_and_size, bias=False, **options))
            self.add_module(f"bn{index}", lite_norm(plan[index - 1][2]))
        self.residual = stride == 1 and given == wanted
        self.activation = functional.relu6

    def forward(self, x):
        y = x
        for conv_name, norm_name in self.steps:
            y = self.get_submodule(norm_name)(self.get_submodule(conv_name)(y))
            if (conv_name, norm_name) != self.steps[-1]:
                y = self.activation(y)
        return x + y if self.residual else y


def lite_norm(channels):
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class EfficientNetLite(nn.Module):
    """Lite0 with one block a layer, at output stride 16 where it is `dilated`, else 32."""

    def __init__(self, width, dilated):
        super().__init__()
        given, self.channels = scaled(32, width), []
        self.timm_model = model = nn.Module()
        model.conv_stem = ConvSame(3, given, 3, stride=2, bias=False)
        model.bn1, model.blocks = lite_norm(given), nn.ModuleList()
        late = [(5, 1, 1), (3, 1, 2)] if dilated else [(5, 2, 1), (3, 1, 1)]
        plan = [(3, 1, 1), (3, 2, 1), (5, 2, 1), (3, 2, 1), (5, 1, 1), *late]
        for channels, layer in zip((16, 24, 40, 80, 112, 192, 320), plan, strict=True):
            expansion = 6 if len(model.blocks) else 1
            block = LiteBlock(given, scaled(channels, width), expansion, *layer)
            model.blocks.append(nn.ModuleList([block]))
            given = scaled(channels, width)
            if channels in (24, 40, 112, 320):
                self.channels.append(given)
        self.activation = functional.relu6

    def forward(self, x):
        model = self.timm_model
        x, stages = self.activation(model.bn1(model.conv_stem(x))), []
        for index, (block,) in enumerate(model.blocks):
            x = block(x)
            if index in (1, 2, 4, 6):
                stages.append(x)
        return stages


class Exchange(nn.Module):
    def __init__(self, channels, blocks):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(c, c) for _ in range(blocks))) for c in channels
        )
        self.fuse_layers = nn.ModuleList()
        for i, wanted in enumerate(channels):
            row = nn.ModuleList()
            for j, given in enumerate(channels):
                path = nn.Sequential()
                if j > i:
                    up = nn.Upsample(scale_factor=2 ** (j - i), mode="bilinear")
                    path = nn.Sequential(conv(given, wanted, 1), nn.BatchNorm2d(wanted), up)
                for step in range(i - j):
                    last = step == i - j - 1
                    to = wanted if last else given
                    parts = [
                        conv(given, to, 3, stride=2),
                        nn.BatchNorm2d(to),
                        *([] if last else [nn.ReLU()]),
                    ]
                    path.append(nn.Sequential(*parts))
                row.append(path)
            self.fuse_layers.append(row)

    def forward(self, maps):
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        return [
            functional.relu(
                sum(resize(path(x), own.shape[2:]) for path, x in zip(row, maps, strict=True))
            )
            for own, row in zip(maps, self.fuse_layers, strict=True)
        ]


class HRNet(nn.Module):
    def __init__(self, width, channels, blocks, modules):
        super().__init__()
        self.channels = channels = [scaled(channels * 2**i, width) for i in range(4)]
        self.conv1, self.bn1 = conv(3, width, 3, stride=2), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride=2), nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(
            *(Bottleneck(4 * width if index else width, width) for index in range(blocks))
        )
        given = 4 * width
        for index, count in enumerate(modules, 1):
            to = channels[index]
            transition = nn.ModuleList(nn.Identity() for _ in range(index))
            if index == 1:
                transition[0] = nn.Sequential(
                    conv(given, channels[0], 3), nn.BatchNorm2d(channels[0])
                )
            step = nn.Sequential(conv(given, to, 3, stride=2), nn.BatchNorm2d(to), nn.ReLU())
            transition.append(nn.Sequential(step))
            self.add_module(f"transition{index}", transition)
            stage = nn.Sequential(*(Exchange(channels[: index + 1], blocks) for _ in range(count)))
            self.add_module(f"stage{index + 1}", stage)
            given = to

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer1(functional.relu(self.bn2(self.conv2(x))))
        maps = [functional.relu(self.transition1[0](x)), self.transition1[1](x)]
        for index in (2, 3, 4):
            if index > 2:
                maps.append(self.get_submodule(f"transition{index - 1}")[-1](maps[-1]))
            maps = self.get_submodule(f"stage{index}")(maps)
        return maps


class ASPPHead(nn.Module):
    def __init__(
        self, given, channels, classes, separable=False, dilations=(12, 24, 36), bottleneck=3
    ):
        super().__init__()
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvModule(given, channels, 1))
        self.aspp_modules = nn.ModuleList([ConvModule(given, channels, 1)])
        for dilation in dilations:
            self.aspp_modules.append(
                Separable(given, channels, dilation=dilation)
                if separable
                else ConvModule(given, channels, 3, dilation=dilation)
            )
        self.bottleneck = ConvModule(5 * channels, channels, bottleneck)
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, x):
        pooled = resize(self.image_pool(x), x.shape[2:])
        return self.bottleneck(torch.cat([pooled, *(m(x) for m in self.aspp_modules)], 1))


class SeparableASPPHead(ASPPHead):
    def __init__(self, given, fine, fine_channels, channels, classes, **pyramid):
        super().__init__(given, channels, classes, separable=True, **pyramid)
        self.c1_bottleneck = ConvModule(fine, fine_channels, 1)
        self.sep_bottleneck = nn.Sequential(
            Separable(channels + fine_channels, channels), Separable(channels, channels)
        )

    def forward(self, x):
        fine = self.c1_bottleneck(x[0])
        x = resize(super().forward(x[-1]), fine.shape[2:])
        return self.sep_bottleneck(torch.cat([x, fine], 1))


class LRASPPHead(nn.Module):
    def __init__(self, given, channels, classes):
        super().__init__()
        first, second, _, last = given
        self.aspp_conv = ConvModule(last, channels, 1)
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Module())
        self.image_pool[1].conv = nn.Conv2d(last, channels, 1, bias=False)
        self.conv_up_input = nn.Conv2d(channels, channels, 1)
        self.convs, self.conv_ups = nn.Sequential(), nn.Sequential()
        for index, (read, side) in enumerate(((first, channels // 4), (second, channels // 2))):
            self.convs.add_module(f"conv{index}", nn.Conv2d(read, side, 1, bias=False))
            self.conv_ups.add_module(f"conv_up{index}", ConvModule(channels + side, channels, 1))
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, x):
        gate = torch.sigmoid(self.image_pool[1].conv(self.image_pool[0](x[-1])))
        read = self.conv_up_input(self.aspp_conv(x[-1]) * gate)
        for index in (1, 0):
            side = self.convs[index](x[index])
            read = self.conv_ups[index](torch.cat([resize(read, side.shape[2:]), side], 1))
        return read


class UPerHead(PSPHead):
    def __init__(self, given, channels, classes):
        super().__init__(given[-1], channels, classes)
        self.lateral_convs = nn.ModuleList(ConvModule(c, channels, 1) for c in given[:-1])
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3) for _ in given[:-1])
        self.fpn_bottleneck = ConvModule(4 * channels, channels, 3)

    def forward(self, x):
        maps = [lateral(stage) for lateral, stage in zip(self.lateral_convs, x, strict=False)]
        maps.append(super().forward(x[-1]))
        for index in (2, 1, 0):
            maps[index] = maps[index] + resize(maps[index + 1], maps[index].shape[2:])
        for index, smooth in enumerate(self.fpn_convs):
            maps[index] = smooth(maps[index])
        return self.fpn_bottleneck(torch.cat([resize(x, maps[0].shape[2:]) for x in maps], 1))


class FPNHead(nn.Module):
    def __init__(self, given, channels, classes):
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvModule(c, channels, 1) for c in given)
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3) for _ in given[:-1])
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, x):
        read = self.lateral_convs[3](x[3])
        for index in (2, 1, 0):
            level = self.lateral_convs[index](x[index])
            read = self.fpn_convs[index](level + resize(read, level.shape[2:]))
        return read


class Network(nn.Module):
    """`read` gives a head's classifier its map; `__call__` returns all maps by kdjax's names."""

    def __init__(self, backbone, head, auxiliary_head, read):
        super().__init__()
        self.backbone, self.decode_head = backbone, head
        if auxiliary_head is not None:
            self.auxiliary_head = auxiliary_head
        self.has_auxiliary, self.read = auxiliary_head is not None, read
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_()
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 1.5)
        self.eval()

    def forward(self, images):
        stages = self.backbone(images)
        found = {f"stage{index}": x for index, x in enumerate(stages, 1)}
        found["head"] = self.read(self.decode_head, stages)
        found["logits"] = self.decode_head.conv_seg(found["head"])
        if self.has_auxiliary:
            found["aux_head"] = self.auxiliary_head(stages[2])
            found["aux_logits"] = self.auxiliary_head.conv_seg(found["aux_head"])
        return found


def create(name, width, classes):
    """One of the networks that the tests compare."""
    family, _, backbone_name = name.replace("_light", "-light").partition("_")
    if backbone_name == "hr18s":
        backbone = HRNet(width, 18, 1, (1, 1, 1))
        total = sum(backbone.channels)
        head = FCNHead(total, total, classes, size=1)
        return Network(
            backbone,
            head,
            None,
            lambda head, stages: head(
                torch.cat([resize(x, stages[0].shape[2:]) for x in stages], dim=1)
            ),
        )
    if backbone_name == "mbv2":
        backbone = MobileNetV2(width)
    elif backbone_name == "efficientnet_lite0":
        backbone = EfficientNetLite(width, dilated=family not in ("upernet", "fpn-light"))
    else:
        backbone = ResNet(
            int(backbone_name.strip("rb")),
            width,
            deep_stem=not backbone_name.endswith("b"),
            dilated=family not in ("upernet", "fpn-light"),
        )
    channels = (2 if "18" in backbone_name and family != "upernet" else 8) * width
    light = 3 * width // 2
    channels = {"lraspp": 2 * width, "deeplabv3plus-light": light, "fpn-light": light}.get(
        family, channels
    )
    first, _, third, last = backbone.channels
    auxiliary_head = None if family == "lraspp" else FCNHead(third, channels // 2, classes)

    heads = {
        "pspnet": lambda: PSPHead(last, channels, classes),
        "deeplabv3": lambda: ASPPHead(last, channels, classes),
        "fcn": lambda: FCNHead(last, channels, classes, 2, concat=True),
        "deeplabv3plus": lambda: SeparableASPPHead(
            last, first, 3 * channels // 32, channels, classes
        ),
        "deeplabv3plus-light": lambda: SeparableASPPHead(
            *(last, first, 3 * channels // 16, channels, classes),
            dilations=(6, 12, 18),
            bottleneck=1,
        ),
        "upernet": lambda: UPerHead(backbone.channels, channels, classes),
        "lraspp": lambda: LRASPPHead(backbone.channels, channels, classes),
        "fpn-light": lambda: FPNHead(backbone.channels, channels, classes),
    }
    reads_all = family not in ("pspnet", "deeplabv3", "fcn")
    return Network(
        backbone,
        heads[family](),
        auxiliary_head,
        lambda head, stages: head(stages if reads_all else stages[-1]),
    )
