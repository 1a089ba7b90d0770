"""Losses, regularisers and players: against scikit-learn, torch and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import hinge_loss
from sklearn.metrics.pairwise import cosine_similarity

from mlnotes import generative
from mlnotes.generative import LOSSES
from mlnotes.generative.gan_networks import halved

REAL, FAKE = jnp.array([-3.0, 0.2, 40.0]), jnp.array([1.5, -0.7, -40.0])


def test_the_discriminator_pays_2_log_2_where_it_knows_nothing_and_twice_1_of_a_hinge():
  nothing = jnp.zeros(1)
  for name in ("minimax", "non_saturating"):
    assert float(LOSSES[name].discriminator(nothing, nothing)[0]) == pytest.approx(2 * np.log(2))
  assert float(LOSSES["hinge"].discriminator(nothing, nothing)[0]) == 2


def test_minimax_saturates_where_the_other_does_not():
  """The two gradients are -D and -(1 - D): sigmoids of the score and of its negative."""
  sure = jnp.array([-30.0, 0.0, 30.0])
  slope = lambda name: jax.grad(lambda s: jnp.sum(LOSSES[name].generator(s)))(sure)
  np.testing.assert_allclose(slope("minimax"), [-1e-13, -0.5, -1], atol=1e-6)
  np.testing.assert_allclose(slope("non_saturating"), [-1, -0.5, -1e-13], atol=1e-6)


def test_the_hinge_is_that_of_scikit_learn():
  found = LOSSES["hinge"].discriminator(REAL, FAKE)
  label, score = np.repeat([1, -1], len(REAL)), np.concatenate([REAL, FAKE])
  assert float(jnp.mean(found)) == pytest.approx(2 * hinge_loss(label, score), rel=1e-6)
  np.testing.assert_allclose(LOSSES["hinge"].generator(FAKE), -FAKE)


def test_a_critic_of_slope_1_measures_the_distance_of_shifted_samples():
  x = jax.random.normal(jax.random.key(0), (64,))
  loss = jnp.mean(LOSSES["wasserstein"].discriminator(x + 3, x))
  assert -float(loss) == pytest.approx(float(generative.wasserstein_1d(x + 3, x)), rel=1e-5) == pytest.approx(3)


@pytest.mark.parity
def test_losses_are_those_of_torch():
  torch = pytest.importorskip("torch")
  from torch.nn import functional as F

  real, fake = (torch.tensor(np.asarray(scores)) for scores in (REAL, FAKE))
  bce = lambda scores, target: F.binary_cross_entropy_with_logits(
    scores, torch.full_like(scores, target), reduction="none"
  )
  mse = lambda scores, target: 0.5 * F.mse_loss(scores, torch.full_like(scores, target), reduction="none")
  energy = lambda scores, sign: F.hinge_embedding_loss(
    scores, torch.full_like(scores, sign), margin=2.0, reduction="none"
  )
  chi = generative.make_least_squares(-1.0, 1.0, 0.0)
  expected = {
    "minimax": (LOSSES["minimax"], bce(real, 1) + bce(fake, 0), -bce(fake, 0)),
    "non_saturating": (LOSSES["non_saturating"], bce(real, 1) + bce(fake, 0), bce(fake, 1)),
    "least_squares": (LOSSES["least_squares"], mse(real, 1) + mse(fake, 0), mse(fake, 1)),
    "chi squared": (chi, mse(real, 1) + mse(fake, -1), mse(fake, 0)),
    "energy": (generative.make_energy_based(2.0), energy(real, 1) + energy(fake, -1), energy(fake, 1)),
  }
  for name, (loss, discriminator, generator) in expected.items():
    np.testing.assert_allclose(loss.discriminator(REAL, FAKE), discriminator, rtol=1e-5, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(loss.generator(FAKE), generator, rtol=1e-5, atol=1e-12, err_msg=name)


def test_pulling_away_is_the_mean_squared_cosine_of_pairs():
  codes = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
  cosines = cosine_similarity(codes) ** 2
  expected = cosines[~np.eye(5, dtype=bool)].mean()
  assert float(generative.pulling_away(jnp.asarray(codes))) == pytest.approx(expected, rel=1e-5)
  assert float(generative.pulling_away(jnp.eye(3))) == 0
  slope = jax.grad(generative.pulling_away)(jnp.zeros((3, 2)))
  assert bool(jnp.all(jnp.isfinite(slope)))
  with pytest.raises(ValueError, match="found 1 codes, expected two or more"):
    generative.pulling_away(jnp.ones((1, 2)))


# Regularisers.


def test_the_penalty_of_a_linear_critic_is_known_for_every_image():
  keys = jax.random.split(jax.random.key(0), 4)
  w = jax.random.normal(keys[0], (4, 3, 2))
  real, fake = jax.random.normal(keys[1], (5, 4, 3, 2)), jax.random.normal(keys[2], (5, 4, 3, 2))
  share = jax.random.uniform(keys[3], (5,))
  expected = (float(jnp.linalg.norm(w.reshape(-1))) - 1) ** 2
  found = generative.gradient_penalty(lambda x: jnp.sum(w * x), real, fake, share)
  np.testing.assert_allclose(found, np.full(5, expected), rtol=1e-5)
  flat = generative.gradient_penalty(
    lambda x: jnp.dot(w.reshape(-1), x), real.reshape(5, -1), fake.reshape(5, -1), share
  )
  np.testing.assert_allclose(found, flat, rtol=1e-5)
  weak = generative.gradient_penalty(lambda x: 1e-3 * jnp.sum(w * x), real, fake, share, one_sided=True)
  np.testing.assert_array_equal(weak, np.zeros(5))


def test_the_penalty_looks_at_one_point_between_each_pair():
  """Of |x|^2 / 2 the gradient is x itself, so that its norm says where it was taken."""
  rng = np.random.default_rng(0)
  real, fake, share = rng.normal(size=(4, 3, 3, 1)), rng.normal(size=(4, 3, 3, 1)), np.array([0.0, 0.3, 0.9, 1.0])
  arrays = [jnp.asarray(a, jnp.float32) for a in (real, fake, share)]
  found = generative.gradient_penalty(lambda x: 0.5 * jnp.sum(x**2), *arrays)
  between = [s * a + (1 - s) * b for a, b, s in zip(real, fake, share)]
  np.testing.assert_allclose(found, [(np.linalg.norm(x) - 1) ** 2 for x in between], rtol=1e-4)
  np.testing.assert_allclose(
    generative.r1_penalty(lambda x: 0.5 * jnp.sum(x**2), arrays[0]),
    [0.5 * np.linalg.norm(x) ** 2 for x in real],
    rtol=1e-5,
  )


def test_a_critic_without_slope_has_a_penalty_with_a_finite_gradient():
  x = jnp.ones((2, 3))
  penalty = lambda w: jnp.sum(generative.gradient_penalty(lambda x: w * jnp.sum(x), x, x, jnp.ones(2)))
  value, slope = jax.value_and_grad(penalty)(0.0)
  assert float(value) == pytest.approx(2, rel=1e-4) and np.isfinite(float(slope))


def test_the_critic_is_given_each_examples_own_label():
  w = jnp.array([[3.0, 4.0], [0.0, 1.0]])
  x, label = jnp.ones((2, 2)), jnp.array([1, 0])
  found = generative.gradient_penalty(lambda x, label: jnp.dot(w[label], x), x, x, jnp.ones(2), label)
  np.testing.assert_allclose(found, [0, 16], atol=1e-5)


def make_kernels(key):
  keys = jax.random.split(key, 3)
  return {
    "conv": {"kernel": 3 * jax.random.normal(keys[0], (3, 3, 4, 5)), "bias": jnp.full(5, 7.0)},
    "dense": {"kernel": 0.2 * jax.random.normal(keys[1], (6, 3))},
    "classes": {"embedding": jax.random.normal(keys[2], (10, 6))},
  }


def leading(kernel):
  return np.linalg.svd(np.asarray(kernel).reshape(-1, kernel.shape[-1]), compute_uv=False)[0]


def test_normalised_kernels_have_spectral_norm_1_and_the_rest_stays(key):
  params = make_kernels(key)
  vectors = generative.init_power_vectors(jax.random.key(1), params)
  assert set(vectors) == {"conv/kernel", "dense/kernel", "classes/embedding"}
  for _ in range(100):
    vectors = generative.update_power_vectors(params, vectors)
  normalised = generative.spectral_normalize(params, vectors)
  for path in (("conv", "kernel"), ("dense", "kernel"), ("classes", "embedding")):
    assert leading(normalised[path[0]][path[1]]) == pytest.approx(1, abs=1e-2)
  np.testing.assert_array_equal(normalised["conv"]["bias"], params["conv"]["bias"])
  norms = generative.spectral_norms(params, vectors)
  assert float(norms["conv/kernel"]) == pytest.approx(leading(params["conv"]["kernel"]), rel=1e-3)


def test_singular_values_stay_below_1_while_the_weights_move(key):
  params = make_kernels(key)
  vectors = generative.init_power_vectors(jax.random.key(1), params)
  target = jax.random.normal(jax.random.key(2), (3, 3, 4, 5))

  @jax.jit
  def train(params, vectors):
    def update(carry, _):
      params, vectors = carry
      vectors = generative.update_power_vectors(params, vectors)
      loss = lambda p: -jnp.sum(target * generative.spectral_normalize(p, vectors)["conv"]["kernel"])
      grads = jax.grad(loss)(params)
      return (jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), vectors), None

    return jax.lax.scan(update, (params, vectors), None, length=100)[0]

  params, vectors = train(params, vectors)
  assert leading(generative.spectral_normalize(params, vectors)["conv"]["kernel"]) <= 1 + 1e-2


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_spectral_norm_is_that_of_torch_in_values_vectors_and_gradients():
  torch = pytest.importorskip("torch")
  layer = torch.nn.utils.spectral_norm(torch.nn.Conv2d(4, 5, 3, bias=False))
  to_flax = lambda w: jnp.asarray(w.detach().numpy().transpose(2, 3, 1, 0))
  params = {"kernel": to_flax(layer.weight_orig)}
  vectors = {"kernel": generative.PowerVectors(jnp.asarray(layer.weight_u.numpy()), jnp.zeros(36))}
  target = torch.randn(5, 4, 3, 3)
  for _ in range(2):  # the vectors are far from converged
    layer(torch.zeros(1, 4, 3, 3))
    vectors = generative.update_power_vectors(params, vectors)
  torch.sum(target * layer.weight).backward()
  np.testing.assert_allclose(vectors["kernel"].u, layer.weight_u.numpy(), rtol=1e-4, atol=1e-6)
  found = generative.spectral_normalize(params, vectors)
  np.testing.assert_allclose(found["kernel"], to_flax(layer.weight), rtol=1e-4, atol=1e-6)
  loss = lambda params: jnp.sum(to_flax(target) * generative.spectral_normalize(params, vectors)["kernel"])
  np.testing.assert_allclose(jax.grad(loss)(params)["kernel"], to_flax(layer.weight_orig.grad), rtol=1e-3, atol=1e-6)


def test_clipped_weights_stay_within_the_bound():
  params = {"kernel": jnp.array([[-2.0, 0.5]]), "bias": jnp.array([0.005])}
  found = generative.clip_weights(params, 0.01)
  np.testing.assert_allclose(found["kernel"], [[-0.01, 0.01]])
  np.testing.assert_allclose(found["bias"], [0.005])


# Players.


@pytest.mark.parametrize(
  "shape, sizes", [((8, 8, 1), [8, 4, 2]), ((28, 28, 1), [28, 14, 7]), ((32, 32, 3), [32, 16, 8, 4])]
)
def test_convolutional_players_fit_the_image(shape, sizes, key):
  assert [height for height, _ in halved(*shape[:2])] == sizes
  generator, discriminator = generative.DcganGenerator(shape, 4), generative.DcganDiscriminator(4)
  image, variables = jax.eval_shape(lambda z: generator.init_with_output(key, z, train=True), jnp.zeros((2, 6)))
  assert image.shape == (2, *shape)
  norms = [name for name in variables["params"] if name.startswith("BatchNorm")]
  assert len(norms) == len(sizes) - 1  # all but the last layer's
  verdict, variables = jax.eval_shape(lambda x: discriminator.init_with_output(key, x, train=True), image)
  assert verdict.score.shape == (2,) and verdict.class_logits is None
  norms = [name for name in variables["params"] if name.startswith("BatchNorm")]
  assert len(norms) == len(sizes) - 2 and "bias" in variables["params"]["Conv_0"]  # all but the first


def test_dcgan_begins_with_small_weights_and_ends_within_the_range_of_images(key):
  generator = generative.DcganGenerator((8, 8, 1), 16)
  x, variables = generator.init_with_output(key, 50 * jnp.ones((3, 6)), train=True)
  assert float(jnp.std(variables["params"]["ConvTranspose_0"]["kernel"])) == pytest.approx(0.02, rel=0.1)
  assert float(jnp.mean(variables["params"]["BatchNorm_0"]["scale"])) == pytest.approx(1, abs=0.02)
  assert float(jnp.max(jnp.abs(x))) <= 1


@pytest.mark.parametrize("form", ["concat", "projection", "auxiliary"])
def test_a_label_reaches_the_discriminator(form, key):
  x, label = jax.random.normal(key, (2, 8, 8, 1)), jnp.array([0, 2])
  for network in (generative.DcganDiscriminator, generative.MlpDiscriminator):
    norm = "none"
    module = network(8, num_classes=3, conditional=form, norm=norm)
    verdict, variables = module.init_with_output(jax.random.key(1), x, label)
    other = module.apply(variables, x, label[::-1])
    if form == "auxiliary":
      assert verdict.class_logits.shape == (2, 3)
      np.testing.assert_array_equal(verdict.score, other.score)
    else:
      assert bool(jnp.all(verdict.score != other.score))
      with pytest.raises(ValueError, match="label is None, expected one class"):
        module.apply(variables, x, None)


def test_projection_adds_the_inner_product_with_the_vector_of_the_class(key):
  module = generative.MlpDiscriminator(4, num_classes=3, conditional="projection")
  x, label = jax.random.normal(key, (5, 2)), jnp.arange(5) % 3
  verdict, variables = module.init_with_output(jax.random.key(1), x, label)
  params = variables["params"]
  by_hand = verdict.features @ params["score"]["kernel"][:, 0] + params["score"]["bias"]
  by_hand += jnp.einsum("bd,bd->b", verdict.features, params["classes"]["embedding"][label])
  np.testing.assert_allclose(verdict.score, by_hand, rtol=1e-5)


def test_an_energy_is_the_distance_to_the_reconstruction(key):
  module = generative.AutoencoderDiscriminator(4)
  x = jax.random.normal(key, (3, 2, 2, 1))
  verdict, variables = module.init_with_output(jax.random.key(1), x)
  zeroed = jax.tree.map(jnp.zeros_like, variables)
  np.testing.assert_allclose(module.apply(zeroed, x).score, jnp.linalg.norm(x.reshape(3, -1), axis=1), rtol=1e-5)
  assert verdict.features.shape == (3, 4)


def test_an_unknown_norm_is_refused(key):
  with pytest.raises(ValueError, match="norm is 'instance', expected batch, layer or none"):
    generative.MlpDiscriminator(4, norm="instance").init(key, jnp.zeros((2, 2)))
