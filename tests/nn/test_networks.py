"""Networks by name: what they return, parameters of the papers, what is refused; blocks at one budget; deep stacks."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.data import load
from mlnotes.nn import MLP, BlockNet, ConvNet, DenseNet, GoogLeNet, cross_entropy, make_network, match_width
from mlnotes.nn.blocks import BLOCKS, count_parameters
from mlnotes.nn.conv import Conv
from mlnotes.nn.densenet import DenseLayer
from mlnotes.nn.inception import GOOGLENET, Inception
from mlnotes.nn.norm_by_name import NORMS, FittedGroupNorm, NoNorm
from mlnotes.nn.resnet import BasicBlock, BottleneckBlock, PreActivationBlock, ResNet, ResNet20
from mlnotes.nn.spatial_transformer import TransformedConvNet


def shapes(network, image_shape, train=False, key=0):
  """(result, variables), with nothing computed."""
  images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
  return jax.eval_shape(partial(network.init_with_output, train=train), jax.random.key(key), images)


# The others are one of these with more layers or another block.
SHORTEST = (
  "mlp",
  "small",
  "resnet18",
  "resnet20",
  "preactivation20",
  "googlenet",
  "spatial_transformer",
  "dense",
  "cbam",
)


@pytest.mark.parametrize("name", SHORTEST)
def test_every_network_gives_logits(name):
  logits, variables = shapes(make_network(name, 7, (8, 8, 1), dtype=jnp.bfloat16), (8, 8, 1))
  assert logits.shape == (2, 7) and logits.dtype == jnp.bfloat16
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
  assert variables["batch_stats"]


@pytest.mark.parametrize("name, features", [("small", 128), ("mlp", 128), ("preactivation", 32)])
def test_without_classes_the_features_are_given(name, features):
  found, variables = shapes(make_network(name, None, (8, 8, 1), norm="group"), (8, 8, 1))
  assert found.shape == (2, features)
  assert set(variables) == {"params"} and "head" not in variables["params"]


# One of each kind, as small as it can be.
KINDS = {
  "mlp": partial(MLP, 4, 4, residual=True),
  "small": partial(ConvNet, 4),
  **{name: partial(BlockNet, name, (1, 1), {"inception": 16, "shuffled": 8}.get(name, 4)) for name in BLOCKS},
  "bottleneck": partial(ResNet, (1, 1), BottleneckBlock, width=4),
  "densenet": partial(DenseNet, (1, 1), growth=3, bottleneck=True),
  "googlenet": partial(GoogLeNet, ("3a",), width=2),
  "spatial_transformer": partial(TransformedConvNet, 4),
}
# Each kind with one of them here, with all of them where there is time.
TURNS = [
  pytest.param(kind, norm, marks=() if (place + turn) % 3 == 0 else pytest.mark.thorough)
  for place, kind in enumerate(KINDS)
  for turn, norm in enumerate(("layer", "group", "none"))
]


@pytest.mark.parametrize("kind, norm", TURNS)
def test_every_kind_of_network_learns_with_every_norm(kind, norm):
  """Eight digits, three steps along the gradient: the loss falls each time, and nothing is left to run."""
  digits = load("digits").train
  x, label = jnp.asarray(digits.image[:8], jnp.float32) / 16, jnp.asarray(digits.label[:8])
  own = norm if kind in ("mlp", *BLOCKS) else NORMS[norm]
  network = KINDS[kind](norm=own, num_classes=10)

  @jax.jit
  def learn(key):
    variables = network.init(key, x, train=False)

    def loss(params):
      logits = network.apply({"params": params}, x, train=True)
      return jnp.mean(cross_entropy(logits, label))

    def step(params, _):
      value, gradient = jax.value_and_grad(loss)(params)
      return jax.tree.map(lambda p, g: p - 0.03 * g, params, gradient), value

    params, losses = jax.lax.scan(step, variables["params"], length=3)
    return variables, jnp.append(losses, loss(params))

  variables, losses = learn(jax.random.key(0))
  assert set(variables) <= {"params", "intermediates"}
  assert 2 < losses[0] < 5 and np.all(np.diff(losses) < 0), losses


# He et al. 2016, table 6: .27 and 1.7 million; Huang et al. 2017, table 2: 1.0 and .8 million.
@pytest.mark.parametrize("name, expected", [
  ("resnet20", 269_722), ("densenet40", 1_019_722),
  *(pytest.param(*row, marks=pytest.mark.thorough) for row in [("resnet110", 1_727_962), ("densenet_bc100", 769_162)]),
])  # fmt: skip
def test_parameters_are_those_of_the_papers(name, expected):
  assert count_parameters(make_network(name, 10, (32, 32, 3)), (32, 32, 3)) == expected


def test_a_projection_costs_its_kernels_and_norms():
  plain, projected = (
    count_parameters(ResNet20(block=block, num_classes=10), (32, 32, 3))
    for block in (partial(BasicBlock, shortcut="A"), BasicBlock)
  )
  assert projected - plain == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


@pytest.mark.parametrize("module, inputs, expected", [("3a", 192, 163_696), ("5b", 832, 1_444_080)])
def test_an_inception_modules_parameters_are_those_of_its_row(module, inputs, expected):
  network = Inception(GOOGLENET[module], partial(Conv, use_bias=False), NoNorm)
  x = jax.ShapeDtypeStruct((1, 8, 8, inputs), jnp.float32)
  y, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), x)
  assert y.shape == (1, 8, 8, {"3a": 256, "5b": 1024}[module])
  assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == expected


@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_dense_block_adds_its_growth_per_layer(bottleneck):
  """Channels after a block: c0 + L k; the transition keeps a share of them, rounded down."""
  seen = {}

  def record(next_call, args, kwargs, context):
    y = next_call(*args, **kwargs)
    if context.method_name == "__call__":
      seen[context.module.name] = y.shape
    return y

  with nn.intercept_methods(record):
    shapes(DenseNet((3, 2), growth=5, bottleneck=bottleneck, compression=0.5, num_classes=3), (8, 8, 1))
  width = 10 if bottleneck else 16
  assert seen["block0_layer2"] == (2, 8, 8, width + 15)
  assert seen["transition1_conv"] == (2, 8, 8, (width + 15) // 2)
  assert seen["block1_layer1"] == (2, 4, 4, (width + 15) // 2 + 10)


def test_a_dense_layer_keeps_what_it_is_given(key):
  x = jax.random.normal(key, (2, 4, 4, 3))
  y, _ = DenseLayer(5, Conv, NoNorm).init_with_output(jax.random.key(1), x)
  np.testing.assert_array_equal(y[..., :3], x)
  assert y.shape[-1] == 8


@pytest.mark.parametrize("module, activation", [(BasicBlock, nn.relu), (PreActivationBlock, lambda x: x)])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_residual_blocks_start_as_the_identity(module, activation, norm, key):
  x = jax.random.normal(key, (2, 4, 4, 8))
  batch = {"use_running_average": False} if norm == "batch" else {}
  y, _ = jax.jit(module(8, Conv, partial(NORMS[norm], **batch)).init_with_output)(jax.random.key(1), x)
  np.testing.assert_array_equal(y, activation(x))


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_meet_one_budget(block):
  budget = 20_000
  width = match_width(block, budget, (8, 8, 1), 10, (1,))
  count = lambda width: count_parameters(BlockNet(block, (1,), width, num_classes=10), (8, 8, 1))
  assert abs(count(width) / budget - 1) < 0.05
  step = 2 if block == "shuffled" else 1
  assert all(abs(count(width) - budget) <= abs(count(other) - budget) for other in (width - step, width + step))


def test_dropout_draws_in_training_alone(key):
  """Half of the features are lost, so the logits of training differ from draw to draw, those of evaluation do not."""
  x = jnp.ones((2, 8, 8, 1))
  network = make_network("small", 3, (8, 8, 1), width=4, dropout=0.5, norm="group")
  variables = jax.jit(partial(network.init, train=False))(key, x)
  train = jax.jit(lambda seed: network.apply(variables, x, train=True, rngs={"dropout": jax.random.key(seed)}))
  assert float(jnp.max(jnp.abs(train(1) - train(2)))) > 1e-2
  jax.jit(partial(network.apply, train=False))(variables, x)  # asks for no key


@pytest.mark.parametrize("name", ["mlp", "small", "densenet40", "residual", "spatial_transformer"])
def test_dropout_reaches_every_network(name):
  rates = []

  def record(next_call, args, kwargs, context):
    if isinstance(context.module, nn.Dropout):
      rates.append((context.module.rate, context.module.deterministic))
    return next_call(*args, **kwargs)

  network = make_network(name, 3, (8, 8, 1), dropout=0.25, width=4)
  with nn.intercept_methods(record):
    shapes(network, (8, 8, 1))
  assert (0.25, True) in rates


@pytest.mark.parametrize("channels, groups", [(256, 32), (128, 32), (64, 16), (48, 12), (12, 3), (7, 1), (2, 1)])
def test_groups_fit_the_channels(channels, groups, key):
  seen = []

  def record(next_call, args, kwargs, context):
    seen.append(getattr(context.module, "groups", None))
    return next_call(*args, **kwargs)

  with nn.intercept_methods(record):
    x = jax.ShapeDtypeStruct((2, 3, 3, channels), jnp.float32)
    params = jax.eval_shape(FittedGroupNorm().init, key, x)["params"]
  assert {"scale", "bias"} == set(params) and groups in seen


def test_layer_is_over_all_of_an_example(key):
  x = np.array(3 + jax.random.normal(key, (2, 3, 4, 6)))
  for values in (x, x[:, 0, 0]):
    y, _ = jax.jit(NORMS["layer"]().init_with_output)(jax.random.key(1), values)
    axes = tuple(range(1, values.ndim))
    expected = (values - values.mean(axes, keepdims=True)) / np.sqrt(values.var(axes, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("norm, residual", [("batch", True), ("none", True), ("none", False)])
def test_plain_and_residual_stacks_have_the_same_parameters(norm, residual):
  stack = lambda residual: shapes(MLP(6, 8, 3, residual, norm), (4,))[1]["params"]
  assert jax.tree.map(jnp.shape, stack(residual)) == jax.tree.map(jnp.shape, stack(not residual))
  assert sum(name.startswith("dense") for name in stack(residual)) + 1 == 8  # with the head


def test_a_residual_stack_of_zero_scales_is_its_ends(key):
  x = jax.random.normal(key, (4, 5))
  deep = MLP(6, 8, 3, residual=True, norm="group", zero_init_residual=True)
  found, variables = jax.jit(partial(deep.init_with_output, train=False))(jax.random.key(1), x)
  ends = {"params": {name: variables["params"][name] for name in ("dense0", "norm0", "head")}}
  expected = jax.jit(partial(MLP(6, 2, 3, norm="group").apply, train=False))(ends, x)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_fifty_layers_keep_the_signal_with_he_and_lose_it_with_lecun(key):
  """Mean squares after 49 ReLU layers without norms: within a factor of 3, and halved by each layer.

  The logarithm's deviation over draws of the weights is about sqrt(5 * 49 / width) = .7.
  """
  x = jax.random.normal(key, (16, 512))

  def mean_square(kernel_init):
    model = MLP(512, 50, norm="none", kernel_init=kernel_init)
    return float(jnp.mean(jnp.square(model.init_with_output(jax.random.key(1), x, train=False)[0])))

  he = mean_square("he")
  assert 1 / 3 < he < 3
  np.testing.assert_allclose(mean_square("lecun") / he, 2.0**-49, rtol=1e-3)


@pytest.mark.parametrize("arguments, words", [
  (dict(name="resnet19"), "network is 'resnet19': did you mean resnet18?"),
  (dict(name="desenet40"), "did you mean densenet40?"),
  (dict(norm="bacth"), "norm is 'bacth': did you mean batch?"),
  (dict(name="resnet18", image_shape=(4, 8, 3)), "the strides of network 'resnet18' ask for images of 8 or more"),
  (dict(image_shape=(8, 8)), r"image_shape is \(8, 8\), expected \(height, width, channels\) for network 'small'"),
  (dict(name="mlp", image_shape=()), r"image_shape is \(\), expected positive numbers"),
  (dict(image_shape=(8, 8, 0)), "expected positive numbers"),
  (dict(num_classes=0), "num_classes is 0, expected 1 or more, or None"),
  (dict(width=-1), "width is -1, expected 0 for the network's own, or from 1 on"),
  (dict(dropout=1.0), "dropout is 1.0, expected a share from 0 to below 1"),
  (dict(name="shuffled", width=5), "width is 5, expected 0 for the network's own, or a multiple of 2"),
  (dict(name="inception", width=7), "width is 7, expected 0 for the network's own, or from 16 on"),
])  # fmt: skip
def test_what_cannot_be_is_said_in_a_sentence(arguments, words):
  with pytest.raises(ValueError, match=words):
    make_network(**{"name": "small", "num_classes": 3, "image_shape": (8, 8, 1), **arguments})


@pytest.mark.parametrize("make, words", [
  (lambda: BlockNet("residul"), "block is 'residul': did you mean residual?"),
  (lambda: match_width("plain", 100, (8, 8, 1), 10), "budget is 100 parameters: the narrowest network of plain blocks"),
  (lambda: MLP(depth=5, residual=True), "depth is 5, expected an even number of layers from 2 on"),
  (lambda: MLP(depth=1), "depth is 1, expected a number of layers from 2 on"),
  (lambda: MLP(kernel_init="hee"), "kernel_init is 'hee': did you mean he?"),
  (lambda: GoogLeNet(("3a", "6a")), "modules has '6a'"),
  (lambda: shapes(BlockNet("shuffled", width=5), (8, 8, 1)), "multiples of groups=2 channels"),
  (lambda: shapes(ResNet20(block=partial(BasicBlock, shortcut="C")), (8, 8, 1)), "shortcut is 'C', expected"),
])  # fmt: skip
def test_modules_refuse_what_they_cannot_build(make, words):
  with pytest.raises(ValueError, match=words):
    make()
