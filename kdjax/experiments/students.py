"""The network that a run trains: fresh, on a trained backbone, or from a checkpoint."""

import dataclasses
from typing import Any

import jax
from flax import nnx

from kdjax.config import Config
from kdjax.errors import UserError
from kdjax.experiments.images import Images
from kdjax.models import Segmenter, create, saved
from kdjax.models.saved import NetworkInfo


def make_student(config: Config, images: Images) -> tuple[Segmenter, NetworkInfo]:
    """Creates the student of a config for the classes of its images.

    Raises:
      UserError: when the checkpoint to start from is missing, damaged, or of another network.
    """
    info = NetworkInfo(
        name=config.student.name,
        num_classes=images.num_classes,
        width=config.student.width,
        auxiliary=config.student.auxiliary,
        class_names=tuple(images.class_names),
        palette=tuple(tuple(int(value) for value in color) for color in images.palette),
        source=f"trained by kdjax from seed {config.seed}",
    )
    if not config.student.checkpoint:
        net = create(
            info.name,
            num_classes=info.num_classes,
            width=info.width,
            auxiliary=info.auxiliary,
            dtype=config.student.dtype,
            rngs=nnx.Rngs(config.seed),
        )
        if config.student.backbone:
            return net, _take_backbone(config.student.backbone, net, info)
        return net, info
    net, start = saved.load(config.student.checkpoint, dtype=config.student.dtype, seed=config.seed)
    for key in ("name", "num_classes", "width", "auxiliary"):
        if getattr(start, key) != getattr(info, key):
            raise UserError(
                f"config.student.checkpoint {config.student.checkpoint} has {key} "
                f"{getattr(start, key)!r}; this run needs {getattr(info, key)!r}"
            )
    return net, dataclasses.replace(
        info,
        preprocessing=start.preprocessing,
        source=f"{info.source}, from {config.student.checkpoint} ({start.fingerprint})",
    )


def _take_backbone(path: str, net: Segmenter, info: NetworkInfo) -> NetworkInfo:
    """Sets the backbone of `net` to that of the network in `path`; returns `info` with its input.

    Classes, head and the number of channels behind the backbone may differ.
    """
    source, start = saved.load(path)
    backbone = nnx.state(source.backbone, nnx.Not(nnx.RngState))
    if _shapes(backbone) != _shapes(nnx.state(net.backbone, nnx.Not(nnx.RngState))):
        raise UserError(
            f"config.student.backbone {path} is that of {start.name} (width {start.width}); "
            f"{info.name} (width {info.width}) has another"
        )
    nnx.update(net.backbone, backbone)
    return dataclasses.replace(
        info,
        preprocessing=start.preprocessing,
        source=f"{info.source}, its backbone from {path} ({start.fingerprint})",
    )


def _shapes(state: nnx.State) -> Any:
    return jax.tree.map(lambda leaf: leaf.shape, nnx.to_pure_dict(state))
