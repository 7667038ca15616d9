"""Runs mmsegmentation's networks for `benchmarks.parity`, in an environment without kdjax.

For each line "CONFIG FILE" on standard input, this program builds the network of that config with
random weights, runs it, writes weights, inputs, and outputs to FILE, and prints a line.
"""

import sys
import types
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

SIZES = ((65, 97), (129, 257))


class _NoOperators(types.ModuleType):
    """A stub of mmcv's compiled operators, which these networks never call."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args, **kwargs):
            raise RuntimeError(f"mmcv was installed without {name}")

        return missing


def build(config):
    import mmseg
    from mmengine.config import Config
    from mmseg.registry import MODELS

    folder = Path(mmseg.__file__).parent / ".mim" / "configs"
    settings = Config.fromfile(folder / config).model
    settings.pop("data_preprocessor", None)
    without_downloads(settings)
    return MODELS.build(settings)


def without_downloads(node):
    """Drops the download of initial weights, and synchronization, which needs several devices."""
    if isinstance(node, dict):
        if node.get("type") == "SyncBN":
            node["type"] = "BN"
        for key in ("pretrained", "init_cfg"):
            if key in node:
                node[key] = None
    for child in node.values() if isinstance(node, dict) else node:
        if isinstance(child, (dict, list, tuple)):
            without_downloads(child)


@torch.no_grad()
def randomize(net, images):
    """Draws all weights so that activations neither vanish nor explode nor forget the input.

    Running statistics are those of the images, with random changes.
    """
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    for name, parameter in net.named_parameters():
        if name.endswith("relative_position_bias_table"):
            parameter.normal_()
        elif parameter.ndim == 1:
            # Half of the scale on a residual branch, or rounding errors would grow.
            parameter.normal_(0.5 if name.endswith("weight") else 0.0, 0.1)
    for norm in norms:
        norm.momentum = 1.0
    net.train()(images, mode="tensor")
    if net.with_auxiliary_head:
        net.auxiliary_head(net.extract_feat(images))
    for norm in norms:
        norm.running_mean.add_(0.2 * torch.randn_like(norm.running_mean))
        norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.7, 1.4))
    net.eval()


@torch.no_grad()
def run(net, images):
    """Returns all maps that kdjax names, channels last."""
    read = {}
    heads = {"head": net.decode_head}
    if net.with_auxiliary_head:
        heads["aux_head"] = net.auxiliary_head
    for name, head in heads.items():
        head.conv_seg.register_forward_pre_hook(
            lambda _, inputs, name=name: read.__setitem__(name, inputs[0])
        )
    stages = net.extract_feat(images)
    for index, stage in enumerate(stages):
        read[f"stage{index + 1}"] = stage
    for name, head in heads.items():
        read["aux_logits" if name == "aux_head" else "logits"] = head(stages)
    return {name: channels_last(value) for name, value in read.items()}


def channels_last(tensor):
    return np.ascontiguousarray(tensor.permute(0, 2, 3, 1).numpy())


def main():
    warnings.filterwarnings("ignore")
    if find_spec("mmcv._ext") is None:
        sys.modules["mmcv._ext"] = _NoOperators("mmcv._ext")
    # Lines that libraries print would be taken for answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    import mmcv
    import mmseg
    from mmseg.utils import register_all_modules

    register_all_modules()
    print(
        f"mmsegmentation {mmseg.__version__}, mmcv {mmcv.__version__}, PyTorch {torch.__version__}",
        file=answers,
        flush=True,
    )
    for line in sys.stdin:
        config, file = line.split()
        torch.manual_seed(0)
        net = build(config)
        randomize(net, torch.randn(2, 3, *SIZES[0]))
        arrays = {
            f"weights/{name}": value.numpy()
            for name, value in net.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
        for size in SIZES:
            images = torch.randn(1, 3, *size)
            key = f"{size[0]}x{size[1]}"
            arrays[f"images/{key}"] = channels_last(images)
            for name, value in run(net, images).items():
                arrays[f"outputs/{key}/{name}"] = value
        net.double()
        for key in [name for name in arrays if name.startswith("images/")]:
            images = torch.from_numpy(arrays[key]).permute(0, 3, 1, 2).double()
            arrays[key.replace("images", "exact")] = run(net, images)["logits"]
        np.savez(file, **arrays)
        count = sum(parameter.numel() for parameter in net.parameters())
        print(count, file=answers, flush=True)


if __name__ == "__main__":
    main()
