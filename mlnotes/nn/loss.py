"""Losses of regression and classification, one value for each entry or example: whoever calls reduces."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

Scalar = Float[Array, ""] | float


def squared_error(prediction: Float[Array, "..."], target: Float[Array, "..."]) -> Float[Array, "..."]:
  """(prediction - target)^2, without a factor 1/2, as torch's `mse_loss`; `optax.l2_loss` has one.

  Raises ValueError where the shapes differ: (B,) and (B, 1) would be broadcast to (B, B).
  """
  _require_same_shape("squared_error", prediction, target)
  return optax.squared_error(prediction, target)


def absolute_error(prediction: Float[Array, "..."], target: Float[Array, "..."]) -> Float[Array, "..."]:
  """|prediction - target|, with gradient 0 where they are equal. Raises as `squared_error` does."""
  _require_same_shape("absolute_error", prediction, target)
  error = prediction - target
  return error * jnp.sign(error)


def smooth_l1(prediction: Float[Array, "..."], target: Float[Array, "..."], beta: Scalar = 1.0) -> Float[Array, "..."]:
  """e^2 / (2 beta) where |e| < beta, |e| - beta / 2 beyond: Girshick 2015, eq. 3, at beta = 1.

  The slope is 1 far from 0 whatever `beta`. Huber's loss is beta times this: `optax.huber_loss(delta=beta)`. beta = 0
  is the absolute error, as in torch.

  Raises ValueError where the shapes differ or `beta` is a negative number.
  """
  _require_same_shape("smooth_l1", prediction, target)
  if isinstance(beta, (int, float)):
    if not beta >= 0:
      raise ValueError(f"smooth_l1 got beta={beta}: expected a number of 0 or more")
    if beta == 0:
      return absolute_error(prediction, target)
  return optax.huber_loss(prediction, target, delta=beta) / beta


def cross_entropy(
  logits: Float[Array, "*B K"],
  labels: Int[Array, "*B"],
  label_smoothing: Scalar = 0.0,
  where: Bool[Array, "*B"] | None = None,
  classes: Bool[Array, " K"] | None = None,
) -> Float[Array, "*B"]:
  """-sum_k q_k log softmax(logits)_k in nats, q = (1 - eps) onehot + eps / K: log(K) at chance.

  Smoothing spreads eps over all K classes, the right one too (Szegedy et al. 2016, sec. 7; torch and optax); the form
  that gives eps / (K - 1) to the others alone is this one at eps K / (K - 1).

  Args:
    labels: 0 .. K - 1; any other number gives NaN where it counts (indexing would take -1 for the last class).
    label_smoothing: eps, in [0, 1].
    where: examples or positions that count. The others are 0, whatever their logits and labels are, NaN included, and
      so are their gradients. A mean divides by their number, not by the size.
    classes: those that can be at all, None for all of them. The others, a padding token for one, get no probability
      and no share of the smoothing: K is the number of these.

  Computed in float32 at least. Raises ValueError where shapes do not fit or `label_smoothing` is a number outside
  [0, 1].
  """
  for name, found, expected in (
    ("labels", labels, logits.shape[:-1]),
    ("where", where, logits.shape[:-1]),
    ("classes", classes, logits.shape[-1:]),
  ):
    if found is not None and found.shape != expected:
      raise ValueError(f"cross_entropy got {name} of shape {found.shape}, expected {expected}")
  if isinstance(label_smoothing, (int, float)) and not 0 <= label_smoothing <= 1:
    raise ValueError(f"label_smoothing={label_smoothing} is out of range: expected a number in [0, 1]")
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  right = (labels >= 0) & (labels < logits.shape[-1])
  if where is not None:
    # Ahead of the logarithm: a NaN behind it would come back as a gradient of 0 times NaN.
    logits = jnp.where(where[..., None], logits, 0)
  possible = None if classes is None else jnp.broadcast_to(classes, logits.shape)
  normalizer = jax.nn.logsumexp(logits, axis=-1, where=possible)
  chosen = jnp.take_along_axis(logits, jnp.where(right, labels, 0)[..., None], axis=-1)[..., 0]
  average = jnp.mean(logits, axis=-1, where=possible)
  # Without smoothing a class whose logit is -inf takes no share: 0 times -inf would be NaN.
  share = jnp.where(jnp.asarray(label_smoothing) > 0, label_smoothing * average, 0)
  loss = normalizer - (1 - label_smoothing) * chosen - share
  if classes is not None:
    right &= classes[jnp.where(right, labels, 0)]
  loss = jnp.where(right, loss, jnp.nan)
  return loss if where is None else jnp.where(where, loss, 0)


def _require_same_shape(name: str, prediction: Array, target: Array) -> None:
  if prediction.shape != target.shape:
    raise ValueError(f"{name} got shapes {prediction.shape} and {target.shape}: expected one shape")
