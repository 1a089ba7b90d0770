"""Blocks and networks against torch's layers: logits, and gradients by every parameter and by the images, in float64.

The references are written from the papers' figures as functions of Flax's variables, whose kernels are transposed on
the way in: torch's own gradients then have Flax's layout.
"""

from functools import partial

import jax
import numpy as np
import pytest

from mlnotes.nn import MLP, BlockNet, DenseNet, GoogLeNet, ResNet, SqueezeExcitation
from mlnotes.nn.resnet import BasicBlock, BottleneckBlock

torch = pytest.importorskip("torch")
F = torch.nn.functional
pytestmark = pytest.mark.parity


def conv(p, x, stride=1, groups=1):
  kernel = p["kernel"].permute(3, 2, 0, 1).contiguous()
  return F.conv2d(x, kernel, p.get("bias"), stride, kernel.shape[-1] // 2, groups=groups)


def norm(p, x):
  return F.batch_norm(x, None, None, p["scale"], p["bias"], training=True)


def dense(p, x):
  return F.linear(x, p["kernel"].T, p.get("bias"))


def norm_relu(p, x):
  return F.relu(norm(p, x))


def plain(p, x, stride):
  x = norm_relu(p["BatchNorm_0"], conv(p["Conv_0"], x, stride))
  return norm_relu(p["BatchNorm_1"], conv(p["Conv_1"], x))


def residual(p, x, stride, attention=lambda p, y: y, shortcut="B"):
  y = norm_relu(p["BatchNorm_0"], conv(p["Conv_0"], x, stride))
  y = attention(p, norm(p["BatchNorm_1"], conv(p["Conv_1"], y)))
  if shortcut == "A" and y.shape != x.shape:
    x = F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
  elif y.shape != x.shape:
    x = norm(p["shortcut_norm"], conv(p["shortcut_conv"], x, stride))
  return F.relu(x + y)


def squeeze_excitation(p, x):
  p = p["SqueezeExcitation_0"]
  s = torch.sigmoid(dense(p["excite"], F.relu(dense(p["squeeze"], x.mean((2, 3))))))
  return x * s[:, :, None, None]


def cbam(p, x):
  p = p["CBAM_0"]
  mlp = lambda z: dense(p["channel"]["excite"], F.relu(dense(p["channel"]["squeeze"], z)))
  x = (
    x
    * torch.sigmoid(mlp(F.adaptive_avg_pool2d(x, 1)[..., 0, 0]) + mlp(F.adaptive_max_pool2d(x, 1)[..., 0, 0]))[
      ..., None, None
    ]
  )
  return x * torch.sigmoid(conv(p["pixel"]["conv"], torch.cat([x.mean(1, True), x.amax(1, True)], 1)))


def bottleneck(p, x, stride):
  y = norm_relu(p["BatchNorm_0"], conv(p["Conv_0"], x))
  y = norm_relu(p["BatchNorm_1"], conv(p["Conv_1"], y, stride))
  y = squeeze_excitation(p, norm(p["BatchNorm_2"], conv(p["Conv_2"], y)))
  return F.relu(norm(p["shortcut_norm"], conv(p["shortcut_conv"], x, stride)) + y)


def preactivation(p, x, stride, first=False):
  y = norm_relu(p["BatchNorm_0"], x)
  if "shortcut_conv" in p:
    x = conv(p["shortcut_conv"], y, stride)
  elif first:
    x = y
  return x + conv(p["Conv_1"], norm_relu(p["BatchNorm_1"], conv(p["Conv_0"], y, stride)))


def inception(p, x):
  layer = lambda name, x: norm_relu(p[f"{name}_norm"], conv(p[f"{name}_conv"], x))
  pooled = F.max_pool2d(x, 3, 1, 1)
  three, five = layer("three", layer("before_three", x)), layer("five", layer("before_five", x))
  return torch.cat([layer("one", x), three, five, layer("pooled", pooled)], 1)


def inception_block(p, x, stride):
  x = F.max_pool2d(x, 3, stride, 1) if stride > 1 else x
  return inception(p["Inception_1"], inception(p["Inception_0"], x))


def dense_layer(p, x):
  y = x
  for number in range(len(p) // 2):
    y = conv(p[f"Conv_{number}"], norm_relu(p[f"BatchNorm_{number}"], y))
  return torch.cat([x, y], 1)


def dense_block(p, x, stride):
  x = F.avg_pool2d(conv(p["Conv_0"], norm_relu(p["BatchNorm_0"], x)), stride)
  return dense_layer(p["DenseLayer_1"], dense_layer(p["DenseLayer_0"], x))


def separable(p, x, stride):
  for number, step in enumerate((stride, 1)):
    q = p[f"SeparableConv_{number}"]
    x = norm_relu(q["depthwise_norm"], conv(q["depthwise"], x, step, groups=x.shape[1]))
    x = norm_relu(q["pointwise_norm"], conv(q["pointwise"], x))
  return x


def shuffled(p, x, stride):
  y = norm_relu(p["BatchNorm_0"], conv(p["Conv_0"], x, groups=2))
  y = F.channel_shuffle(y, 2)
  y = norm(p["BatchNorm_1"], conv(p["Conv_1"], y, stride, groups=y.shape[1]))
  y = norm(p["BatchNorm_2"], conv(p["Conv_2"], y, groups=2))
  if stride == 1:
    return F.relu(x + y)
  return F.relu(torch.cat([F.avg_pool2d(x, 3, stride, 1, count_include_pad=False), y], 1))


def classify(p, x):
  return dense(p["head"], x.mean((2, 3)))


def skeleton(block, p, x, preactivated=False):
  x = conv(p["stem_conv"], x)
  x = x if preactivated else norm_relu(p["stem_norm"], x)
  for name in sorted(name for name in p if name.startswith("stage")):
    first = {"first": True} if block is preactivation and name == "stage0_block0" else {}
    x = block(p[name], x, 2 if name[5] != "0" and name.endswith("block0") else 1, **first)
  return classify(p, norm_relu(p["last_norm"], x) if preactivated else x)


def check(network, reference, shape=(4, 6, 6, 2), gradients=True):
  """Both on drawn parameters, none of which is zero or one."""
  generator = np.random.default_rng(0)

  def draw(a):
    normal = generator.normal(size=a.shape)
    return normal / np.sqrt(np.prod(a.shape[:-1])) if a.ndim > 1 else 1 + normal / 2

  x, weights = generator.normal(size=shape), generator.normal(size=(shape[0], 3))
  with jax.enable_x64(True):
    variables = jax.eval_shape(partial(network.init, train=False), jax.random.key(0), x)
    params = jax.tree.map(draw, variables["params"])
    stats = jax.tree.map(lambda a: np.zeros(a.shape), variables["batch_stats"])

    def loss(params, x):
      y, _ = network.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"])
      return (y * weights).sum(), y

    if gradients:
      (_, logits), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)
    else:
      _, logits = jax.jit(loss)(params, x)
  theirs = jax.tree.map(lambda a: torch.tensor(a, requires_grad=True), params)
  images = torch.tensor(x, requires_grad=True)
  expected = reference(theirs, images.permute(0, 3, 1, 2) if x.ndim == 4 else images)
  np.testing.assert_allclose(logits, expected.detach(), rtol=1e-10, atol=1e-10)
  if not gradients:
    return
  (expected * torch.tensor(weights)).sum().backward()
  leaves = [*jax.tree.leaves(theirs), images]
  largest = max(float(leaf.grad.abs().max()) for leaf in leaves)
  for (path, found), leaf in zip(jax.tree.leaves_with_path(grads), leaves, strict=True):
    np.testing.assert_allclose(found, leaf.grad, rtol=0, atol=1e-10 * largest, err_msg=jax.tree_util.keystr(path))


BLOCKS = {
  "plain": plain,
  "inception": inception_block,
  "residual": residual,
  "preactivation": preactivation,
  "dense": dense_block,
  "se": partial(residual, attention=squeeze_excitation),
  "cbam": partial(residual, attention=cbam),
  "separable": separable,
  "shuffled": shuffled,
}


@pytest.mark.parametrize("block", BLOCKS)
def test_block(block):
  preactivated = block in ("preactivation", "dense")
  # A block that adds or concatenates its input does so with and without a change of shape.
  stage_sizes = (1, 1) if block in ("residual", "preactivation", "shuffled") else (0, 1)
  network = BlockNet(block, stage_sizes, width={"inception": 8, "shuffled": 8}.get(block, 4), num_classes=3)
  check(network, partial(skeleton, BLOCKS[block], preactivated=preactivated))


def test_cifar_resnet_without_parameters_in_its_shortcuts():
  network = ResNet((0, 1), partial(BasicBlock, shortcut="A"), width=4, num_classes=3)
  check(network, partial(skeleton, partial(residual, shortcut="A")), shape=(4, 7, 7, 3))


def test_bottlenecks_with_attention_after_imagenets_stem():
  block = partial(BottleneckBlock, attention=partial(SqueezeExcitation, reduction=4, use_bias=True))
  network = ResNet((0, 1), block, width=2, num_classes=3, stem="imagenet")

  def reference(p, x):
    x = F.conv2d(x, p["stem_conv"]["kernel"].permute(3, 2, 0, 1), stride=2, padding=3)
    x = F.max_pool2d(norm_relu(p["stem_norm"], x), 3, 2, 1)
    return classify(p, bottleneck(p["stage1_block0"], x, 2))

  check(network, reference, shape=(4, 16, 16, 2))


def test_densenet_bc():
  network = DenseNet((2, 1), growth=3, bottleneck=True, compression=0.5, num_classes=3)

  def reference(p, x):
    x = conv(p["stem_conv"], x)
    x = dense_layer(p["block0_layer1"], dense_layer(p["block0_layer0"], x))
    x = F.avg_pool2d(conv(p["transition1_conv"], norm_relu(p["transition1_norm"], x)), 2)
    return classify(p, norm_relu(p["last_norm"], dense_layer(p["block1_layer0"], x)))

  check(network, reference)


def test_googlenet():
  network = GoogLeNet(("3a", "4a"), width=2, num_classes=3)

  def reference(p, x):
    x = inception(p["module3a"], norm_relu(p["stem_norm"], conv(p["stem_conv"], x)))
    return classify(p, inception(p["module4a"], F.max_pool2d(x, 3, 2, 1)))

  check(network, reference, gradients=False)


@pytest.mark.parametrize("residual", [False, True])
def test_mlp(residual):
  network = MLP(5, 4, num_classes=3, residual=residual)

  def reference(p, x):
    layer = lambda n, x: norm(p[f"norm{n}"], dense(p[f"dense{n}"], x))
    x = F.relu(layer(0, x))
    y = layer(2, F.relu(layer(1, x)))
    return dense(p["head"], F.relu(x + y if residual else y))

  check(network, reference, shape=(6, 7))
