"""Class scores of networks that answer by queries: MaskFormer, Mask2Former, OneFormer, and EoMT.

Each query predicts one class, or none, and one mask. The functions here turn the predictions of all
queries into scores for each pixel.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# float32 resolves no smaller part of a sum of order 1.
LEAST_SCORE = float(jnp.finfo(jnp.float32).eps)


def query_scores(
    class_logits: Float[Array, "B Q K+1"], mask_logits: Float[Array, "B Q h w"]
) -> Float[Array, "B h w K"]:
    """Returns the score of every class at every pixel, by which these networks are evaluated.

    The score of a class is `sum_q softmax(class_logits)_k sigmoid(mask_logits)`: the sum over the
    queries of the probability of the class times the probability that the mask covers the pixel.
    This is `post_process_semantic_segmentation` of `transformers` before the argmax. For
    Mask2Former and EoMT, `transformers` resizes the mask logits first.

    The scores are sums of probabilities, not logits: they lie between 0 and Q, and their softmax is
    almost uniform. Losses should read `query_logits`.

    Args:
      class_logits: of each query. The last class means that the query shows nothing.
      mask_logits: of each query.
    """
    classes = jax.nn.softmax(class_logits.astype(jnp.float32))[..., :-1]
    masks = jax.nn.sigmoid(mask_logits.astype(jnp.float32))
    return jnp.einsum("bqk,bqhw->bhwk", classes, masks)


def query_logits(
    class_logits: Float[Array, "B Q K+1"], mask_logits: Float[Array, "B Q h w"]
) -> Float[Array, "B h w K"]:
    """Returns the logarithm of `query_scores`, the form that losses read as logits.

    The softmax of the result over the classes is the scores divided by their sum, and a temperature
    acts as on any logits. A softmax over the pixels, as in CWD, is proportional to the scores too.
    Scores below `LEAST_SCORE` count as `LEAST_SCORE`, so that all classes are equally likely where
    no query sees anything.

    Args:
      class_logits: see `query_scores`.
      mask_logits: see `query_scores`.
    """
    return jnp.log(jnp.maximum(query_scores(class_logits, mask_logits), LEAST_SCORE))
