"""The network that a run trains: fresh, on a trained backbone, or from a checkpoint."""

import dataclasses
from typing import Any

import jax

from kdjax.config import Config
from kdjax.data.images import Images
from kdjax.errors import UserError
from kdjax.models import Network, Variables, saved
from kdjax.models.network import arrays_by_path, is_random_key, preprocessing_of
from kdjax.models.saved import NetworkInfo

BACKBONE = "backbone"


def make_student(config: Config, images: Images) -> tuple[Network, Variables, NetworkInfo]:
    """Makes the student of a config for the classes of its images.

    Raises:
      UserError: for a network that cannot be made, and when the checkpoint to start from is
        missing, damaged, or of another network.
    """
    student = config.student
    info = NetworkInfo(
        name=student.name,
        num_classes=images.num_classes,
        width=student.width,
        auxiliary=student.auxiliary,
        class_names=tuple(images.class_names),
        palette=tuple(tuple(int(value) for value in color) for color in images.palette),
        options=student.options.to_dict(),
        image_size=tuple(config.data.crop_size),
        source=f"trained by kdjax from seed {config.seed}",
    )
    if student.checkpoint:
        network, variables, start = saved.load(
            student.checkpoint, dtype=student.dtype, seed=config.seed
        )
        for key in ("name", "num_classes", "width", "auxiliary", "options"):
            if getattr(start, key) != getattr(info, key):
                raise UserError(
                    f"config.student.checkpoint {student.checkpoint} has {key} "
                    f"{getattr(start, key)!r}; this run needs {getattr(info, key)!r}"
                )
        return network, variables, _started_from(info, start, f"from {student.checkpoint}")
    network = info.make(dtype=student.dtype, where="config.student")
    variables = network.init(jax.random.key(config.seed), info.blank_image())
    info = dataclasses.replace(info, preprocessing=preprocessing_of(network))
    if student.backbone:
        return network, *_take_backbone(student.backbone, variables, info)
    return network, variables, info


def _take_backbone(
    path: str, variables: Variables, info: NetworkInfo
) -> tuple[Variables, NetworkInfo]:
    """The variables with the backbone of the network in `path`, and `info` with its input.

    Classes, head and the number of channels behind the backbone may differ.
    """
    _, source, start = saved.load(path)
    taken = {}
    for kind, tree in variables.items():
        ours, theirs = tree.get(BACKBONE, {}), source[kind].get(BACKBONE, {})
        if _shapes(ours) != _shapes(theirs) or (kind == "params" and not ours):
            raise UserError(
                f"config.student.backbone {path} is that of {start.name} (width {start.width}); "
                f"{info.name} (width {info.width}) has another"
            )
        taken[kind] = {**tree, **({BACKBONE: theirs} if theirs else {})}
    return taken, _started_from(info, start, f"its backbone from {path}")


def _started_from(info: NetworkInfo, start: NetworkInfo, how: str) -> NetworkInfo:
    return dataclasses.replace(
        info,
        preprocessing=start.preprocessing,
        source=f"{info.source}, {how} ({start.fingerprint})",
    )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    arrays = arrays_by_path(tree)
    return {path: leaf.shape for path, leaf in arrays.items() if not is_random_key(leaf)}
