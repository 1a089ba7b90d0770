"""Augmentations: each piece of arithmetic against PIL, SciPy or colorsys, each random one by what must hold of it."""

import colorsys
import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage, stats

from mlnotes.data import augment

EIGHT_BITS = 1.01 / 255  # PIL truncates where we round or keep the fraction


def picture(*shape, seed=0):
  """Multiples of 1/255, as if read from a file."""
  return jnp.asarray(np.random.default_rng(seed).integers(0, 256, shape) / 255, jnp.float32)


def to_pil(image):
  return Image.fromarray(np.round(np.asarray(image) * 255).astype(np.uint8))


def from_pil(image):
  return np.asarray(image) / 255


def keys(n, seed=1):
  return jax.random.split(jax.random.key(seed), n)


def assert_close(found, expected, atol=2e-6):
  np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


# ---- Geometry --------------------------------------------------------------------------------------------------------


def pil_crop_and_resize(image, top, left, height, width, size):
  """The pixels that touch the box are cut out, then PIL resizes the box within them; floats, channel by channel."""
  y, x = int(np.floor(top)), int(np.floor(left))
  bottom, right = int(np.ceil(top + height)), int(np.ceil(left + width))
  box = (left - x, top - y, left - x + width, top - y + height)
  channels = [
    Image.fromarray(np.ascontiguousarray(channel[y:bottom, x:right])).resize(size[::-1], Image.Resampling.BILINEAR, box)
    for channel in np.moveaxis(np.asarray(image), -1, 0)
  ]
  return np.stack([np.asarray(channel) for channel in channels], -1)


@pytest.mark.parametrize("size", [(5, 4), (40, 31), (1, 16)])
def test_crop_and_resize_is_that_of_pil(size):
  image = picture(20, 27, 3)
  resize = jax.jit(lambda box: augment.crop_and_resize(image, *box, size))
  boxes = [(0, 0, 20, 27), (3, 5, 9, 14), (19, 26, 1, 1), (7, 0, 13, 2), (2.3, 4.6, 11.5, 17.25), (8.2, 3.1, 0.5, 0.7)]
  for box in boxes:
    assert_close(resize(jnp.array(box, jnp.float32)), pil_crop_and_resize(image, *box, size))


def test_a_box_of_the_whole_image_at_its_own_size_is_the_image():
  image = picture(6, 7, 3)
  assert_close(jax.jit(lambda image: augment.crop_and_resize(image, 0, 0, 6, 7, (6, 7)))(image), image, atol=0)


def test_nothing_outside_the_box_is_read():
  image = picture(8, 8, 1)
  elsewhere = jnp.ones((8, 8, 1)).at[2:5, 3:7].set(0)
  box = (2, 3, 3, 4, (9, 9))
  resize = jax.jit(lambda image: augment.crop_and_resize(image, *box))
  assert_close(resize(image + elsewhere), resize(image), atol=0)


@pytest.mark.parity
def test_crop_and_resize_is_that_of_torch():
  torch = pytest.importorskip("torch")
  image, size = picture(24, 24, 3), (9, 30)
  crop = torch.tensor(np.asarray(image[2:20, 5:17])).permute(2, 0, 1)[None]
  expected = torch.nn.functional.interpolate(crop, size, mode="bilinear", antialias=True, align_corners=False)
  found = jax.jit(lambda image: augment.crop_and_resize(image, 2, 5, 18, 12, size))(image)
  assert_close(found, expected[0].permute(1, 2, 0).numpy())


def test_flip_is_that_of_pil():
  image = picture(5, 6, 3)
  assert_close(augment.flip_horizontal(image), from_pil(ImageOps.mirror(to_pil(image))))


def test_right_angles_turn_as_those_of_pil():
  for shape in [(8, 8, 3), (9, 9, 1)]:
    image = picture(*shape)
    turn = jax.jit(augment.affine)
    for degrees in (90, -90, 180):
      expected = np.stack([from_pil(to_pil(image[..., i]).rotate(degrees)) for i in range(shape[-1])], -1)
      assert_close(turn(image, float(degrees)), expected, atol=2e-5)


def test_turns_and_shifts_are_those_of_scipy():
  image = picture(14, 11, 3)
  move = jax.jit(augment.affine)
  for degrees in (12.5, -70.0):
    expected = ndimage.rotate(np.asarray(image), degrees, reshape=False, order=1, mode="grid-constant")
    assert_close(move(image, degrees), expected, atol=2e-5)
  for down, right in [(2.0, -3.0), (0.25, 1.5), (-2.75, 0.0)]:
    expected = ndimage.shift(np.asarray(image), (down, right, 0), order=1, mode="grid-constant")
    assert_close(move(image, 0.0, down, right), expected, atol=2e-5)


def test_affine_is_a_turn_and_a_magnification_before_a_shift():
  image, degrees, zoom, shift = picture(15, 15, 1), 25.0, 1.3, np.array([1.5, -2.0])
  matrix = np.linalg.inv(zoom * np.array([[np.cos(a := np.deg2rad(degrees)), -np.sin(a)], [np.sin(a), np.cos(a)]]))
  offset = 7 - matrix @ (7 + shift)
  expected = ndimage.affine_transform(np.asarray(image[..., 0]), matrix, offset, order=1, mode="grid-constant")
  assert_close(jax.jit(augment.affine)(image, degrees, *shift, zoom)[..., 0], expected, atol=2e-5)


# ---- Colour ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize(
  "adjust, enhance",
  [
    (augment.adjust_brightness, ImageEnhance.Brightness),
    (augment.adjust_contrast, ImageEnhance.Contrast),
    (augment.adjust_saturation, ImageEnhance.Color),
  ],
)
def test_blends_are_those_of_pil(adjust, enhance, factor):
  image = picture(9, 7, 3)
  # PIL rounds the grey it blends with, which the factor magnifies.
  tolerance = (1 + abs(1 - factor)) * EIGHT_BITS
  assert_close(jax.jit(adjust)(image, factor), from_pil(enhance(to_pil(image)).enhance(factor)), atol=tolerance)


def test_greyscale_and_solarize_are_those_of_pil():
  image = picture(9, 7, 3)
  grey = from_pil(ImageOps.grayscale(to_pil(image)))
  assert_close(augment.to_greyscale(image), np.repeat(grey[..., None], 3, -1), atol=EIGHT_BITS)
  for threshold in (0, 100, 128, 255):
    expected = from_pil(ImageOps.solarize(to_pil(image), threshold))
    assert_close(augment.solarize(image, (threshold - 0.5) / 255), expected)
  assert augment.solarize(jnp.full((1, 1, 1), 0.5), 0.5)[0, 0, 0] == 0.5


def colorsys_hue(image, shift):
  def turn(rgb):
    hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
    return colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)

  return np.apply_along_axis(turn, -1, np.asarray(image, np.float64))


def test_hue_is_that_of_colorsys():
  corners = jnp.array(list(itertools.product([0, 0.5, 1], repeat=3))).reshape(9, 3, 3)  # greys and ties among them
  image = jnp.concatenate([corners, picture(9, 6, 3)], axis=1)
  turn = jax.jit(augment.adjust_hue)
  for shift in (-0.5, -0.13, 0.0, 0.07, 0.5):
    assert_close(turn(image, shift), colorsys_hue(image, shift))


def test_colours_in_every_order_are_the_four_one_after_the_other():
  image, factors, shift = picture(8, 8, 3), (1.5, 1.8, 0.3), 0.2
  orders = np.array(list(itertools.permutations(range(4))))
  found = jax.jit(jax.vmap(augment.adjust_colors, (None, None, None, 0)))(image, jnp.array(factors), shift, orders)
  grey = lambda x: np.dot(x, (0.299, 0.587, 0.114))
  parts = [
    lambda x: np.clip(1.5 * x, 0, 1),
    lambda x: np.clip(1.8 * x - 0.8 * grey(x).mean(), 0, 1),
    lambda x: np.clip(0.3 * x + 0.7 * grey(x)[..., None], 0, 1),
    lambda x: colorsys_hue(x, shift),
  ]
  for order, result in zip(orders, found):
    expected = np.asarray(image, np.float64)
    for part in order:
      expected = parts[part](expected)
    assert_close(result, expected, atol=1e-5)
  assert len({np.asarray(result).round(4).tobytes() for result in found}) == 24


def test_on_grey_images_only_brightness_and_contrast_act():
  image = picture(6, 6, 1)
  for same in (augment.adjust_saturation(image, 0.3), augment.adjust_hue(image, 0.3), augment.to_greyscale(image)):
    assert_close(same, image, atol=1e-7)
  assert_close(augment.adjust_brightness(image, 0.3), 0.3 * image)
  expected = from_pil(ImageEnhance.Contrast(to_pil(image[..., 0])).enhance(0.3))
  assert_close(augment.adjust_contrast(image, 0.3)[..., 0], expected, atol=2 * EIGHT_BITS)


@pytest.mark.parametrize("shape, kernel_size", [((10, 8, 3), 3), ((10, 8, 1), 7), ((6, 12, 3), 11)])
def test_blur_is_that_of_scipy(shape, kernel_size):
  image, radius = picture(*shape), kernel_size // 2
  blur = jax.jit(augment.gaussian_blur, static_argnums=2)
  for sigma in (0.1, 0.8, 2.0):
    expected = ndimage.gaussian_filter(np.asarray(image), (sigma, sigma, 0), radius=(radius, radius, 0), mode="mirror")
    assert_close(blur(image, sigma, kernel_size), expected)


@pytest.mark.parametrize("kernel_size", [4, -1, 13, 0])
def test_blur_refuses_a_kernel_that_does_not_fit(kernel_size):
  with pytest.raises(ValueError, match=f"kernel_size = {kernel_size} .* 6 x 9: expected an odd number from 1 to 11"):
    augment.gaussian_blur(jnp.zeros((6, 9, 1)), 1.0, kernel_size)


# ---- Random ones -----------------------------------------------------------------------------------------------------


def torchvision_box(rng, height, width, scale, ratio):
  """RandomResizedCrop.get_params, one attempt after the other."""
  for _ in range(10):
    area = height * width * rng.uniform(*scale)
    aspect = np.exp(rng.uniform(*np.log(ratio)))
    w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
  if width / height < ratio[0]:
    w, h = width, round(width / ratio[0])
  elif width / height > ratio[1]:
    w, h = round(height * ratio[1]), height
  else:
    w, h = width, height
  return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(
  "shape, scale, ratio",
  [((32, 32), (0.2, 1.0), (3 / 4, 4 / 3)), ((20, 45), (0.3, 1.0), (1.0, 2.0)), ((8, 8), (0.9, 1.0), (1 / 4, 4.0))],
)
def test_boxes_lie_inside_and_are_distributed_as_torchvisions(shape, scale, ratio):
  count = 4000
  boxes = jax.jit(jax.vmap(lambda key: jnp.stack(augment.sample_crop_box(key, shape, scale, ratio))))(keys(count))
  top, left, height, width = np.asarray(boxes).T
  assert (top >= 0).all() and (left >= 0).all() and (height > 0).all() and (width > 0).all()
  assert (top + height <= shape[0]).all() and (left + width <= shape[1]).all()
  rng = np.random.default_rng(0)
  expected = np.array([torchvision_box(rng, *shape, scale, ratio) for _ in range(count)])
  for found, reference in zip(np.asarray(boxes).T, expected.T):
    assert stats.ks_2samp(found, reference).pvalue > 1e-3


@pytest.mark.parametrize(
  "shape, box", [((10, 40), (0, 13, 10, 13)), ((40, 10), (13, 0, 13, 10)), ((9, 9), (0, 0, 9, 9))]
)
def test_a_box_that_never_fits_falls_back_to_the_centre(shape, box):
  ratio = (3 / 4, 4 / 3) if shape != (9, 9) else (0.5, 2.0)
  # Of an oblong image's whole area no box within the ratio fits; of the square one's only the square does.
  found = jax.jit(augment.sample_crop_box, static_argnums=(1, 2, 3))(jax.random.key(0), shape, (1.0, 1.0), ratio)
  assert tuple(map(int, found)) == box


def test_random_resized_crop_cuts_the_box_that_is_drawn():
  image, key = picture(12, 10, 3), jax.random.key(4)
  found = jax.jit(augment.random_resized_crop((7, 8), (0.3, 0.6)))(jax.random.clone(key), image)
  box = map(int, augment.sample_crop_box(key, (12, 10), (0.3, 0.6), (3 / 4, 4 / 3)))
  assert_close(found, pil_crop_and_resize(image, *box, (7, 8)))


@pytest.mark.parametrize(
  "scale, ratio",
  [((0.0, 1.0), (0.5, 2.0)), ((0.5, 0.2), (0.5, 2.0)), ((0.2, 2.0), (0.5, 2.0)), ((0.2, 1.0), (2.0, 0.5))],
)
def test_random_resized_crop_refuses_ranges_that_are_none(scale, ratio):
  with pytest.raises(ValueError, match="expected 0 < low <= high"):
    augment.random_resized_crop((8, 8), scale, ratio)


@pytest.mark.parametrize(
  "make, changed",
  [
    (augment.random_flip, augment.flip_horizontal),
    (augment.random_greyscale, augment.to_greyscale),
    (augment.random_solarize, lambda image: augment.solarize(image, 0.5)),
  ],
)
def test_what_happens_with_a_probability_happens_that_often(make, changed):
  image = picture(4, 4, 3)
  apply = jax.jit(lambda p, n: jax.vmap(make(p), (0, None))(keys(n), image), static_argnums=1)
  share = (np.asarray(apply(0.3, 2000)) == np.asarray(changed(image))).all((1, 2, 3)).mean()
  assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 2000)
  assert (np.asarray(apply(0.0, 2000)) == np.asarray(image)).all()
  assert (np.asarray(apply(1.0, 2000)) == np.asarray(changed(image))).all()


def assert_uniform(values, low, high):
  """Inside, and no further from the uniform distribution than a thousandth of its samples are (Kolmogorov-Smirnov)."""
  assert values.min() >= low and values.max() <= high
  assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_colours_are_drawn_uniformly_each_image_in_its_own_order():
  draw = jax.jit(jax.vmap(lambda key: augment.sample_colors(key, 0.4, 1.5, 0.0, 0.1)))
  factors, shift, order = map(np.asarray, draw(keys(2400)))
  assert_uniform(factors[:, 0], 0.6, 1.4)
  assert_uniform(factors[:, 1], 0.0, 2.5)
  assert (factors[:, 2] == 1).all()
  assert_uniform(shift, -0.1, 0.1)
  counts = Counter(map(tuple, order))
  assert len(counts) == 24 and stats.chisquare(list(counts.values())).pvalue > 1e-3
  # Neither the factors nor the shift tell the order.
  for value in (factors[:, 0], factors[:, 1], shift):
    assert stats.f_oneway(*(value[(order == kind).argmax(1) == 0] for kind in range(4))).pvalue > 1e-3
  assert abs(np.corrcoef(factors[:, 0], factors[:, 1])[0, 1]) < 4 / np.sqrt(2400)


@pytest.mark.parametrize("amounts", [(-0.1, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.6)])
def test_color_jitter_refuses_amounts_out_of_range(amounts):
  with pytest.raises(ValueError, match=r"color_jitter got \(.*\): expected"):
    augment.color_jitter(*amounts)


def test_random_affine_stays_within_its_bounds_and_uses_all_of_them():
  """Seen by a single bright pixel: its centre of mass moves by the shift, or turns, or moves away from the centre."""
  dot = jnp.zeros((41, 41, 1)).at[20, 30].set(1)
  at = np.stack(np.meshgrid(np.arange(41) - 20, np.arange(41) - 20, indexing="ij"), -1)

  def positions(augmentation):
    moved = np.asarray(jax.jit(jax.vmap(augmentation, (0, None)))(keys(400), dot))
    return (moved * at).sum((1, 2)) / moved.sum((1, 2))

  down, right = (positions(augment.random_shift(4.0)) - [0, 10]).T
  assert_uniform(down, -4.0001, 4.0001)
  assert_uniform(right, -4.0001, 4.0001)
  assert abs(np.corrcoef(down, right)[0, 1]) < 4 / np.sqrt(400)
  down, right = positions(augment.random_rotation(30.0)).T
  assert_uniform(np.rad2deg(np.arctan2(-down, right)), -31, 31)
  assert_uniform(positions(augment.random_affine(zoom=(0.8, 1.6))).T[1], 7.8, 16.2)


@pytest.mark.parametrize("fill, mode", [("zero", "constant"), ("reflect", "reflect")])
def test_random_translation_is_a_crop_of_the_padded_image_at_every_place(fill, mode):
  image = np.arange(30, dtype=np.float32).reshape(5, 6, 1) / 29
  padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode=mode)
  crops = {padded[top : top + 5, left : left + 6].tobytes() for top in range(5) for left in range(5)}
  keys = jax.random.split(jax.random.key(0), 300)
  moved = np.asarray(jax.jit(jax.vmap(augment.random_translation(2, fill), (0, None)))(keys, image))
  assert {one.tobytes() for one in moved} == crops


def test_random_blur_draws_its_width():
  dot = jnp.zeros((9, 9, 1)).at[4, 4].set(1)
  blurred = jax.jit(jax.vmap(augment.random_gaussian_blur(3, (0.5, 2.0)), (0, None)))(keys(400), dot)
  # Beside the centre there is exp(-1 / (2 sigma^2)) of it.
  sigma = np.sqrt(-0.5 / np.log(np.asarray(blurred[:, 4, 5, 0] / blurred[:, 4, 4, 0])))
  assert_uniform(sigma, 0.4999, 2.0001)


def test_what_is_composed_runs_in_order_with_keys_of_its_own():
  note = lambda key, image: jnp.concatenate([image, jax.random.uniform(key, (1, 1, 1))])
  notes = augment.compose(note, note, note)(jax.random.key(0), jnp.zeros((1, 1, 1)))
  assert len(set(np.asarray(notes).ravel())) == 4
  double, add = (lambda _, image: 2 * image), (lambda _, image: image + 1)
  assert augment.compose(double, add)(jax.random.key(0), jnp.ones((1, 1, 1))).item() == 3


# ---- What is refused -------------------------------------------------------------------------------------------------

GREY, PAIR, KEY = jnp.full((6, 6, 1), 0.5), jnp.full((6, 6, 2), 0.5), jax.random.key(0)


@pytest.mark.parametrize(
  "call, message",
  [
    *[
      (lambda make=make, c=c: make((8, 8, c)), f"got an image of {c} channels: expected 1 .grey. or 3 .RGB.")
      for make in (
        augment.digit_augmentation, augment.grey_augmentation, augment.simclr_augmentation, augment.moco_augmentation,
        augment.moco_v2_augmentation,
      )
      for c in (2, 4, 6)
    ],
    (lambda: augment.simclr_augmentation((3, 32, 32)), "32 channels: expected .* in the last axis"),
    (lambda: augment.adjust_contrast(PAIR, 0.5), "a change of colour got an image of 2 channels"),
    (lambda: augment.adjust_hue(PAIR, 0.1), "adjust_hue got an image of 2 channels"),
    (lambda: augment.adjust_brightness(255 * GREY, 0.5), "values from 127.5 to 127.5: expected floats in"),
    (lambda: augment.crop_and_resize(255 * GREY, 0, 0, 2, 2, (2, 2)), "expected floats in"),
    (lambda: augment.random_flip(1.5), "p = 1.5: expected a probability"),
    (lambda: augment.random_greyscale(-0.1), "p = -0.1: expected a probability"),
    (lambda: augment.affine(GREY, zoom=0.0), "zoom = 0.0: expected a magnification above 0"),
    (lambda: augment.random_affine(zoom=(0.0, 1.0)), "zoom = .0.0, 1.0.: expected 0 < low <= high"),
    (lambda: augment.random_resized_crop((0, 8)), "size = .0, 8.: expected"),
    (lambda: augment.crop_and_resize(GREY, 0, 0, 0, 3, (2, 2)), "more than 0 pixels inside 6 x 6"),
    (lambda: augment.crop_and_resize(GREY, 4, 0, 3, 3, (2, 2)), "more than 0 pixels inside 6 x 6"),
    (lambda: augment.random_gaussian_blur(3, (0.0, 1.0)), "sigma = .0.0, 1.0.: expected 0 < low"),
    (lambda: augment.gaussian_blur(GREY, 0.0, 3), "sigma = 0.0: expected"),
    (lambda: augment.adjust_contrast(GREY, -1.0), "factor = -1.0: expected 0 or more"),
    (lambda: augment.adjust_hue(GREY, 0.7), "shift = 0.7: expected turns"),
  ],
)  # fmt: skip
def test_what_an_augmentation_cannot_do_is_one_sentence(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_batches_and_integers_are_no_images():
  for image, message in ((jnp.zeros((2, 6, 6, 1)), "H x W x C .jax.vmap"), (jnp.ones((6, 6, 1), jnp.uint8), "uint8")):
    with pytest.raises(ValueError, match=message):
      augment._check_image("flip", image)
  augment._check_image("flip", GREY.astype(jnp.bfloat16))


# ---- Recipes ---------------------------------------------------------------------------------------------------------

RECIPES = {
  "simclr": (augment.simclr_augmentation, (40, 36, 3), {"strength": 0.5}),
  "moco": (augment.moco_augmentation, (32, 32, 3), {}),
  "moco v2, grey": (augment.moco_v2_augmentation, (28, 28, 1), {"blur": True}),
  "digits": (augment.digit_augmentation, (8, 8, 1), {"blur": True}),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name):
  make, shape, settings = RECIPES[name]
  augmentation, images = make(shape, **settings), jnp.repeat(picture(3, *shape), 4, axis=0)
  views = jax.jit(jax.vmap(augmentation))(keys(12), images)
  assert views.shape == images.shape and views.dtype == jnp.float32
  assert views.min() >= 0 and views.max() <= 1 and bool(jnp.isfinite(views).all())
  assert len({np.asarray(view).tobytes() for view in views}) == 12  # another key, another view


def test_a_batch_in_one_program_is_its_images_one_by_one_part_by_part():
  """Fused behind a resampling, colours are evaluated twice with other roundings, which must not choose other hues."""
  parts = (augment.random_affine(9.0), augment.color_jitter(0.4, 0.4, 0.4, 0.1), augment.random_gaussian_blur(3))
  images = picture(6, 12, 12, 3)
  found = jax.jit(jax.vmap(augment.compose(*parts)))(keys(6), images)
  parts = [jax.jit(part) for part in parts]
  for key, image, result in zip(keys(6), images, found):
    for own, part in zip(jax.random.split(key, 3), parts):
      image = part(own, image)
    assert_close(result, image, atol=1e-5)


def test_half_precision_goes_in_and_comes_out():
  image = picture(12, 12, 3)
  parts = (
    augment.random_resized_crop((12, 12)),
    augment.random_affine(9.0),
    augment.color_jitter(0.4, 0.4, 0.4, 0.1),
    augment.random_gaussian_blur(3),
  )
  every = jax.jit(augment.compose(*parts))
  found = every(jax.random.key(3), image.astype(jnp.bfloat16))
  assert found.dtype == jnp.bfloat16
  assert float(jnp.abs(found.astype(jnp.float32) - every(jax.random.key(3), image)).mean()) < 0.01


@pytest.mark.parametrize("side, size", [(8, 3), (28, 3), (32, 3), (96, 9), (224, 23)])
def test_the_blur_is_about_a_tenth_of_the_image(side, size):
  assert augment.blur_kernel_size((side, side + 5, 3)) == size


def test_without_a_blur_small_images_stay_sharp():
  """A checkerboard that nothing else changes: only a blur brings its pixels together, in half of the images."""
  board = jnp.indices((8, 8)).sum(0)[..., None] % 2.0

  def share_blurred(blur):
    augmentation = augment.digit_augmentation((8, 8, 1), (1.0, 1.0), 0.0, 0.0, 0.0, blur)
    views = np.asarray(jax.jit(jax.vmap(augmentation, (0, None)))(keys(100), board))
    return (np.ptp(views, axis=(1, 2, 3)) < 0.99).mean()

  assert share_blurred(False) == 0
  assert 0.3 < share_blurred(True) < 0.7
