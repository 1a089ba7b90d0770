"""Scaling laws: a loss by parameters and tokens, fitted to runs; on the host, in double precision.

law, objective = fit_scaling_law(parameters, tokens, losses)
laws = bootstrap_scaling_law(parameters, tokens, losses, draws=200)
np.percentile([x.alpha for x in laws], [10, 90])
size, data = compute_optimal(law, flops)
"""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

# Huber's: residuals of log L beyond it count by their size alone. Hoffmann et al. 2022, sec. 3.3.
DELTA = 1e-3
# Where fits begin; the best one is kept. Of log A and log B, log E, alpha and beta, as there, in coarser steps.
_STARTS = ((2.0, 10.0), (2.0, 10.0), (0.5,), (0.2, 0.6), (0.2, 0.6))

# The objective is a sum of some DELTA^2: at L-BFGS's own tolerances, which are for numbers near 1, it ends far away.
# From the best few of these ends it goes on.
_EXACT = {"gtol": 1e-12, "ftol": 1e-15, "maxiter": 1000, "maxfun": 2000}
_REFINED = 3

Numbers = Float[np.ndarray, " R"]


class ScalingLaw(NamedTuple):
  """L(N, D) = E + A / N^alpha + B / D^beta, in nats of a token. Hoffmann et al. 2022, eq. 2.

  N is the number of parameters, D that of tokens that were trained on.
  """

  e: float
  a: float
  b: float
  alpha: float
  beta: float

  def __call__(self, parameters: Numbers, tokens: Numbers) -> Numbers:
    return self.e + self.a / np.power(parameters, self.alpha) + self.b / np.power(tokens, self.beta)


def fit_scaling_law(
  parameters: Numbers, tokens: Numbers, losses: Numbers, starts: list[Float[np.ndarray, "5"]] | None = None
) -> tuple[ScalingLaw, float]:
  """(the law whose log is nearest to log L by Huber's loss, that loss summed over runs). Hoffmann et al. 2022, 3.3.

  By L-BFGS from each of `starts`, (log A, log B, log E, alpha, beta); None: a grid. Runs should differ in both sizes:
  along one curve of them the two terms are not told apart. Each run's schedule must end with the run.
  Raises ValueError for fewer than 5 runs, or numbers that are not above 0.
  """
  from scipy.optimize import minimize
  from threadpoolctl import threadpool_limits

  n, d, loss = (np.asarray(x, np.float64) for x in (parameters, tokens, losses))
  if len(loss) < 5:
    raise ValueError(f"found {len(loss)} losses, expected 5 or more: the law has five constants")
  if min(n.min(), d.min(), loss.min()) <= 0:
    raise ValueError("found a size, a number of tokens or a loss of 0 or less: expected all above 0")
  arguments = np.log(n), np.log(d), np.log(loss)
  starts = [np.array(x) for x in itertools.product(*_STARTS)] if starts is None else starts
  descend = lambda x, **options: minimize(_objective, x, arguments, jac=True, method="L-BFGS-B", options=options)
  with threadpool_limits(1):  # for five numbers threads only wait for each other
    near = sorted((descend(x) for x in starts), key=lambda x: x.fun)[:_REFINED]
    best = min((descend(x.x, **_EXACT) for x in near), key=lambda x: x.fun)
  a, b, e, alpha, beta = best.x
  return ScalingLaw(*map(float, (np.exp(e), np.exp(a), np.exp(b), alpha, beta))), float(best.fun)


def _objective(x: np.ndarray, log_n: Numbers, log_d: Numbers, log_loss: Numbers) -> tuple[float, np.ndarray]:
  """Huber's loss of log(A / N^alpha + B / D^beta + E) - log L, and its gradient."""
  a, b, e, alpha, beta = x
  terms = np.stack([a - alpha * log_n, b - beta * log_d, np.full_like(log_n, e)])
  top = terms.max(0)
  powers = np.exp(terms - top)
  total = powers.sum(0)
  error = top + np.log(total) - log_loss
  small = np.abs(error) <= DELTA
  value = np.where(small, 0.5 * error**2, DELTA * (np.abs(error) - 0.5 * DELTA)).sum()
  slope = np.clip(error, -DELTA, DELTA) * powers / total
  return float(value), np.array(
    [slope[0].sum(), slope[1].sum(), slope[2].sum(), -(slope[0] * log_n).sum(), -(slope[1] * log_d).sum()]
  )


def bootstrap_scaling_law(
  parameters: Numbers, tokens: Numbers, losses: Numbers, draws: int = 100, seed: int = 0
) -> list[ScalingLaw]:
  """Laws of as many runs drawn with replacement, each begun at the law of all. Efron & Tibshirani 1993, ch. 6."""
  law, _ = fit_scaling_law(parameters, tokens, losses)
  least = max(law.e, 0.1 * float(np.min(losses)))  # where E has come to 0 there is no slope that leads away
  start = np.array([np.log(law.a), np.log(law.b), np.log(least), law.alpha, law.beta])
  rng, found = np.random.default_rng(seed), []
  for _ in range(draws):
    some = rng.integers(0, len(losses), len(losses))
    found.append(fit_scaling_law(*(np.asarray(x)[some] for x in (parameters, tokens, losses)), [start])[0])
  return found


def compute_optimal(law: ScalingLaw, flops: float) -> tuple[float, float]:
  """(N, D) of the least loss at 6 N D = `flops`. Hoffmann et al. 2022, eq. 4.

  N = G (C / 6)^(beta / (alpha + beta)),   D = C / 6 / N,   G = (alpha A / (beta B))^(1 / (alpha + beta))
  """
  total = law.alpha + law.beta
  g = (law.alpha * law.a / (law.beta * law.b)) ** (1 / total)
  size = g * (flops / 6) ** (law.beta / total)
  return size, flops / 6 / size
