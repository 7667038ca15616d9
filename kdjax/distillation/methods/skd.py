"""SKD as two terms: similarities of regions, and a discriminator of class scores.

The discriminator is state of its term, and each step of its training is an update of the state.
Therefore the student's optimizer does not touch it, checkpoints contain it, and it receives no
gradient of the student's loss. Adam is written out, because this package uses only JAX.
"""

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from kdjax import losses
from kdjax.distillation.feature_maps import Spec
from kdjax.distillation.layers import batch_norm, convolve, init_convolution
from kdjax.distillation.loss import Inputs, Loss, Metrics, ScoreLoss
from kdjax.distillation.terms import term
from kdjax.utils.schema import COUNT, NOT_NEGATIVE

_BETAS = (0.9, 0.99)
_EPSILON = 1e-7  # the authors' is 1e-8, with a loss of weight 0.1
_PENALTY = 10.0


class SKDPairwise(Loss):
    """Similarities of pairs of regions: Liu et al. 2019, with the weight of the authors' script.

    Attributes:
      window: rows and columns of a region. 0 is half the map, as in the authors' code.
      stop_norms: True if the gradient treats the regions' norms as constants, as in the authors'
        code. False as in CIRKD's code.
    """

    student = teacher = "head"
    weight = 0.5
    adapter = "never"
    window: int = 0
    stop_norms: bool = True

    def __call__(self, inputs: Inputs, params: PyTree, state: PyTree) -> Float[Array, ""]:
        return jnp.mean(
            losses.skd_pairwise(
                inputs.student,
                inputs.teacher,
                window=self.window or None,
                stop_norms=self.stop_norms,
            )
        )


class Discriminator(NamedTuple):
    """The discriminator between the scores of teacher and student, and the state of its training.

    Attributes:
      judge: the parameters that judge the student in this step.
      trained: the parameters after this step, which judge the student in the next.
      directions: for each strided convolution, an estimate of the output direction with the
        largest singular value.
      moments: the first and second moments of Adam, each with the structure of the parameters.
      steps: the number of training steps.
      loss: the discriminator's loss in this step.
    """

    judge: PyTree
    trained: PyTree
    directions: list[Float[Array, " D"]]
    moments: tuple[PyTree, PyTree]
    steps: Int[Array, ""]
    loss: Float[Array, ""]


class Holistic(ScoreLoss):
    """The adversarial term of SKD: Liu et al. 2019, in the form and with the weight of CIRKD.

    A discriminator learns to distinguish the teacher's class scores from the student's. The student
    learns to be mistaken for the teacher. Adam trains the discriminator after the student's step,
    on the maps of that step. Its strided convolutions halve the map and have spectral norm.
    Self-attention follows the last two.

    Attributes:
      channels: output channels of the strided convolutions. With n of them, maps need 4 * 2^n rows
        and columns or more.
      objective: the discriminator's objective: "hinge", or "wgan_gp" as in SKD and IFVD, which is
        the mean difference with a penalty on gradients.
      discriminator_rate: the discriminator's learning rate.
      discriminator_decay: the power of its poly decay. SKD and IFVD use 0.9.
    """

    weight = 0.001
    adapter = "never"
    channels: Annotated[tuple[int, ...], COUNT] = (64, 128, 256, 512)
    objective: Literal["hinge", "wgan_gp"] = "hinge"
    discriminator_rate: Annotated[float, NOT_NEGATIVE] = 4e-4
    discriminator_decay: Annotated[float, NOT_NEGATIVE] = 0.0

    def init_state(self, student: Spec, teacher: Spec) -> Discriminator:
        # The same discriminator in every run. The student's weights and the images vary.
        return jax.jit(self._begin, static_argnums=1)(jax.random.key(0), student.channels)

    def _begin(self, key: PRNGKeyArray, classes: int) -> Discriminator:
        judge = _init_discriminator(key, classes, self.channels)
        directions = [_length_one(jnp.ones(count)) for count in self.channels]
        zeros = jax.tree.map(jnp.zeros_like, judge)
        steps, loss = jnp.zeros((), jnp.int32), jnp.zeros(())
        return Discriminator(judge, judge, directions, (zeros, zeros), steps, loss)

    def update(self, state: Discriminator, inputs: Inputs) -> Discriminator:
        self._check_size(inputs.student.shape[1:3])
        judge, steps = state.trained, state.steps + 1
        directions = [
            _iterate(layer["kernel"], direction)
            for layer, direction in zip(judge["layers"], state.directions, strict=True)
        ]
        loss, gradients = jax.value_and_grad(self._own_loss)(judge, directions, inputs)
        rate = self.discriminator_rate * (1 - inputs.progress) ** self.discriminator_decay
        moments = tuple(
            jax.tree.map(
                lambda old, g, b=beta, n=power: b * old + (1 - b) * g**n, moment, gradients
            )
            for power, (beta, moment) in enumerate(zip(_BETAS, state.moments, strict=True), start=1)
        )
        first, second = (1 - beta ** steps.astype(jnp.float32) for beta in _BETAS)
        trained = jax.tree.map(
            lambda p, m, v: p - rate * (m / first) / (jnp.sqrt(v / second) + _EPSILON),
            judge,
            *moments,
        )
        return Discriminator(judge, trained, directions, moments, steps, loss)

    def __call__(
        self, inputs: Inputs, params: PyTree, state: Discriminator
    ) -> tuple[Float[Array, ""], Metrics]:
        found = _judge(state.judge, state.directions, inputs.student)
        return -jnp.mean(found), {"discriminator": state.loss}

    def _own_loss(self, judge: PyTree, directions: list[Array], inputs: Inputs) -> Float[Array, ""]:
        """Returns the discriminator's loss."""

        def score(x: Float[Array, "B h w K"]) -> Float[Array, "B i j 1"]:
            return _judge(judge, directions, x)

        # Separate calls, so that each side has its own batch norm, as in the authors' code.
        student, teacher = score(inputs.student), score(inputs.teacher)
        if self.objective == "hinge":
            return jnp.mean(jax.nn.relu(1 - teacher)) + jnp.mean(jax.nn.relu(1 + student))
        penalty = _gradient_penalty(score, inputs.student, inputs.teacher, inputs.key)
        return jnp.mean(student) - jnp.mean(teacher) + _PENALTY * penalty

    def _check_size(self, size: tuple[int, ...]) -> None:
        least = 4 * 2 ** len(self.channels)
        if min(size) < least:
            raise ValueError(
                f"the discriminator takes class scores of {least} x {least} or more, got "
                f"{size[0]} x {size[1]}: train on larger crops, leave the term out, or give it "
                f"fewer channels than the {len(self.channels)} of {self.channels}, each of which "
                "halves the map"
            )


def _init_discriminator(key: PRNGKeyArray, classes: int, channels: tuple[int, ...]) -> PyTree:
    layers, before = [], classes
    for index, after in enumerate(channels):
        kernel, *parts = jax.random.split(jax.random.fold_in(key, index), 4)
        layer: PyTree = init_convolution(kernel, 4, before, after)
        if index >= len(channels) - 2:
            sizes = {"query": max(after // 8, 1), "key": max(after // 8, 1), "value": after}
            layer["attention"] = {
                name: init_convolution(part, 1, after, size)
                for part, (name, size) in zip(parts, sizes.items(), strict=True)
            } | {"gamma": jnp.zeros(())}
            # The softmax cancels this bias. Adam would turn its rounding errors into a random walk.
            del layer["attention"]["key"]["bias"]
        layers.append(layer)
        before = after
    last = init_convolution(jax.random.fold_in(key, len(channels)), 4, before, 1)
    return {
        "norm": {"scale": jnp.ones(classes), "shift": jnp.zeros(classes)},
        "layers": layers,
        "last": last,
    }


def _judge(
    params: PyTree, directions: list[Array], x: Float[Array, "B h w K"]
) -> Float[Array, "B i j 1"]:
    """Returns scores that are high for maps that look like the teacher's."""
    x = batch_norm(params["norm"], x.astype(jnp.float32))
    for layer, direction in zip(params["layers"], directions, strict=True):
        kernel = layer["kernel"]
        largest = jnp.linalg.norm(kernel.reshape(-1, len(direction)) @ direction)
        convolution = {"kernel": kernel / largest, "bias": layer["bias"]}
        x = convolve(convolution, x, stride=2, padding=((1, 1), (1, 1)))
        x = jax.nn.leaky_relu(x, 0.1)
        if "attention" in layer:
            x = _attend(layer["attention"], x)
    return convolve(params["last"], x, padding="VALID")


def _attend(params: PyTree, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
    query, key, value = (
        convolve(params[name], x).reshape(len(x), x.shape[1] * x.shape[2], -1)
        for name in ("query", "key", "value")
    )
    shares = jax.nn.softmax(query @ jnp.swapaxes(key, 1, 2))
    return x + params["gamma"] * (shares @ value).reshape(x.shape)


def _iterate(kernel: Float[Array, "h w C D"], direction: Float[Array, " D"]) -> Float[Array, " D"]:
    """Returns the direction after a step of power iteration to the largest singular value."""
    matrix = kernel.reshape(-1, len(direction))
    return _length_one(matrix.T @ _length_one(matrix @ direction))


def _length_one(x: Float[Array, " D"]) -> Float[Array, " D"]:
    return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)


def _gradient_penalty(
    score: Callable[[Float[Array, "B h w K"]], Float[Array, "B i j 1"]],
    student: Float[Array, "B h w K"],
    teacher: Float[Array, "B h w K"],
    key: PRNGKeyArray,
) -> Float[Array, ""]:
    """Returns the mean square of the slope minus 1, at a random point between the two maps."""
    share = jax.random.uniform(key, (len(student), 1, 1, 1))
    between = share * teacher + (1 - share) * student
    slopes = jax.grad(lambda x: jnp.sum(score(x)))(between)
    square = jnp.sum(jnp.square(slopes), (1, 2, 3))
    # Selected, because the root has no derivative at 0.
    length = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return jnp.mean(jnp.square(length - 1))


METHODS = {
    "skd_pairwise": {"skd_pairwise": term("skd_pairwise")},
    "skd": {
        "pixelwise_kl": term("pixelwise_kl"),
        "pairwise": term("skd_pairwise", window=2, stop_norms=False, weight=10.0),
        "holistic": term("holistic"),
    },
}
BUILDS_ON = {"skd": "pixelwise_kl"}
