"""What the masked auto-encoder sees, guesses and is judged by."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import example_keys, root_key, stream_key
from mlnotes.generative import masked_autoencoder as mae

SHAPE = (8, 12, 2)
IMAGES = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32)
MODEL = mae.MaskedAutoencoder(SHAPE, patch=4, depth=1, heads=2, width=8, decoder_heads=2, decoder_width=4)


def draw(step=0, index=(0, 1, 2), share=0.5):
  keys = example_keys(stream_key(root_key(0), "mask", step), jnp.asarray(index))
  return mae.draw_masking(keys, MODEL.num_patches, share)


@pytest.fixture(scope="module")
def variables():
  return jax.jit(MODEL.init)(root_key(1), jnp.asarray(IMAGES), draw())


@pytest.fixture(scope="module")
def guess():
  return jax.jit(MODEL.apply)


def test_patches_are_squares_row_by_row():
  patches = mae.patchify(jnp.asarray(IMAGES), 4)
  assert patches.shape == (3, 6, 32)
  np.testing.assert_array_equal(patches[1, 4], IMAGES[1, 4:8, 4:8].reshape(-1))
  np.testing.assert_array_equal(mae.unpatchify(patches, SHAPE), IMAGES)
  with pytest.raises(InputError, match="found images of 8 x 12, expected multiples of patch=3"):
    mae.patchify(jnp.asarray(IMAGES), 3)
  with pytest.raises(InputError, match=r"found 5 patches of 32, expected \(8, 12, 2\)"):
    mae.unpatchify(patches[:, :5], SHAPE)


def test_masks_differ_by_image_and_step_and_hide_the_share():
  first, later = draw(0), draw(1)
  for masking in (first, later):
    both = np.concatenate(masking, axis=1)
    np.testing.assert_array_equal(np.sort(both, 1), np.tile(np.arange(6), (3, 1)))
  assert not np.array_equal(np.sort(first.hidden[0]), np.sort(first.hidden[1]))
  assert not np.array_equal(np.sort(first.hidden), np.sort(later.hidden))
  # An image's mask goes by its own number and the step alone.
  np.testing.assert_array_equal(draw(0, (2, 0)).hidden, np.asarray(first.hidden)[[2, 0]])
  assert draw(share=0.75).visible.shape == (3, 1)
  # Every patch is hidden as often as any other.
  many = draw(index=range(3000), share=2 / 3)
  np.testing.assert_allclose(np.bincount(np.ravel(many.hidden)) / 3000, np.full(6, 2 / 3), atol=0.04)
  with pytest.raises(InputError, match=r"share of 0\.9 masked of 6 patches leaves 0: expected 1 to 5"):
    draw(share=0.9)


def test_nothing_of_a_hidden_patch_reaches_the_guess(variables, guess):
  masking = draw()
  patches = np.array(mae.patchify(jnp.asarray(IMAGES), 4))
  before = guess(variables, jnp.asarray(IMAGES), masking)
  for kind, same in (("hidden", True), ("visible", False)):
    changed = patches.copy()
    rows = np.asarray(getattr(masking, kind))
    np.put_along_axis(changed, rows[..., None], 9.0, axis=1)
    after = guess(variables, mae.unpatchify(jnp.asarray(changed), SHAPE), masking)
    assert np.array_equal(before, after) == same


def test_the_order_of_a_masking_changes_nothing(variables, guess):
  """Each token has its own place, whatever the order in which they were drawn."""
  masking = draw()
  turned = mae.Masking(masking.visible[:, ::-1], masking.hidden[:, ::-1])
  images = jnp.asarray(IMAGES)
  np.testing.assert_allclose(guess(variables, images, turned), guess(variables, images, masking), atol=1e-5)


def test_hidden_patches_alone_are_judged():
  rng = np.random.default_rng(1)
  predicted, target = rng.normal(size=(2, 3, 6, 32)).astype(np.float32)
  masking = draw()
  slope = jax.grad(lambda target: jnp.sum(mae.masked_patch_loss(jnp.asarray(predicted), target, masking)))
  moved = np.any(np.asarray(slope(jnp.asarray(target))), axis=2)
  np.testing.assert_array_equal(moved, (np.asarray(masking.hidden)[..., None] == np.arange(6)).any(1))
  loss = mae.masked_patch_loss(jnp.asarray(predicted), jnp.asarray(target), masking)
  exact = [((predicted - target)[i, np.asarray(masking.hidden)[i]] ** 2).mean() for i in range(3)]
  np.testing.assert_allclose(loss, exact, rtol=1e-5)


def test_positions_tell_rows_from_columns():
  from mlnotes.attention.position import sinusoidal_positions

  found = np.asarray(mae.make_grid_positions(2, 3, 8)).reshape(2, 3, 8)
  line = np.asarray(sinusoidal_positions(jnp.arange(3), 4, interleaved=False))
  np.testing.assert_array_equal(found[1, 2], np.concatenate([line[1], line[2]]))
  np.testing.assert_allclose(line[2], [np.sin(2), np.sin(0.02), np.cos(2), np.cos(0.02)], rtol=1e-5)
  with pytest.raises(InputError, match="found 6 features, expected a multiple of 4"):
    mae.make_grid_positions(2, 2, 6)


def test_features_see_the_whole_image(variables):
  features = jax.jit(lambda images: MODEL.apply(variables, images, method="features"))
  found = features(jnp.asarray(IMAGES))
  assert found.shape == (3, 8)
  for place in np.ndindex(2, 3):
    changed = IMAGES.copy()
    changed[0, 4 * place[0], 4 * place[1]] += 1
    assert np.abs(features(jnp.asarray(changed)) - found)[0].max() > 1e-4


@pytest.mark.parity
def test_targets_are_those_of_transformers():
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  config = transformers.ViTMAEConfig(
    image_size=8, patch_size=4, num_channels=2, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
    intermediate_size=16, decoder_hidden_size=8, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
    decoder_intermediate_size=16, mask_ratio=0.5, norm_pix_loss=True,
  )  # fmt: skip
  theirs = transformers.ViTMAEForPreTraining(config)
  images = IMAGES[:, :, :8]
  predicted = np.random.default_rng(2).normal(size=(3, 4, 32)).astype(np.float32)
  masking = mae.draw_masking(example_keys(root_key(0), jnp.arange(3)), 4, 0.5)
  mask = np.zeros((3, 4), np.float32)
  np.put_along_axis(mask, np.asarray(masking.hidden), 1, axis=1)

  class Fixed(torch.nn.Module):
    """Gives what it was told in the place of an encoder or a decoder, so that the loss alone is compared."""

    def __init__(self, **given):
      super().__init__()
      self.given = types.SimpleNamespace(hidden_states=None, attentions=None, **given)

    def forward(self, *_, **__):
      return self.given

  theirs.vit = Fixed(last_hidden_state=None, ids_restore=None, mask=torch.tensor(mask))
  theirs.decoder = Fixed(logits=torch.tensor(predicted))
  loss = theirs(torch.tensor(images.transpose(0, 3, 1, 2))).loss
  ours = mae.masked_patch_loss(
    jnp.asarray(predicted), mae.normalize_patches(mae.patchify(jnp.asarray(images), 4)), masking
  )
  np.testing.assert_allclose(jnp.mean(ours), loss.item(), rtol=1e-4)
  from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

  table = build_2d_sinusoidal_position_embedding(2, 3, 8)
  np.testing.assert_allclose(mae.make_grid_positions(2, 3, 8), table.numpy(), atol=1e-5)
