"""Images as a likelihood of pixels has them: grey, or drawn black and white."""

from typing import Any

import jax
from jaxtyping import Array, Float, Key

from mlnotes.engine.experiment import example_keys, root_key, stream_key
from mlnotes.generative import binarize, to_unit

# Of pixels that are drawn once: the same for every run, so that bounds and floors are of the same images.
_PIXELS = 0


def to_pixels(config: Any, levels: int, image: Array, key: Key[Array, " B"]) -> Float[Array, "B H W C"]:
  """Images as the likelihood has them: of bernoulli drawn black or white, with a key for each."""
  x = to_unit(image, levels)
  return jax.vmap(binarize)(key, x) if config.likelihood == "bernoulli" and levels > 2 else x


def pixels_once(config: Any, levels: int, image: Array, index: Array) -> Float[Array, "B H W C"]:
  """`to_pixels` by the place of each image in its split alone: what is tested is the same in every run."""
  return to_pixels(config, levels, image, example_keys(stream_key(root_key(_PIXELS), "pixels"), index))
