"""CIRKD's and TorchDistiller's networks written in PyTorch, with their names, narrow.

From their definitions: github.com/winycg/CIRKD (models/) and github.com/irfanICMLL/TorchDistiller
(SemSeg-distill/networks/pspnet.py). They say once more what `kdjax.models.architectures` says.
"""

import torch
import torch_networks
from torch import nn
from torch.nn import functional


def aligned(x, size):
    return functional.interpolate(x, size, mode="bilinear", align_corners=True)


def conv(given, wanted, size=1, stride=1, gap=1, groups=1, bias=False):
    padding = gap * (size - 1) // 2
    return nn.Conv2d(given, wanted, size, stride, padding, gap, groups, bias)


class InPlaceABN(nn.BatchNorm2d):
    """Batch norm that scales by |weight| + eps, then leaky ReLU or nothing."""

    def __init__(self, channels, slope=1.0):
        super().__init__(channels)
        self.slope = slope

    def forward(self, input):
        weight = self.weight.abs() + self.eps
        x = functional.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            weight,
            self.bias,
            self.training,
            0.1,
            self.eps,
        )
        return functional.leaky_relu(x, self.slope)


class Basic(nn.Module):
    def __init__(self, given, channels, norm, stride, gap, second_gap):
        super().__init__()
        self.conv1, self.bn1 = conv(given, channels, 3, stride, gap), norm(channels)
        self.conv2, self.bn2 = conv(channels, channels, 3, 1, second_gap), norm(channels)
        if stride > 1 or given != channels:
            self.downsample = nn.Sequential(conv(given, channels, 1, stride), norm(channels))

    def forward(self, x):
        shortcut = self.downsample(x) if hasattr(self, "downsample") else x
        x = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(x + shortcut)


class Trunk(nn.Module):
    """ResNet-18 with the wide stem: `contract` and floor mode in CIRKD, neither in the other."""

    def __init__(self, width, norm, contract):
        super().__init__()
        self.conv1, self.bn1 = conv(3, width, 3, 2), norm(width)
        self.conv2, self.bn2 = conv(width, width, 3), norm(width)
        self.conv3, self.bn3 = conv(width, 2 * width, 3), norm(2 * width)
        self.ceil_mode = not contract
        given = 2 * width
        for index, (stride, gap) in enumerate([(1, 1), (2, 1), (1, 2), (1, 4)]):
            wanted, first = width * 2**index, max(gap // 2, 1) if contract else gap
            layer = nn.Sequential(
                Basic(given, wanted, norm, stride, first, gap),
                Basic(wanted, wanted, norm, 1, gap, gap),
            )
            self.add_module(f"layer{index + 1}", layer)
            given = wanted

    def trunk(self, x):
        for index in (1, 2, 3):
            x = self.get_submodule(f"conv{index}")(x)
            x = functional.relu(self.get_submodule(f"bn{index}")(x))
        x, stages = functional.max_pool2d(x, 3, 2, 1, ceil_mode=self.ceil_mode), []
        for index in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{index}")(x)
            stages.append(x)
        return stages


class Pyramid(nn.Module):
    def __init__(self, given, channels, norm):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), conv(given, channels), norm(channels))
            for bins in (1, 2, 3, 6)
        )
        self.bottleneck = nn.Sequential(conv(given + 4 * channels, channels, 3), norm(channels))

    def forward(self, x):
        pooled = [aligned(stage(x), x.shape[2:]) for stage in self.stages]
        return self.bottleneck(torch.cat([*pooled, x], 1))


class TorchDistillerPSPNet(Trunk):
    def __init__(self, width, classes):
        super().__init__(width, InPlaceABN, contract=False)

        def leaky(channels):
            return InPlaceABN(channels, 0.01)

        self.pspmodule = Pyramid(8 * width, 2 * width, leaky)
        self.head = conv(2 * width, classes, bias=True)
        self.dsn = nn.Sequential(
            conv(4 * width, 2 * width, 3, bias=True),
            leaky(2 * width),
            nn.Identity(),
            conv(2 * width, classes, bias=True),
        )
        randomise(self)

    def forward(self, x):
        stages = self.trunk(x)
        return {"logits": self.head(self.pspmodule(stages[3])), "aux_logits": self.dsn(stages[2])}


class Block(nn.Module):
    """What CIRKD calls `block`: convolution, norm, ReLU, dropout, and a classifier where asked."""

    def __init__(self, given, channels, size=3, classes=None, gap=1):
        super().__init__()
        self.block = nn.Sequential(
            conv(given, channels, size, gap=gap), nn.BatchNorm2d(channels), nn.ReLU()
        )
        if classes:
            self.block.extend([nn.Identity(), conv(channels, classes, bias=True)])

    def forward(self, x):
        return self.block(x)


class CirkdPSPHead(nn.Module):
    def __init__(self, given, channels, classes):
        super().__init__()
        self.psp = nn.Module()
        for index in (1, 2, 3, 4):
            branch = nn.Sequential(conv(given, given // 4), nn.BatchNorm2d(given // 4), nn.ReLU())
            self.psp.add_module(f"conv{index}", branch)
        self.block = Block(given + 4 * (given // 4), channels).block
        self.classifier = conv(channels, classes, bias=True)

    def forward(self, x):
        maps = [x]
        for index, bins in enumerate((1, 2, 3, 6), 1):
            pooled = functional.adaptive_avg_pool2d(x, bins)
            maps.append(aligned(self.psp.get_submodule(f"conv{index}")(pooled), x.shape[2:]))
        return self.classifier(self.block(torch.cat(maps, 1)))


class CirkdDeepLabHead(nn.Module):
    def __init__(self, given, channels, classes):
        super().__init__()
        self.aspp = nn.Module()
        self.aspp.b0 = Block(given, channels, 1).block
        for index, gap in enumerate((12, 24, 36), 1):
            self.aspp.add_module(f"b{index}", Block(given, channels, gap=gap))
        self.aspp.b4 = nn.Module()
        self.aspp.b4.gap = nn.Sequential(nn.AdaptiveAvgPool2d(1), *Block(given, channels, 1).block)
        self.aspp.project = Block(5 * channels, channels, 1).block
        self.block = Block(channels, channels, classes=classes).block

    def forward(self, x):
        maps = [self.aspp.get_submodule(f"b{index}")(x) for index in range(4)]
        maps.append(aligned(self.aspp.b4.gap(x), x.shape[2:]))
        return self.block(self.aspp.project(torch.cat(maps, 1)))


class CirkdResNet(nn.Module):
    def __init__(self, head, width, classes, channels=2):
        super().__init__()
        self.pretrained = Trunk(width, nn.BatchNorm2d, contract=True)
        self.head = head(8 * width, channels * width, classes)
        self.auxlayer = Block(4 * width, width, classes=classes)
        randomise(self)

    def forward(self, x):
        stages = self.pretrained.trunk(x)
        return {"logits": self.head(stages[3]), "aux_logits": self.auxlayer(stages[2])}


class Inverted(nn.Module):
    def __init__(self, given, wanted, expansion, stride, gap):
        super().__init__()
        hidden = given * expansion
        plan = [(given, hidden, 1, 1, 1, 1)] if expansion > 1 else []
        plan += [(hidden, hidden, 3, stride, gap, hidden), (hidden, wanted, 1, 1, 1, 1)]
        self.conv = nn.Sequential()
        for step in plan:
            self.conv.extend([conv(*step), nn.BatchNorm2d(step[1]), nn.ReLU6()])
        del self.conv[-1]
        self.residual = stride == 1 and given == wanted

    def forward(self, x):
        return x + self.conv(x) if self.residual else self.conv(x)


class CirkdMobileNet(nn.Module):
    """The blocks in one row: 1 to 17, of which 7 and 14 no longer stride."""

    def __init__(self, head, width, classes):
        super().__init__()
        given = torch_networks.scaled(32, width)
        features = nn.Sequential(
            nn.Sequential(conv(3, given, 3, 2), nn.BatchNorm2d(given), nn.ReLU6())
        )
        plan = [
            (1, 16, 1),
            (6, 24, 2),
            (6, 32, 3),
            (6, 64, 4),
            (6, 96, 3),
            (6, 160, 3),
            (6, 320, 1),
        ]
        for expansion, channels, count in plan:
            for position in range(count):
                number = len(features)
                stride = 2 if number in (2, 4) and position == 0 else 1
                gap = 1 if number < 7 else 2 if number < 14 else 4
                gap = gap // 2 if number in (7, 14) else gap
                wanted = torch_networks.scaled(channels, width)
                features.append(Inverted(given, wanted, expansion, stride, gap))
                given = wanted
        self.pretrained = nn.Module()
        self.pretrained.net = nn.Module()
        self.pretrained.net.features = features
        self.head = head(given, 2 * width, classes)
        randomise(self)

    def forward(self, x):
        return {"logits": self.head(self.pretrained.net.features(x))}


def randomise(net):
    """Weights of any sign where that counts, and running statistics that are not 0 and 1."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            if isinstance(module, InPlaceABN):
                module.weight.data *= torch.randn_like(module.weight).sign()
            module.bias.data.normal_(0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    net.eval()
