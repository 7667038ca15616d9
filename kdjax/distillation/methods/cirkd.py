"""CIRKD as two terms: similarities within a batch, and to a memory of earlier batches."""

from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from kdjax import losses
from kdjax.distillation.feature_maps import Spec
from kdjax.distillation.layers import Params, adapt, init_adapter, to_length_one
from kdjax.distillation.loss import Inputs, Loss, Metrics, loss_class, read_labels
from kdjax.distillation.terms import term
from kdjax.utils.schema import COUNT, POSITIVE

# The number of similarities of one network that memory holds at a time.
_ENTRIES = 2**23


class CIRKDMinibatch(loss_class(losses.cirkd_minibatch)):
    """Similarities of pixels across images: Yang et al. 2022, the first part of their method."""

    student = teacher = "head"
    adapter = "never"


class Ring(NamedTuple):
    """The last vectors of each class. New vectors overwrite the oldest.

    Attributes:
      vectors: vectors of length 1, `[K, size, D]`. They are random until they are overwritten.
      written: the number of vectors written to each class, `[K]`. After the first round, whole
        rounds are subtracted.
    """

    vectors: Float[Array, "K size D"]
    written: Int[Array, " K"]


class CIRKDMemory(Loss):
    """Similarities of a pixel to a memory: Yang et al. 2022, the second and third part.

    There are two memories, one of the teacher's pixels and one of the means of its classes' regions
    in each image. A batch is written to both before the loss reads them. The loss is the sum over
    the memories of the mean divergence over labeled pixels. The student's features first pass two
    learned 1x1 convolutions, with a batch norm and a ReLU between them.

    Each network gives its features and its class scores. Only the number of classes is read from
    the scores. The weight is the authors' on Cityscapes; theirs on VOC is 0.01.

    Attributes:
      temperature: temperature of the similarities.
      pixels: size of the memory of pixels, over all classes. The authors have 20000 for each of 19
        classes.
      regions: size of the memory of regions, over all classes. The authors have 2000 for each.
      pixels_per_class: the largest number of pixels of one image and class that are written.
      compared_pixels: the number of stored pixels with which a pixel is compared, over all classes.
      compared_regions: the same number for regions.
      sampling: which pixels of a class are written: "class" draws from its pixels. "image" draws
        from as many first pixels of the image, whatever their class, as the published code does.
      storage: the type of the memories.
    """

    student = teacher = ("head", "logits")
    weight = 0.1
    adapter = "never"
    temperature: Annotated[float, POSITIVE] = 0.1
    pixels: int = 380_000
    regions: int = 38_000
    pixels_per_class: Annotated[int, COUNT] = 16
    compared_pixels: int = 4096
    compared_regions: int = 1024
    sampling: Literal["class", "image"] = "class"
    storage: Literal["bfloat16", "float32"] = "bfloat16"

    def check(self, student: tuple[Spec, ...], teacher: tuple[Spec, ...]) -> None:
        if len(self.names("student")) != 2 or len(self.names("teacher")) != 2:
            raise ValueError('reads two maps a side: features and scores, as ("head", "logits")')
        if not student[1].scores:
            raise ValueError("needs the student's class scores, as logits, and its features")
        classes = student[1].channels
        if min(self.pixels, self.regions, self.compared_pixels, self.compared_regions) < classes:
            raise ValueError(
                "pixels, regions, compared_pixels, and compared_regions must be "
                f"{classes} or more, one for each class"
            )

    def init_params(
        self, key: PRNGKeyArray, student: tuple[Spec, ...], teacher: tuple[Spec, ...]
    ) -> dict[str, Params]:
        first, second = jax.random.split(key)
        channels = teacher[0].channels
        return {
            "first": init_adapter(first, student[0].channels, channels, norm=True),
            "second": init_adapter(second, channels, channels),
        }

    def init_state(self, student: tuple[Spec, ...], teacher: tuple[Spec, ...]) -> dict[str, Ring]:
        classes, channels = student[1].channels, teacher[0].channels
        sizes = {"pixels": self.pixels // classes, "regions": self.regions // classes}
        # The same in every run, because the random vectors are soon overwritten.
        return {
            name: _random_ring(jax.random.key(number), (classes, size, channels), self.storage)
            for number, (name, size) in enumerate(sizes.items())
        }

    def update(self, state: dict[str, Ring], inputs: Inputs) -> dict[str, Ring]:
        (labels, *_), _ = read_labels(inputs)
        classes = len(state["pixels"].written)
        labels = labels.reshape(len(labels), -1)
        # The ignore label may also be the number of a class.
        labels = jnp.where(labels == inputs.ignore_label, -1, labels.astype(jnp.int32))
        member = labels[:, :, None] == jnp.arange(classes)
        counts, found = jnp.sum(member, 1), _directions(inputs.teacher[0])
        # Selected, because 0 times a value that is not finite would reach the mean of a region.
        clean = jnp.where(member.any(-1, keepdims=True), found, 0.0)
        means = jnp.einsum("bpk,bpd->bkd", member, clean, precision=jax.lax.Precision.HIGHEST)
        chosen = self._choose(jax.random.fold_in(inputs.key, 0), member, counts)
        places = chosen.reshape(len(found), -1, 1)
        drawn = jnp.take_along_axis(found, places, 1).reshape(*chosen.shape, -1)
        return {
            "pixels": _write(state["pixels"], drawn, jnp.minimum(counts, chosen.shape[-1])),
            "regions": _write(state["regions"], to_length_one(means)[:, :, None], counts > 0),
        }

    def _choose(
        self, key: PRNGKeyArray, member: Bool[Array, "B P K"], counts: Int[Array, "B K"]
    ) -> Int[Array, "B K n"]:
        """Returns the pixels to write for each image and class.

        If a class has fewer than n pixels, the last entries are arbitrary.
        """
        images, pixels, classes = member.shape
        if self.sampling == "class":
            drawn_from = jnp.moveaxis(member, -1, 1)
        else:
            drawn_from = jnp.arange(pixels) < counts[:, :, None]
        numbers = jax.random.uniform(key, (images, classes, pixels))
        count = min(self.pixels_per_class, pixels)
        return jax.lax.top_k(jnp.where(drawn_from, numbers, -1.0), count)[1]

    def __call__(
        self, inputs: Inputs, params: dict[str, Params], state: dict[str, Ring]
    ) -> tuple[Float[Array, ""], Metrics]:
        made = adapt(params["second"], jax.nn.relu(adapt(params["first"], inputs.student[0])))
        maps = made, jax.lax.stop_gradient(inputs.teacher[0])
        # Selected first, because a value that is not finite would reach the gradient of all pixels.
        student, teacher = (_directions(jnp.where(inputs.valid[0][..., None], x, 0)) for x in maps)
        valid = inputs.valid[0].reshape(len(made), -1)
        parts, filled = {}, {}
        wanted = {"pixels": self.compared_pixels, "regions": self.compared_regions}
        for number, (name, count) in enumerate(wanted.items(), start=1):
            vectors, written = jax.lax.stop_gradient(state[name])
            classes, size, channels = vectors.shape
            # As in the authors' code: the same places for every class, and one more than asked for.
            each = min(count // classes + 1, size)
            key = jax.random.fold_in(inputs.key, number)
            places = jax.random.choice(key, size, (each,), replace=False)
            compared = vectors[:, places].reshape(-1, channels).astype(jnp.float32)
            values = _divergence(student, teacher, compared / self.temperature)
            parts[name] = losses.valid_mean(values, valid)
            filled[f"{name}_filled"] = jnp.mean(jnp.minimum(written, size) / size)
        return parts["pixels"] + parts["regions"], parts | filled


def _random_ring(key: PRNGKeyArray, shape: tuple[int, int, int], storage: str) -> Ring:

    @jax.jit
    def draw(key: PRNGKeyArray) -> Float[Array, "K size D"]:
        return to_length_one(jax.random.normal(key, shape)).astype(storage)

    return Ring(draw(key), jnp.zeros(shape[0], jnp.int32))


def _write(
    ring: Ring, vectors: Float[Array, "B K n D"], counts: Int[Array, "B K"] | Bool[Array, "B K"]
) -> Ring:
    """Writes the first `counts` vectors of each image and class to the ring, image by image."""
    classes, size, _ = ring.vectors.shape
    places = jnp.arange(vectors.shape[2])
    # axis by keyword, because jax2onnx replaces jnp.cumsum by one with one positional argument.
    ends = jnp.cumsum(counts.astype(jnp.int32), axis=0)
    number = jnp.expand_dims(ends - counts, -1) + places
    # If there are more vectors than places, the last are kept. No place is written twice.
    kept = (places < counts[:, :, None]) & (number >= (ends[-1] - size)[:, None])
    place = jnp.where(kept, (ring.written[:, None] + number) % size, size)
    written = ring.written + ends[-1]
    return Ring(
        ring.vectors.at[jnp.arange(classes)[:, None], place].set(
            vectors.astype(ring.vectors.dtype), mode="drop"
        ),
        jnp.where(written < size, written, size + written % size),
    )


def _divergence(
    student: Float[Array, "B P D"], teacher: Float[Array, "B P D"], memory: Float[Array, "V D"]
) -> Float[Array, "B P"]:
    """Returns the divergence of each pixel's similarities to the memory, by strips of pixels."""
    images, pixels, channels = student.shape
    rows = min(pixels, max(1, _ENTRIES // (images * len(memory))))
    strips = -(-pixels // rows)

    def in_strips(x: Float[Array, "B P D"]) -> Float[Array, "strips B rows D"]:
        x = jnp.pad(x, [(0, 0), (0, strips * rows - pixels), (0, 0)])
        return jnp.moveaxis(x.reshape(images, strips, rows, channels), 1, 0)

    @jax.checkpoint
    def of_strip(sides: tuple[Array, Array]) -> Float[Array, "B rows"]:
        tables = (jnp.matmul(x, memory.T, precision=jax.lax.Precision.HIGHEST) for x in sides)
        return losses.pixelwise_kl(*tables)

    values = jax.lax.map(of_strip, (in_strips(student), in_strips(teacher)))
    return jnp.moveaxis(values, 0, 1).reshape(images, -1)[:, :pixels]


def _directions(x: Float[Array, "B h w D"]) -> Float[Array, "B P D"]:
    return to_length_one(x.reshape(len(x), -1, x.shape[-1]))


METHODS = {
    "cirkd_minibatch": {
        "pixelwise_kl": term("pixelwise_kl"),
        "cirkd_minibatch": term("cirkd_minibatch"),
    },
    "cirkd": {
        "pixelwise_kl": term("pixelwise_kl"),
        "cirkd_minibatch": term("cirkd_minibatch"),
        "cirkd_memory": term("cirkd_memory"),
    },
}
BUILDS_ON = {"cirkd_minibatch": "pixelwise_kl", "cirkd": "cirkd_minibatch"}
