"""CWD: channel-wise distillation."""

import jax
from jaxtyping import Array, Float

from kdjax.losses._checks import check_positive, check_same_shape
from kdjax.losses._softmax import softmax_kl


def cwd(
    student: Float[Array, "*batch H W C"],
    teacher: Float[Array, "*batch H W C"],
    *,
    temperature: float | Array = 4.0,
) -> Float[Array, "*batch C"]:
    """Channel-wise distillation: KL divergence between each channel's distributions over pixels.

    `t^2 sum_i p_i (log p_i - log q_i)` for every channel. `p` and `q` are the softmax of the
    teacher's and the student's channel over its pixels `i`, at temperature `t`. The loss compares
    where a channel is high, and ignores its level: a constant that is added to a channel changes
    nothing. A pixel, or a whole channel, that is -inf in both networks adds nothing.

    Args:
      student: logits or features `[..., H, W, C]`, any floating type.
      teacher: the same shape; it receives no gradient.
      temperature: softens both distributions. A setting: it receives no gradient.

    Returns:
      float32 `[..., C]`; the plain mean is the loss.

    Source:
      Shu et al., "Channel-wise knowledge distillation for dense prediction" (ICCV 2021), the
      formula as in the authors' TorchDistiller and in mmrazor's `ChannelWiseDivergence`. Weight 3
      on logits and 50 on features after the pyramid, temperature 4. Other code differs:
      mmsegmentation-distiller leaves out the teacher's entropy, which changes the value and not
      the gradient. It and CIRKD divide by the student's channels before the 1x1 convolution, so
      that their weight 50 with 128 and 512 channels is 200 here. TorchDistiller takes
      `softmax(...).log()`, which is not finite on peaked maps. Ignored pixels take part, here and
      in all of them.

    Examples:
      >>> loss = 3.0 * cwd(student_logits, teacher_logits).mean()
    """
    check_same_shape(student, teacher)
    check_positive("temperature", temperature)
    values, *_ = softmax_kl(student, teacher, temperature, axis=(-3, -2))
    return jax.lax.stop_gradient(temperature) ** 2 * values
