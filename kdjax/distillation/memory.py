"""CIRKD's memory as a term: similarities to the teacher's pixels and regions of earlier batches."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from kdjax import losses
from kdjax.distillation.loss import Inputs, Loss, Metrics, Names
from kdjax.distillation.maps import Params, Spec, adapt, init_adapter

# Similarities of one network that exist at a time.
_ENTRIES = 2**23


class Ring(NamedTuple):
    """The last vectors of each class, oldest overwritten first.

    Attributes:
      vectors: of length 1 [K, size, D]; random ones until they are overwritten.
      written: how many were ever written to each class [K], less whole rounds after the first.
    """

    vectors: Float[Array, "K size D"]
    written: Int[Array, " K"]


class CIRKDMemory(Loss):
    """Similarities of a pixel to a memory: Yang et al. 2022, the second and third part.

    The teacher's pixels and the means of its classes' regions go into rings, one a class, before
    the loss reads them. It is the sum over both memories of the mean divergence over labelled
    pixels. The student's features go through two learned 1x1 convolutions first, with a batch norm
    and ReLU between.

    Each network gives its features and its class scores, of which only the number is used. The
    authors' weight; 0.01 on VOC.

    Attributes:
      pixels: vectors in the memory of pixels, of all classes together; the authors have 20000 of
        each of 19.
      regions: in that of regions; 2000 of each.
      pixels_per_class: how many of an image and class go into the memory at most.
      compared_pixels: with how many a pixel is compared, of all classes together.
      compared_regions: likewise.
      sampling: which pixels of a class go into the memory: "class" draws from its pixels; "image"
        draws from as many first pixels of the image, whatever their class, as the released code.
      storage: the type that the memories have.
    """

    student: Names = ("head", "logits")
    teacher: Names | None = ("head", "logits")
    weight: float = 0.1
    adapter: str = "never"
    temperature: float = 0.1
    pixels: int = 380_000
    regions: int = 38_000
    pixels_per_class: int = 16
    compared_pixels: int = 4096
    compared_regions: int = 1024
    sampling: Literal["class", "image"] = "class"
    storage: Literal["bfloat16", "float32"] = "bfloat16"

    def check(self, student: tuple[Spec, ...], teacher: tuple[Spec, ...]) -> None:
        if len(self.names("student")) != 2 or len(self.names("teacher")) != 2:
            raise ValueError('reads two maps a side: features and scores, as ("head", "logits")')
        if not student[1].scores:
            raise ValueError("needs the student's class scores, as logits, beside its features")
        if self.sampling not in ("class", "image"):
            raise ValueError(f'sampling must be "class" or "image", got "{self.sampling}"')
        if self.storage not in ("bfloat16", "float32"):
            raise ValueError(f'storage must be "bfloat16" or "float32", got "{self.storage}"')
        classes = student[1].channels
        if min(self.pixels, self.regions, self.compared_pixels, self.compared_regions) < classes:
            raise ValueError(
                f"pixels, regions and how many of them are compared must be {classes} or more, one "
                "for each class"
            )
        if self.pixels_per_class < 1 or not self.temperature > 0:
            raise ValueError("pixels_per_class and temperature must be positive")

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
        # The same in every run: what is drawn here is soon overwritten.
        return {
            name: _begin(jax.random.key(number), (classes, size, channels), self.storage)
            for number, (name, size) in enumerate(sizes.items())
        }

    def update(self, state: dict[str, Ring], inputs: Inputs) -> dict[str, Ring]:
        if inputs.labels is None:
            raise ValueError("reads labels, and there are none")
        classes = len(state["pixels"].written)
        labels = inputs.labels[0].reshape(len(inputs.labels[0]), -1)
        # An ignored label may be that of a class.
        labels = jnp.where(labels == inputs.ignore_label, -1, labels.astype(jnp.int32))
        member = labels[:, :, None] == jnp.arange(classes)
        counts, found = jnp.sum(member, 1), _directions(inputs.teacher[0])
        # What is ignored may hold anything, and 0 times what is not finite would reach a region.
        clean = jnp.where(member.any(-1, keepdims=True), found, 0.0)
        means = jnp.einsum("bpk,bpd->bkd", member, clean, precision=jax.lax.Precision.HIGHEST)
        chosen = self._choose(jax.random.fold_in(inputs.key, 0), member, counts)
        places = chosen.reshape(len(found), -1, 1)
        drawn = jnp.take_along_axis(found, places, 1).reshape(*chosen.shape, -1)
        return {
            "pixels": _write(state["pixels"], drawn, jnp.minimum(counts, chosen.shape[-1])),
            "regions": _write(state["regions"], _unit(means)[:, :, None], counts > 0),
        }

    def _choose(
        self, key: PRNGKeyArray, member: Bool[Array, "B P K"], counts: Int[Array, "B K"]
    ) -> Int[Array, "B K n"]:
        """The pixels of each image and class that go into the memory, as far as there are any."""
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
        # Selected before they meet: what is not finite would reach the gradient of all.
        student, teacher = (_directions(jnp.where(inputs.valid[0][..., None], x, 0)) for x in maps)
        valid = inputs.valid[0].reshape(len(made), -1)
        parts, filled = {}, {}
        wanted = {"pixels": self.compared_pixels, "regions": self.compared_regions}
        for number, (name, count) in enumerate(wanted.items(), start=1):
            vectors, written = jax.lax.stop_gradient(state[name])
            classes, size, channels = vectors.shape
            # As the authors: the same places of every class, and one more than asked for.
            each = min(count // classes + 1, size)
            key = jax.random.fold_in(inputs.key, number)
            places = jax.random.choice(key, size, (each,), replace=False)
            compared = vectors[:, places].reshape(-1, channels).astype(jnp.float32)
            values = _divergence(student, teacher, compared / self.temperature)
            parts[name] = losses.valid_mean(values, valid)
            filled[f"{name}_filled"] = jnp.mean(jnp.minimum(written, size) / size)
        return parts["pixels"] + parts["regions"], parts | filled


def _begin(key: PRNGKeyArray, shape: tuple[int, int, int], storage: str) -> Ring:
    """A ring of random directions."""

    @jax.jit
    def draw(key: PRNGKeyArray) -> Float[Array, "K size D"]:
        return _unit(jax.random.normal(key, shape)).astype(storage)

    return Ring(draw(key), jnp.zeros(shape[0], jnp.int32))


def _write(
    ring: Ring, vectors: Float[Array, "B K n D"], counts: Int[Array, "B K"] | Bool[Array, "B K"]
) -> Ring:
    """The ring with the first `counts` vectors of each image and class in it, image by image."""
    classes, size, _ = ring.vectors.shape
    places = jnp.arange(vectors.shape[2])
    # By keyword: jax2onnx puts a cumsum of its own in jax.numpy, which takes one argument by place.
    ends = jnp.cumsum(counts.astype(jnp.int32), axis=0)
    number = jnp.expand_dims(ends - counts, -1) + places
    # Of more than the ring holds, the last; no place is written twice.
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
    """The divergence of each pixel's similarities to the memory, in strips of pixels."""
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
    return _unit(x.reshape(len(x), -1, x.shape[-1]).astype(jnp.float32))


def _unit(x: Float[Array, "*shape D"]) -> Float[Array, "*shape D"]:
    """Vectors of length 1, or of 0 where there is no direction."""
    square = jnp.sum(jnp.square(x), -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.where(square > 1e-16, square, 1.0))
