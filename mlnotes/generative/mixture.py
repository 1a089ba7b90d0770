"""Mixtures of normals and of Bernoulli vectors, fitted by EM (notes: 高斯混合模型, EM 算法). Pure, in log space.

  log p(x) = logsumexp_k (log pi_k + log p(x | k))                                       Bishop 2006, section 9.2

`fit_gaussian_mixture` and `fit_bernoulli_mixture` are one compiled program: `jax.vmap` over keys gives restarts, or
seeds, side by side. Covariances have a floor, without which the likelihood has no upper bound; it is part of the model
(a mixture none of whose covariances has an eigenvalue below it), so the log-likelihood still never falls.
"""

import math
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Key

from mlnotes.engine.errors import InputError

CovarianceName: TypeAlias = Literal["full", "tied", "diagonal", "spherical"]
COVARIANCES = ("full", "tied", "diagonal", "spherical")
# Lloyd's steps between the first centres and the first mixture.
_LLOYD_STEPS = 10


class GaussianMixture(NamedTuple):
  """Weights pi as logarithms, means, and factors L of the covariances L L^T.

  factors: full (K, D, D) and tied (1, D, D), lower triangular; diagonal (K, 1, D) and spherical (K, 1, 1), deviations.
  """

  log_weights: Float[Array, " K"]
  means: Float[Array, "K D"]
  factors: Float[Array, "K_or_1 D_or_1 D_or_1"]

  def covariances(self) -> Float[Array, "K D D"]:
    """As matrices, one for each component."""
    dims, (rows, columns) = self.means.shape[1], self.factors.shape[1:]
    if rows == columns == dims:
      matrices = self.factors @ self.factors.swapaxes(1, 2)
    else:
      matrices = jnp.square(self.factors) * jnp.eye(dims)[None]
    return jnp.broadcast_to(matrices, (len(self.means), dims, dims))


class BernoulliMixture(NamedTuple):
  """Weights as logarithms, and the log-odds of each pixel in each component."""

  log_weights: Float[Array, " K"]
  logits: Float[Array, "K D"]


class Fit(NamedTuple):
  """A fitted mixture; objective: the mean over examples of what EM raises, before each step, in nats."""

  mixture: GaussianMixture | BernoulliMixture
  objective: Float[Array, " T"]


# -- densities ---------------------------------------------------------------------------------------------------------


def gaussian_log_joint(mixture: GaussianMixture, x: Float[Array, "N D"]) -> Float[Array, "N K"]:
  """log pi_k + log N(x | mean_k, covariance_k), by a triangular solve, one component at a time."""
  dims, full = x.shape[1], mixture.factors.shape[1] == x.shape[1] > 1
  tied = len(mixture.factors) == 1 < len(mixture.means)

  def one(mean, factor):
    centred = x - mean[None]
    if full:
      rows = solve_triangular(factor, centred.T, lower=True)
      squares, log_det = jnp.sum(jnp.square(rows), 0), jnp.sum(jnp.log(jnp.diagonal(factor)))
    else:
      squares = jnp.sum(jnp.square(centred / factor), 1)
      log_det = jnp.sum(jnp.broadcast_to(jnp.log(factor[0]), (dims,)))
    return -0.5 * squares - log_det - 0.5 * dims * math.log(2 * math.pi)

  if tied:
    found = jax.lax.map(lambda mean: one(mean, mixture.factors[0]), mixture.means)
  else:
    found = jax.lax.map(lambda pair: one(*pair), (mixture.means, mixture.factors))
  return found.T + mixture.log_weights[None]


def bernoulli_log_joint(mixture: BernoulliMixture, x: Float[Array, "N D"]) -> Float[Array, "N K"]:
  """log pi_k + sum_d (x_d log p_kd + (1 - x_d) log(1 - p_kd)), for x of zeros and ones."""
  log_off = -jnp.sum(jax.nn.softplus(mixture.logits), 1)
  return x @ mixture.logits.T + (log_off + mixture.log_weights)[None]


def mixture_log_density(mixture: GaussianMixture | BernoulliMixture, x: Float[Array, "N D"]) -> Float[Array, " N"]:
  """Nats of each example."""
  joint = gaussian_log_joint if isinstance(mixture, GaussianMixture) else bernoulli_log_joint
  return jax.nn.logsumexp(joint(mixture, x), axis=1)


def responsibilities(mixture: GaussianMixture | BernoulliMixture, x: Float[Array, "N D"]) -> Float[Array, "N K"]:
  """p(k | x), the E-step; rows sum to 1."""
  joint = gaussian_log_joint if isinstance(mixture, GaussianMixture) else bernoulli_log_joint
  return jax.nn.softmax(joint(mixture, x), axis=1)


# -- the M-steps -------------------------------------------------------------------------------------------------------


def _counts_and_weights(resp):
  counts = jnp.sum(resp, 0)
  # A component that nothing is close to keeps a weight above 0, so that its logarithm is a number.
  counts = counts + 10 * jnp.finfo(resp.dtype).eps
  return counts, jnp.log(counts) - jnp.log(jnp.sum(counts))


def _floored_factor(covariance: Float[Array, "D D"], floor: float | Float[Array, ""]) -> Float[Array, "D D"]:
  """Cholesky factor of the matrix with eigenvalues below the floor raised to it."""
  values, vectors = jnp.linalg.eigh(covariance)
  raised = (vectors * jnp.maximum(values, floor)[None]) @ vectors.T
  # An eigendecomposition costs digits: where nothing is below the floor the matrix is taken as it is.
  return jnp.linalg.cholesky(jnp.where(values[0] < floor, raised, covariance))


def maximize_gaussian(
  x: Float[Array, "N D"],
  resp: Float[Array, "N K"],
  covariance: CovarianceName,
  floor: float | Float[Array, ""],
) -> GaussianMixture:
  """The M-step: the mixture of the largest expected log-likelihood whose covariances have no eigenvalue below `floor`.

  Raising the eigenvalues of the weighted covariance to the floor is that maximum exactly, which adding the floor to
  the diagonal, as scikit-learn's `reg_covar` does, is not.
  """
  counts, log_weights = _counts_and_weights(resp)
  means = (resp.T @ x) / counts[:, None]
  if covariance == "full":

    def one(pair):
      mean, weight = pair
      centred = x - mean[None]
      return _floored_factor((weight[:, None] * centred).T @ centred, floor)

    factors = jax.lax.map(one, (means, (resp / counts[None]).T))
  elif covariance == "tied":
    centre = jnp.mean(x, 0)
    shifted, apart = x - centre[None], means - centre[None]
    within = (shifted.T @ shifted - (counts[:, None] * apart).T @ apart) / len(x)
    factors = _floored_factor(within, floor)[None]
  else:
    centred = lambda pair: jnp.sum(pair[1][:, None] * jnp.square(x - pair[0][None]), 0)
    variances = jax.lax.map(centred, (means, (resp / counts[None]).T))
    if covariance == "spherical":
      variances = jnp.mean(variances, 1, keepdims=True)
    factors = jnp.sqrt(jnp.maximum(variances, floor))[:, None]
  return GaussianMixture(log_weights, means, factors)


def maximize_bernoulli(
  x: Float[Array, "N D"], resp: Float[Array, "N K"], pseudocount: float | Float[Array, ""]
) -> BernoulliMixture:
  """The M-step under a Beta(1 + pseudocount, 1 + pseudocount) prior of each probability."""
  counts, log_weights = _counts_and_weights(resp)
  ones = resp.T @ x + pseudocount
  probabilities = ones / (counts[:, None] + 2 * pseudocount)
  return BernoulliMixture(log_weights, jnp.log(probabilities) - jnp.log1p(-probabilities))


# -- where EM starts ---------------------------------------------------------------------------------------------------


def _squares(x, centers):
  inner = x @ centers.T
  found = jnp.sum(jnp.square(x), 1)[:, None] - 2 * inner + jnp.sum(jnp.square(centers), 1)[None]
  return jnp.maximum(found, 0)


def choose_centers(key: Key[Array, ""], x: Float[Array, "N D"], count: int) -> Float[Array, "K D"]:
  """k-means++: each next centre an example drawn in proportion to its squared distance from those before.

  Arthur & Vassilvitskii 2007, section 2.2.
  """
  first, rest = jax.random.split(key)
  centers = jnp.zeros((count, x.shape[1]), x.dtype).at[0].set(x[jax.random.randint(first, (), 0, len(x))])

  def choose(i, carry):
    centers, nearest = carry
    nearest = jnp.minimum(nearest, jnp.sum(jnp.square(x - centers[i - 1][None]), 1))
    # Where all examples are centres already, any will do.
    logits = jnp.where(jnp.max(nearest) > 0, jnp.log(nearest), 0.0)
    chosen = jax.random.categorical(jax.random.fold_in(rest, i), logits)
    return centers.at[i].set(x[chosen]), nearest

  return jax.lax.fori_loop(1, count, choose, (centers, jnp.full(len(x), jnp.inf, x.dtype)))[0]


def cluster(key: Key[Array, ""], x: Float[Array, "N D"], count: int) -> Float[Array, "N K"]:
  """One-hot clusters of k-means: k-means++ and a few of Lloyd's steps. A centre that loses all examples stays."""
  centers = choose_centers(key, x, count)
  assign = lambda centers: jax.nn.one_hot(jnp.argmin(_squares(x, centers), 1), count, dtype=x.dtype)

  def step(_, centers):
    members = assign(centers)
    sizes = jnp.sum(members, 0)[:, None]
    return jnp.where(sizes > 0, (members.T @ x) / jnp.maximum(sizes, 1), centers)

  return assign(jax.lax.fori_loop(0, _LLOYD_STEPS, step, centers))


# -- EM ----------------------------------------------------------------------------------------------------------------


def _check(x, count, steps):
  if x.shape[0] < count or count < 1:
    raise InputError(f"count is {count}, expected 1 to {x.shape[0]}, the number of examples.")
  if steps < 1:
    raise InputError(f"steps is {steps}, expected 1 or more.")


def improve_gaussian(
  mixture: GaussianMixture, x: Float[Array, "N D"], covariance: CovarianceName, floor: float | Float[Array, ""]
) -> tuple[GaussianMixture, Float[Array, ""]]:
  """(the mixture after one step of EM, the mean log-likelihood before it)."""
  joint = gaussian_log_joint(mixture, x)
  before = jnp.mean(jax.nn.logsumexp(joint, axis=1))
  return maximize_gaussian(x, jax.nn.softmax(joint, axis=1), covariance, floor), before


@partial(jax.jit, static_argnames=("count", "covariance", "steps"))
def fit_gaussian_mixture(
  key: Key[Array, ""],
  x: Float[Array, "N D"],
  count: int,
  covariance: CovarianceName = "full",
  floor: float | Float[Array, ""] = 1e-6,
  steps: int = 100,
) -> Fit:
  """`steps` steps of EM from a k-means start. objective: mean log-likelihood, which never falls.

  floor: least variance in any direction, in squared units of x. Raises InputError for more components than examples or
  an unknown covariance.
  """
  _check(x, count, steps)
  if covariance not in COVARIANCES:
    raise InputError(f"covariance is {covariance!r}, expected one of {', '.join(COVARIANCES)}.")
  first = maximize_gaussian(x, cluster(key, x, count), covariance, floor)
  improve = lambda mixture, _: improve_gaussian(mixture, x, covariance, floor)
  return Fit(*jax.lax.scan(improve, first, length=steps))


@partial(jax.jit, static_argnames=("count", "steps"))
def fit_bernoulli_mixture(
  key: Key[Array, ""],
  x: Float[Array, "N D"],
  count: int,
  pseudocount: float | Float[Array, ""] = 0.1,
  steps: int = 50,
) -> Fit:
  """`steps` steps of EM from a k-means start, of vectors of zeros and ones.

  objective: mean log-likelihood plus the log of the prior's density (up to its constant) divided by the number of
  examples; it never falls. Raises InputError for more components than examples.
  """
  _check(x, count, steps)
  first = maximize_bernoulli(x, cluster(key, x, count), pseudocount)

  def improve(mixture, _):
    joint = bernoulli_log_joint(mixture, x)
    prior = -pseudocount * jnp.sum(jax.nn.softplus(mixture.logits) + jax.nn.softplus(-mixture.logits))
    objective = jnp.mean(jax.nn.logsumexp(joint, axis=1)) + prior / len(x)
    return maximize_bernoulli(x, jax.nn.softmax(joint, axis=1), pseudocount), objective

  return Fit(*jax.lax.scan(improve, first, length=steps))


def best_restart(fits: Fit) -> Fit:
  """Of fits stacked along a first axis (by `jax.vmap` over keys) the one that ends highest; NaN loses."""
  last = fits.objective[:, -1]
  best = jnp.argmax(jnp.where(jnp.isnan(last), -jnp.inf, last))
  return jax.tree.map(lambda leaf: leaf[best], fits)


# -- what a mixture is good for ----------------------------------------------------------------------------------------


def count_parameters(count: int, dims: int, covariance: CovarianceName) -> int:
  """Free parameters of a mixture of `count` normals in `dims` dimensions."""
  free = {
    "full": count * dims * (dims + 1) // 2,
    "tied": dims * (dims + 1) // 2,
    "diagonal": count * dims,
    "spherical": count,
  }[covariance]
  return free + count * dims + count - 1


def compute_bic(total_log_likelihood: float, parameters: int, examples: int) -> float:
  """parameters log(examples) - 2 log-likelihood, of all examples together: smaller is better. Schwarz 1978."""
  return parameters * math.log(examples) - 2 * float(total_log_likelihood)


def sample_gaussian_mixture(key: Key[Array, ""], mixture: GaussianMixture, count: int) -> Float[Array, "N D"]:
  which_key, noise_key = jax.random.split(key)
  which = jax.random.categorical(which_key, mixture.log_weights, shape=(count,))
  noise = jax.random.normal(noise_key, (count, mixture.means.shape[1]), mixture.means.dtype)
  factors = jnp.broadcast_to(mixture.factors, (len(mixture.means), *mixture.factors.shape[1:]))[which]
  if mixture.factors.shape[1] == mixture.means.shape[1] > 1:
    return mixture.means[which] + jnp.einsum("nij,nj->ni", factors, noise)
  return mixture.means[which] + factors[:, 0] * noise


def sample_bernoulli_mixture(key: Key[Array, ""], mixture: BernoulliMixture, count: int) -> Float[Array, "N D"]:
  which_key, pixel_key = jax.random.split(key)
  which = jax.random.categorical(which_key, mixture.log_weights, shape=(count,))
  return jax.random.bernoulli(pixel_key, jax.nn.sigmoid(mixture.logits[which])).astype(mixture.logits.dtype)
