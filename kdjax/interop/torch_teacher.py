"""A PyTorch network as a teacher, which the training step calls on the host."""

import functools
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from kdjax.models import Preprocessing, Variables
from kdjax.models.network import SCORES, Applied, Images, Key
from kdjax.models.outputs import IMAGENET
from kdjax.utils.errors import UserError

if TYPE_CHECKING:
    import torch

Outputs = Mapping[str, Float[Array, "B ..."]]


def channels_last(outputs: Outputs) -> dict[str, Float[Array, "B h w C"]]:
    """Returns maps in the layout of kdjax, from arrays [B, C, h, w] in the layout of PyTorch."""
    return {name: jnp.moveaxis(value, 1, -1) for name, value in outputs.items()}


class TorchTeacher:
    """A PyTorch network with trained weights, as the two methods of `kdjax.models.Network`.

    `config.teacher.checkpoint` names a teacher, or a function that returns one:

        @functools.cache
        def teacher():
            return TorchTeacher(torch.load("unet.pt", weights_only=False), class_names=NAMES)

    The step calls the network on the host by `jax.pure_callback`, in evaluation mode and without
    gradients. The network has no variables in JAX. Programs of several devices call it once for the
    whole batch. PyTorch's number of threads stays as it is.

    Args:
      module: the network. It is moved to the device and set to evaluation mode in place.
      forward: runs the network on normalized images [B, 3, H, W] that have the device and the type
        of its parameters. It returns the class scores [B, K, h, w], or a dict of tensors of any
        shape whose first axis is B. By default, it calls the module.
      maps: a function in JAX from these tensors, as float32 arrays by name, to maps [B, h, w, C] by
        name, or to the class scores. A single tensor is named "logits". By default, the axis of the
        channels becomes the last one.
      preprocessing: turns 8-bit pixels into the input of the network.
      class_names: a name for each class. Without names, classes are matched by number.
      device: of the network, such as "cpu" or "cuda".

    Raises:
      UserError: if the device is not available.

    Attributes:
      preprocessing: as given.
      class_names: as given.
      fingerprint: a hash of all parameters and buffers.
    """

    def __init__(
        self,
        module: "torch.nn.Module",
        *,
        forward: "Callable[[Any, torch.Tensor], Any] | None" = None,
        maps: Callable[[Outputs], Any] = channels_last,
        preprocessing: Preprocessing = IMAGENET,
        class_names: Sequence[str] = (),
        device: str = "cpu",
    ):
        import torch

        if device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f'the device is "{device}", but PyTorch finds no GPU; use "cpu"')
        self.fingerprint = _hash(module)
        self.preprocessing = preprocessing
        self.class_names = tuple(class_names)
        self._device = device
        self._module = module.to(device).eval()
        self._forward = forward or (lambda module, images: module(images))
        self._maps = maps
        self._dtype = next(
            (weights.dtype for weights in module.parameters() if weights.is_floating_point()),
            torch.float32,
        )
        # Networks may keep tables between calls, and devices of JAX call in parallel.
        self._lock = threading.Lock()
        self._shapes = functools.cache(self._find_shapes)

    def init(self, key: PRNGKeyArray, images: Images) -> Variables:
        """Returns no variables: PyTorch holds the weights."""
        del key, images
        return {"params": {}, "state": {}}

    def apply(self, variables: Variables, images: Images, *, train: bool, key: Key) -> Applied:
        """Returns the maps, and the variables.

        The first call for a size of images runs the network once on a blank image, to find the
        shapes of its output.

        Raises:
          UserError: if the output is neither a tensor nor a dict of tensors, or if its first axis
            is not that of the images.
        """
        del train, key
        batch, height, width, _ = images.shape
        shapes = {
            name: jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
            for name, shape in self._shapes(height, width).items()
        }
        outputs = jax.pure_callback(self._run, shapes, jnp.asarray(images, jnp.float32))
        return self._maps(outputs), variables

    def _find_shapes(self, height: int, width: int) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each output without the axis of the images."""
        outputs = self._run(np.zeros((1, height, width, 3), np.float32))
        for name, value in outputs.items():
            if value.shape[:1] != (1,):
                raise UserError(
                    f'the output "{name}" of the PyTorch network is {list(value.shape)} for one '
                    "image; its first axis must be that of the images"
                )
        return {name: value.shape[1:] for name, value in outputs.items()}

    def _run(self, images: Any) -> dict[str, np.ndarray]:
        """Returns the outputs of the network for images [B, H, W, 3]."""
        import torch

        # NumPy reads the array: within a callback, an operation of JAX could wait for ever.
        pixels = np.asarray(images)
        with self._lock, torch.inference_mode():
            tensor = torch.tensor(pixels, dtype=self._dtype, device=self._device)
            outputs = self._forward(self._module, tensor.permute(0, 3, 1, 2).contiguous())
            return {
                name: value.to("cpu", torch.float32).numpy()
                for name, value in _named(outputs).items()
            }


def _named(outputs: Any) -> "Mapping[str, torch.Tensor]":
    """Returns the tensors of an output by name.

    Raises:
      UserError: if the output holds anything else.
    """
    import torch

    named = outputs if isinstance(outputs, Mapping) else {SCORES: outputs}
    for name, value in named.items():
        if not isinstance(value, torch.Tensor):
            where = f'the output "{name}"' if isinstance(outputs, Mapping) else "the output"
            raise UserError(
                f"{where} of the PyTorch network is of type {type(value).__name__}; forward must "
                "return a tensor, or a dict of tensors"
            )
    return named


def _hash(module: "torch.nn.Module") -> str:
    """Returns a hash of all parameters and buffers, of their names, and of their types."""
    import torch

    digest = hashlib.sha256()
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(content.numpy())
    return digest.hexdigest()[:16]
