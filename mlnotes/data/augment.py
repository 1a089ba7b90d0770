"""Image augmentations: functions of one image, composed, then vmapped over a batch inside the compiled step.

    augment = simclr_augmentation((32, 32, 3), strength=0.5)
    views = jax.vmap(augment)(jax.random.split(key, B), images)

An image is H x W x C in [0, 1] with C = 1 (grey) or 3 (RGB); values stay in [0, 1] and the type is kept. What is
random takes a key and calls arithmetic that is not, with torchvision's definitions, so that either can be checked
alone. Changes of colour leave a grey image as it is.

Raises ValueError, from every function, for an image that is not of this kind: a batch that was not vmapped, channels
first where that can be told, integers, and values outside [0, 1] where they are known (not traced); for probabilities
outside [0, 1]; and for sizes and ranges that are none.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Real

# (key, image) -> image, of which only the size may differ.
Augmentation: TypeAlias = Callable[[Key[Array, ""], Float[Array, "H W C"]], Float[Array, "h w C"]]
Scalar: TypeAlias = Real[Array, ""] | float | int

# ITU-R BT.601, as in PIL.
_LUMA = (0.299, 0.587, 0.114)


# ---- What is refused -------------------------------------------------------------------------------------------------


def _refuse_unless(condition: bool, name: str, found: str, expected: str) -> None:
  if not condition:
    raise ValueError(f"{name} got {found}: expected {expected}.")


def _is_known(*values: Scalar | Array) -> bool:
  return not any(isinstance(value, jax.core.Tracer) for value in values)


def _check_image(name: str, image: Array) -> None:
  shape = f"an image of shape {image.shape}"
  _refuse_unless(image.ndim == 3, name, shape, "H x W x C (jax.vmap for a batch)")
  _refuse_unless(jnp.issubdtype(image.dtype, jnp.floating), name, f"{image.dtype} values", "floats in [0, 1]")
  if _is_known(image) and image.size:
    values = np.asarray(image, np.float32)  # jnp would trace where the caller does
    low, high = float(values.min()), float(values.max())
    # Resampling leaves the interval by a rounding.
    _refuse_unless(low >= -0.01 and high <= 1.01, name, f"values from {low:g} to {high:g}", "floats in [0, 1]")


def _check_colors(name: str, shape: tuple[int, ...], axis: int = -1) -> None:
  channels = shape[axis]
  _refuse_unless(channels in (1, 3), name, f"an image of {channels} channels", "1 (grey) or 3 (RGB), in the last axis")


def _check_size(name: str, size: tuple[int, ...]) -> None:
  _refuse_unless(len(size) == 2 and min(size) >= 1, name, f"size = {tuple(size)}", "(h, w) of 1 pixel or more")


def _check_range(name: str, argument: str, bounds: tuple[float, float]) -> None:
  low, high = bounds
  _refuse_unless(0 < low <= high, name, f"{argument} = {tuple(bounds)}", "0 < low <= high")


def _check_factor(name: str, factor: Scalar) -> None:
  if _is_known(factor):
    _refuse_unless(float(factor) >= 0, name, f"factor = {factor}", "0 or more")


# ---- Arithmetic: geometry --------------------------------------------------------------------------------------------


def compute_resize_weights(start: Scalar, length: Scalar, in_size: int, out_size: int) -> Float[Array, "out in"]:
  """The matrix that resamples [start, start + length) of an axis of `in_size` pixels to `out_size`; rows sum to 1.

    w_ij ~ max(0, 1 - |(j + 1/2) - (start + (i + 1/2) s)| / max(s, 1)),   s = length / out_size

  Bilinear on half-pixel centres, the triangle widened by the scale where pixels get fewer (antialiasing), and cut to
  the pixels that touch the interval, as PIL resizes a crop. The interval must lie in [0, in_size].
  """
  scale = length / out_size
  center = (start + (jnp.arange(out_size) + 0.5) * scale)[:, None]
  pixel = jnp.arange(in_size)[None, :]
  weight = jnp.maximum(0.0, 1 - jnp.abs(pixel + 0.5 - center) / jnp.maximum(scale, 1.0))
  weight = jnp.where((pixel + 1 > start) & (pixel < start + length), weight, 0.0)
  return weight / jnp.sum(weight, axis=1, keepdims=True)


def _resample(image: Float[Array, "H W C"], rows: Float[Array, "h H"], columns: Float[Array, "w W"]):
  # "highest": the default of some accelerators, eight significant bits, is no finer than the pixels are.
  dtype = image.dtype
  return jnp.einsum("hy,yxc,wx->hwc", rows.astype(dtype), image, columns.astype(dtype), precision="highest")


def crop_and_resize(
  image: Float[Array, "H W C"], top: Scalar, left: Scalar, height: Scalar, width: Scalar, size: tuple[int, int]
) -> Float[Array, "h w C"]:
  """Cuts the box out, then resizes it to `size` = (h, w): bilinear and antialiased, see `compute_resize_weights`.

  Two matrix products. Nothing is read outside the box, which must lie inside the image; it may be traced, and of
  fractions of pixels. (`jax.image.scale_and_translate` blends in what is outside.)
  """
  _check_image("crop_and_resize", image)
  _check_size("crop_and_resize", size)
  if _is_known(top, left, height, width):
    rows, columns, _ = image.shape
    top, left, height, width = (float(value) for value in (top, left, height, width))
    inside = top >= 0 and left >= 0 and height > 0 and width > 0 and top + height <= rows and left + width <= columns
    box = f"the box (top, left, height, width) = ({top}, {left}, {height}, {width})"
    _refuse_unless(inside, "crop_and_resize", box, f"one of more than 0 pixels inside {rows} x {columns}")
  rows = compute_resize_weights(top, height, image.shape[0], size[0])
  columns = compute_resize_weights(left, width, image.shape[1], size[1])
  return _resample(image, rows, columns)


def flip_horizontal(image: Float[Array, "H W C"]) -> Float[Array, "H W C"]:
  """Left becomes right."""
  _check_image("flip_horizontal", image)
  return image[:, ::-1]


def affine(
  image: Float[Array, "H W C"], degrees: Scalar = 0.0, down: Scalar = 0.0, right: Scalar = 0.0, zoom: Scalar = 1.0
) -> Float[Array, "H W C"]:
  """Turns counter-clockwise and magnifies about the centre, then shifts by pixels; one bilinear resampling.

  Outside the image there is 0, which the border is interpolated with, as in torchvision. zoom > 0.
  """
  _check_image("affine", image)
  if _is_known(zoom):
    _refuse_unless(float(zoom) > 0, "affine", f"zoom = {zoom}", "a magnification above 0")
  height, width, _ = image.shape
  angle = jnp.deg2rad(degrees)
  cos, sin = jnp.cos(angle) / zoom, jnp.sin(angle) / zoom
  middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
  y, x = jnp.meshgrid(jnp.arange(height) - middle_y - down, jnp.arange(width) - middle_x - right, indexing="ij")
  source = (middle_y + sin * x + cos * y, middle_x + cos * x - sin * y)
  sample = lambda channel: jax.scipy.ndimage.map_coordinates(channel, source, order=1, mode="constant", cval=0.0)
  return jax.vmap(sample, in_axes=-1, out_axes=-1)(image).astype(image.dtype)


# ---- Arithmetic: colour ----------------------------------------------------------------------------------------------


def _blend(image: Float[Array, "..."], other: Float[Array, "..."] | float, factor: Scalar) -> Float[Array, "..."]:
  """factor image + (1 - factor) other, clipped: what brightness, contrast and saturation have in common."""
  return jnp.clip(factor * image + (1 - factor) * other, 0, 1).astype(image.dtype)


def _luma(image: Float[Array, "..."], axis: int = -1) -> Float[Array, "..."]:
  """The greyscale of an image with its channels along `axis`, in one channel."""
  _check_colors("a change of colour", image.shape, axis)
  if image.shape[axis] == 1:
    return image
  return sum(weight * channel for weight, channel in zip(_LUMA, jnp.split(image, 3, axis)))


def to_greyscale(image: Float[Array, "H W C"]) -> Float[Array, "H W C"]:
  """0.299 R + 0.587 G + 0.114 B in each channel (ITU-R BT.601)."""
  _check_image("to_greyscale", image)
  return jnp.broadcast_to(_luma(image), image.shape)


def adjust_brightness(image: Float[Array, "H W C"], factor: Scalar) -> Float[Array, "H W C"]:
  """clip(factor image). factor >= 0; 1 changes nothing, 0 gives black."""
  _check_image("adjust_brightness", image)
  _check_factor("adjust_brightness", factor)
  return _blend(image, 0.0, factor)


def adjust_contrast(image: Float[Array, "H W C"], factor: Scalar) -> Float[Array, "H W C"]:
  """clip(factor image + (1 - factor) mean of its greyscale). factor >= 0; 0 gives one grey."""
  _check_image("adjust_contrast", image)
  _check_factor("adjust_contrast", factor)
  return _blend(image, jnp.mean(_luma(image)), factor)


def adjust_saturation(image: Float[Array, "H W C"], factor: Scalar) -> Float[Array, "H W C"]:
  """clip(factor image + (1 - factor) its greyscale). factor >= 0; 0 gives the greyscale."""
  _check_image("adjust_saturation", image)
  _check_factor("adjust_saturation", factor)
  return _blend(image, _luma(image), factor)


def _turn_hue(channels: Float[Array, "3 H W"], shift: Scalar) -> Float[Array, "3 H W"]:
  red, green, blue = channels
  value = jnp.maximum(jnp.maximum(red, green), blue)
  chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
  inverse = 1 / jnp.where(chroma > 0, chroma, 1)
  # Not `value == red`: where the compiler evaluates red twice, the two may differ in their last bit.
  hue = jnp.where(
    (red >= green) & (red >= blue),
    (green - blue) * inverse,
    jnp.where(green >= blue, 2 + (blue - red) * inverse, 4 + (red - green) * inverse),
  )
  turned = []
  for n in (5, 3, 1):
    k = n + hue + 6 * shift
    k = k - 6 * jnp.floor(k / 6)
    turned.append(value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1))
  return jnp.stack(turned).astype(channels.dtype)


def adjust_hue(image: Float[Array, "H W C"], shift: Scalar) -> Float[Array, "H W C"]:
  """Adds `shift` turns, in [-1/2, 1/2], to the hue in HSV; saturation and value stay.

  With V the largest channel, c = V minus the smallest, and the hue h in sixths of a turn,

    channel = V - c clip(min(k, 4 - k), 0, 1),   k = (n + h + 6 shift) mod 6,   n = 5, 3, 1 for R, G, B

  so that neither the saturation nor a case distinction by sextant is needed.
  """
  _check_image("adjust_hue", image)
  _check_colors("adjust_hue", image.shape)
  if _is_known(shift):
    _refuse_unless(abs(float(shift)) <= 0.5, "adjust_hue", f"shift = {shift}", "turns in [-1/2, 1/2]")
  if image.shape[-1] == 1:
    return image
  return jnp.moveaxis(_turn_hue(jnp.moveaxis(image, -1, 0), shift), 0, -1)


def adjust_colors(
  image: Float[Array, "H W C"],
  factors: Float[Array, "3"],
  shift: Scalar,
  order: Int[Array, "4"],
) -> Float[Array, "H W C"]:
  """Brightness, contrast and saturation by `factors`, hue by `shift`, in the order of a permutation of (0, 1, 2, 3).

  The same as the four functions called one after the other. A vmapped switch would evaluate all its branches: sixteen
  operations for four. Here the first three are one blend, of which the other image is selected, and the hue is turned
  once, between two rounds of blends: a factor of 1 stands for a blend whose place is in the other round.
  """
  _check_image("adjust_colors", image)
  _check_colors("adjust_colors", image.shape)
  before = jnp.argmax(order == 3)
  blends = order[jnp.arange(3) + (jnp.arange(3) >= before)]
  is_grey = image.shape[-1] == 1

  def blend(channels, i, is_here):
    factor, kind, luma = jnp.where(is_here, factors[blends[i]], 1), blends[i], _luma(channels, axis=0)
    return _blend(channels, jnp.where(kind == 0, 0, jnp.where(kind == 1, jnp.mean(luma), luma)), factor)

  channels = jnp.moveaxis(image, -1, 0)  # three whole planes: twice as fast on a CPU
  for i in range(3):
    channels = blend(channels, i, is_grey | (i < before))
  if not is_grey:
    channels = _turn_hue(channels, shift)
    for i in range(3):
      channels = blend(channels, i, i >= before)
  return jnp.moveaxis(channels, 0, -1)


def solarize(image: Float[Array, "H W C"], threshold: Scalar) -> Float[Array, "H W C"]:
  """Inverts the values from `threshold` on."""
  _check_image("solarize", image)
  return jnp.where(image >= threshold, 1 - image, image)


def gaussian_blur(image: Float[Array, "H W C"], sigma: Scalar, kernel_size: int) -> Float[Array, "H W C"]:
  """Convolves with a Gaussian of standard deviation `sigma` > 0 pixels, cut to `kernel_size` and normalised.

  The image is reflected at its border. Raises ValueError unless `kernel_size` is odd, positive, and less than twice
  the image's shorter side, beyond which there is nothing to reflect.
  """
  _check_image("gaussian_blur", image)
  if _is_known(sigma):
    _refuse_unless(float(sigma) > 0, "gaussian_blur", f"sigma = {sigma}", "a standard deviation above 0")
  half, shorter = kernel_size // 2, min(image.shape[:2])
  if kernel_size < 1 or kernel_size % 2 == 0 or half >= shorter:
    raise ValueError(
      f"gaussian_blur got kernel_size = {kernel_size} for an image of {image.shape[0]} x {image.shape[1]}: "
      f"expected an odd number from 1 to {2 * shorter - 1}."
    )

  def weights(size):
    i, j = jnp.arange(size)[:, None], jnp.arange(size)[None, :]
    gaussian = lambda distance: jnp.where(abs(distance) <= half, jnp.exp(-0.5 * (distance / sigma) ** 2), 0)
    # Pixel j itself, and its reflections in the first and the last pixel, which are not reflected themselves.
    weight = gaussian(j - i)
    weight += jnp.where(j > 0, gaussian(-j - i), 0) + jnp.where(j < size - 1, gaussian(2 * (size - 1) - j - i), 0)
    return weight / jnp.sum(weight, axis=1, keepdims=True)

  # Matrix products again: a convolution with a kernel for each image is slow, and sums of shifted images let the
  # compiler evaluate all that comes before once for each shift (measured: 2.6 times as slow behind a colour jitter).
  return _resample(image, weights(image.shape[0]), weights(image.shape[1]))


# ---- Random, one by one ----------------------------------------------------------------------------------------------


def compose(*augmentations: Augmentation) -> Augmentation:
  """One after the other, each with its own key."""

  def apply(key, image):
    for each, augment in zip(jax.random.split(key, len(augmentations)), augmentations):
      image = augment(each, image)
    return image

  return apply


def random_apply(augmentation: Augmentation, p: Scalar) -> Augmentation:
  """With probability `p`, otherwise nothing. The size must not change."""
  if _is_known(p):
    _refuse_unless(0 <= float(p) <= 1, "random_apply", f"p = {p}", "a probability in [0, 1]")

  def apply(key, image):
    key_choice, key = jax.random.split(key)
    return jnp.where(jax.random.bernoulli(key_choice, p), augmentation(key, image), image)

  return apply


def sample_crop_box(
  key: Key[Array, ""], shape: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Int[Array, ""], Int[Array, ""], Int[Array, ""], Int[Array, ""]]:
  """(top, left, height, width) in pixels: Inception's random box inside an image of `shape` = (H, W).

  Its share of the area is uniform in `scale`, width / height log-uniform in `ratio`, its place uniform. A box that does
  not fit is drawn again, ten times in all (here at once), then the largest central box within `ratio` is taken.
  Szegedy et al. 2015; the details are torchvision's.
  """
  height, width = shape
  draws = jax.random.uniform(key, (22,))  # at once: most of the time to compile an augmentation goes into its draws
  area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[:10])
  aspect = ratio[0] * (ratio[1] / ratio[0]) ** draws[10:20]
  heights, widths = jnp.round(jnp.sqrt(area / aspect)), jnp.round(jnp.sqrt(area * aspect))
  fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
  first = jnp.argmax(fits)

  largest = (min(height, round(width / ratio[0])), min(width, round(height * ratio[1])))
  box_height = jnp.where(fits[first], heights[first], largest[0]).astype(jnp.int32)
  box_width = jnp.where(fits[first], widths[first], largest[1]).astype(jnp.int32)
  room = jnp.stack([height - box_height, width - box_width])
  place = jnp.where(fits[first], jnp.floor(draws[20:] * (room + 1)).astype(jnp.int32), room // 2)
  return place[0], place[1], box_height, box_width


def random_resized_crop(
  size: tuple[int, int], scale: tuple[float, float] = (0.2, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> Augmentation:
  """A random box (`sample_crop_box`) resized to `size` = (h, w). Raises ValueError for an empty or reversed range."""
  if not (0 < scale[0] <= scale[1] <= 1 and 0 < ratio[0] <= ratio[1]):
    raise ValueError(f"random_resized_crop got scale = {scale}, ratio = {ratio}: expected 0 < low <= high, scale <= 1.")
  _check_size("random_resized_crop", size)

  def apply(key, image):
    return crop_and_resize(image, *sample_crop_box(key, image.shape[:2], scale, ratio), size)

  return apply


def random_flip(p: Scalar = 0.5) -> Augmentation:
  """Left becomes right with probability `p`."""
  return random_apply(lambda _, image: flip_horizontal(image), p)


def random_affine(degrees: float = 0.0, pixels: float = 0.0, zoom: tuple[float, float] = (1.0, 1.0)) -> Augmentation:
  """`affine` by uniform amounts: an angle up to +-degrees, each shift up to +-pixels, a magnification in `zoom`."""
  _check_range("random_affine", "zoom", zoom)

  def apply(key, image):
    draws = jax.random.uniform(key, (4,))
    turn, down, right = 2 * draws[:3] - 1
    magnification = zoom[0] + (zoom[1] - zoom[0]) * draws[3]
    return affine(image, degrees * turn, pixels * down, pixels * right, magnification)

  return apply


def random_rotation(degrees: float) -> Augmentation:
  """Turns by an angle uniform in +-degrees."""
  return random_affine(degrees=degrees)


def random_shift(pixels: float) -> Augmentation:
  """Shifts down and right by amounts uniform in +-pixels."""
  return random_affine(pixels=pixels)


def random_translation(pixels: int, fill: Literal["zero", "reflect"] = "zero") -> Augmentation:
  """Moves by whole pixels, uniform in -pixels .. pixels down and right: padding, then a random crop of the old size.

  What comes in is 0, or the image reflected at its border. With 4 pixels of 0 and `random_flip` it is the augmentation
  of CIFAR-10 in He et al. 2016, section 4.2. Raises ValueError for a negative number of pixels and another fill.

  Differences from the paper: 0 is black here; there it is the mean image.
  """
  _refuse_unless(pixels >= 0, "random_translation", f"pixels = {pixels}", "0 or more")
  _refuse_unless(fill in ("zero", "reflect"), "random_translation", f"fill = {fill!r}", "'zero' or 'reflect'")
  mode = "constant" if fill == "zero" else "reflect"

  def apply(key, image):
    _check_image("random_translation", image)
    padded = jnp.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), mode)
    top, left = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)

  return apply


def random_greyscale(p: Scalar) -> Augmentation:
  """`to_greyscale` with probability `p`."""
  return random_apply(lambda _, image: to_greyscale(image), p)


def random_solarize(p: Scalar, threshold: Scalar = 0.5) -> Augmentation:
  """`solarize` with probability `p`."""
  return random_apply(lambda _, image: solarize(image, threshold), p)


def random_gaussian_blur(kernel_size: int, sigma: tuple[float, float] = (0.1, 2.0)) -> Augmentation:
  """`gaussian_blur` with a standard deviation uniform in `sigma` pixels."""
  _check_range("random_gaussian_blur", "sigma", sigma)

  def apply(key, image):
    return gaussian_blur(image, jax.random.uniform(key, minval=sigma[0], maxval=sigma[1]), kernel_size)

  return apply


def sample_colors(
  key: Key[Array, ""], brightness: float, contrast: float, saturation: float, hue: float
) -> tuple[Float[Array, "3"], Float[Array, ""], Int[Array, "4"]]:
  """(factors, shift, order) for `adjust_colors`, uniform: in [max(0, 1 - a), 1 + a], in +-hue, of all orders."""
  draws = jax.random.uniform(key, (8,))
  amounts = np.array([brightness, contrast, saturation], np.float32)
  low = np.maximum(0, 1 - amounts)
  return low + (1 + amounts - low) * draws[:3], hue * (2 * draws[3] - 1), jnp.argsort(draws[4:])


def color_jitter(
  brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0
) -> Augmentation:
  """Brightness, contrast, saturation and hue by random amounts in random order: `sample_colors`, `adjust_colors`.

  Raises ValueError unless the amounts are >= 0 and hue <= 1/2.
  """
  amounts = (brightness, contrast, saturation, hue)
  if min(amounts) < 0 or hue > 0.5:
    raise ValueError(f"color_jitter got {amounts}: expected amounts of 0 or more, and of hue 1/2 or less.")
  return lambda key, image: adjust_colors(image, *sample_colors(key, *amounts))


# ---- Recipes ---------------------------------------------------------------------------------------------------------


def blur_kernel_size(image_shape: tuple[int, int, int]) -> int:
  """A tenth of the shorter side, made odd, at least 3: 23 of 224 pixels. Chen et al. 2020, appendix A."""
  return max(3, min(image_shape[:2]) // 20 * 2 + 1)


def _random_blur(image_shape: tuple[int, int, int], blur: bool | None) -> tuple[Augmentation, ...]:
  """The blur of SimCLR and MoCo v2, with probability 1/2; unless told, only where images are larger than CIFAR's."""
  if not (min(image_shape[:2]) > 32 if blur is None else blur):
    return ()
  return (random_apply(random_gaussian_blur(blur_kernel_size(image_shape)), 0.5),)


def simclr_augmentation(
  image_shape: tuple[int, int, int], strength: float = 1.0, blur: bool | None = None
) -> Augmentation:
  """SimCLR's: crop, flip, colour jitter of a strength, greyscale, blur. Chen et al. 2020, appendix A.

  On CIFAR-10 the strength is 1/2 and there is no blur (appendix B.9): the same as in MoCo's CIFAR-10 demonstration.
  `blur`: None blurs images larger than 32 pixels only.

  Differences from the paper: the colours' arithmetic is torchvision's, not TensorFlow's.
  """
  _check_colors("simclr_augmentation", image_shape)
  return compose(
    random_resized_crop(image_shape[:2], scale=(0.08, 1.0)),
    random_flip(),
    random_apply(color_jitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength), 0.8),
    random_greyscale(0.2),
    *_random_blur(image_shape, blur),
  )


def moco_augmentation(image_shape: tuple[int, int, int]) -> Augmentation:
  """MoCo's first: crop, flip, greyscale, colour jitter. He et al. 2020, section 3.3 and their code.

  The flip, their last, commutes with the colours; last, it made the compiler evaluate all before it twice.
  """
  _check_colors("moco_augmentation", image_shape)
  return compose(
    random_resized_crop(image_shape[:2], scale=(0.2, 1.0)),
    random_flip(),
    random_greyscale(0.2),
    color_jitter(0.4, 0.4, 0.4, 0.4),
  )


def moco_v2_augmentation(image_shape: tuple[int, int, int], blur: bool | None = None) -> Augmentation:
  """MoCo v2's: crop, flip, colour jitter, greyscale, blur. Chen, Fan et al. 2020 and their code.

  `blur`: None blurs images larger than 32 pixels only. Differences from the code: the blur is a Gaussian cut to a
  tenth of the image, where PIL approximates one without a bound.
  """
  _check_colors("moco_v2_augmentation", image_shape)
  return compose(
    random_resized_crop(image_shape[:2], scale=(0.2, 1.0)),
    random_flip(),  # commutes with what follows
    random_apply(color_jitter(0.4, 0.4, 0.4, 0.1), 0.8),
    random_greyscale(0.2),
    *_random_blur(image_shape, blur),
  )


def grey_augmentation(
  image_shape: tuple[int, int, int], crop: tuple[float, float] = (0.7, 1.0), jitter: float = 0.8
) -> Augmentation:
  """For grey photographs of one object each: a mild crop, flip, strong changes of brightness and contrast.

  Without colours a harder crop, as SimCLR's, leaves little to tell objects apart by. `crop` is the range of the area's
  share.
  """
  _check_colors("grey_augmentation", image_shape)
  return compose(
    random_resized_crop(image_shape[:2], scale=crop), random_flip(), random_apply(color_jitter(jitter, jitter), 0.8)
  )


def digit_augmentation(
  image_shape: tuple[int, int, int],
  crop: tuple[float, float] = (0.5, 1.0),
  degrees: float = 15.0,
  shift: float = 0.1,
  jitter: float = 0.4,
  blur: bool = False,
) -> Augmentation:
  """For handwritten digits, of 8 x 8 or 28 x 28: a mild crop, a small turn and shift, brightness and contrast.

  No flip: a mirrored digit is another shape, or another digit. `crop` is the range of the area's share, `shift` a
  share of the shorter side.
  """
  _check_colors("digit_augmentation", image_shape)
  return compose(
    random_resized_crop(image_shape[:2], scale=crop),
    random_affine(degrees, shift * min(image_shape[:2])),
    random_apply(color_jitter(jitter, jitter), 0.8),
    *_random_blur(image_shape, blur),
  )
