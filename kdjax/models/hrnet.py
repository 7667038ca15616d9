"""HRNet (Wang et al., TPAMI 2020), as mmsegmentation's HRNet with all four branches as output."""

from typing import NamedTuple, Unpack

from flax import nnx
from jaxtyping import Array, Float

from kdjax.models.layers import Common, ConvNorm, Features, Rngs, resize, scaled
from kdjax.models.outputs import stage_specs
from kdjax.models.resnet import BasicBlock, Bottleneck


class Variant(NamedTuple):
    """A published HRNet: channels of its first branch, blocks per branch, modules per stage."""

    channels: int
    blocks: int
    modules: tuple[int, int, int]


VARIANTS = {
    "18s": Variant(18, 2, (1, 3, 2)),
    "18": Variant(18, 4, (1, 4, 3)),
    "48": Variant(48, 4, (1, 4, 3)),
}


class Up(nnx.Module):
    """Brings a coarser branch to the channels and the size of a finer one."""

    def __init__(self, in_channels: int, channels: int, factor: int, **common: Unpack[Common]):
        self.project = ConvNorm(in_channels, channels, 1, activation=None, **common)
        self.factor = factor

    def __call__(
        self, x: Float[Array, "B h w C"], size: tuple[int, ...], *, train: bool
    ) -> Float[Array, "B H W D"]:
        """Resizes by the factor, and once more if `size` is odd, like mmsegmentation."""
        x = self.project(x, train=train)
        return resize(resize(x, (self.factor * x.shape[1], self.factor * x.shape[2])), size)


class Down(nnx.Module):
    """Brings a finer branch to the channels and the size of a coarser one: 3x3 with stride 2."""

    def __init__(self, in_channels: int, channels: int, steps: int, **common: Unpack[Common]):
        self.convs = nnx.List(
            [ConvNorm(in_channels, in_channels, 3, stride=2, **common) for _ in range(steps - 1)]
        )
        self.convs.append(ConvNorm(in_channels, channels, 3, stride=2, activation=None, **common))

    def __call__(
        self, x: Float[Array, "B H W C"], size: tuple[int, ...], *, train: bool
    ) -> Float[Array, "B h w D"]:
        """Halves the map once per step, which ends at `size`."""
        for conv in self.convs:
            x = conv(x, train=train)
        assert x.shape[1:3] == size
        return x


class Exchange(nnx.Module):
    """Residual blocks on every branch, then every branch receives the sum of all."""

    def __init__(self, channels: tuple[int, ...], blocks: int, **common: Unpack[Common]):
        self.branches = nnx.List(
            [nnx.List([BasicBlock(c, c, **common) for _ in range(blocks)]) for c in channels]
        )
        self.paths = nnx.List([])
        for to, wanted in enumerate(channels):
            row = nnx.List([])
            for source, given in enumerate(channels):
                if source > to:
                    row.append(Up(given, wanted, 2 ** (source - to), **common))
                elif source < to:
                    row.append(Down(given, wanted, to - source, **common))
                else:
                    row.append(None)
            self.paths.append(row)

    def __call__(self, maps: list[Array], *, train: bool) -> list[Array]:
        """Maps the branches [B, h, w, C], each half the size of the one before, to new ones."""
        found = []
        for x, blocks in zip(maps, self.branches, strict=True):
            for block in blocks:
                x = block(x, train=train)
            found.append(x)
        fused = []
        for own, row in zip(found, self.paths, strict=True):
            terms = [
                x if path is None else path(x, own.shape[1:3], train=train)
                for x, path in zip(found, row, strict=True)
            ]
            fused.append(nnx.relu(sum(terms[1:], terms[0])))
        return fused


class HRNet(nnx.Module):
    """HRNet: four branches of 1, 2, 4, and 8 times the first one's channels.

    Args:
      variant: "18s" (W18-small), "18" or "48", a name of `VARIANTS`.
      width: 64 is the published network; all channels scale with it.
      in_channels: the bands of the images.
      **common: see `Common`.
    """

    def __init__(
        self, variant: str, *, width: int = 64, in_channels: int = 3, **common: Unpack[Common]
    ):
        published, blocks, modules = VARIANTS[variant]
        branches = tuple(scaled(published * 2**i, width) for i in range(4))
        self.feature_specs = stage_specs(branches)
        self.conv1 = ConvNorm(in_channels, width, 3, stride=2, **common)
        self.conv2 = ConvNorm(width, width, 3, stride=2, **common)
        self.layer1, channels = nnx.List([]), width
        for _ in range(blocks):
            self.layer1.append(Bottleneck(channels, width, **common))
            channels = width * Bottleneck.expansion
        self.first_branch = ConvNorm(channels, branches[0], 3, **common)
        # Each stage adds a branch, which starts from the coarsest map before the stage.
        self.new_branches, self.stages = nnx.List([]), nnx.List([])
        for index, count in enumerate(modules):
            wanted = branches[index + 1]
            self.new_branches.append(ConvNorm(channels, wanted, 3, stride=2, **common))
            channels = wanted
            self.stages.append(
                nnx.List([Exchange(branches[: index + 2], blocks, **common) for _ in range(count)])
            )

    def __call__(self, images: Array, *, train: bool, rngs: Rngs = None) -> Features:
        """Returns the four branches after the last exchange, finest first."""
        x = self.conv2(self.conv1(images, train=train), train=train)
        for block in self.layer1:
            x = block(x, train=train)
        maps, coarsest = [self.first_branch(x, train=train)], x
        for new_branch, modules in zip(self.new_branches, self.stages, strict=True):
            maps.append(new_branch(coarsest, train=train))
            for module in modules:
                maps = module(maps, train=train)
            coarsest = maps[-1]
        return {f"stage{i + 1}": x for i, x in enumerate(maps)}
