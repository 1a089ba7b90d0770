"""Experts in a Transformer of text: the losses that are minimised, what padding and room do, figures, flags."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.attention import _experts_report, experts
from mlnotes.attention import Mask
from mlnotes.data import Corpus, Windows
from mlnotes.data.tokenizer import train_tokenizer
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import set_hparams

RNG = np.random.default_rng(0)
TEXT = train_tokenizer("characters", ("aB1 ,\n",), 0, ("<end>",))
CORPUS = Corpus("noise", Windows(RNG.integers(0, 7, 60), 4, 1), Windows(RNG.integers(0, 7, 25), 4, 4), TEXT)
SIZES = dict(
  length=4, batch_size=4, depth=2, width=4, heads=2, experts=3, k=2, form="mixtral", capacity_factor=1.0, balance=0.3,
  z_loss=0.2,
  optimizer="sgd", momentum=0.0, learning_rate=1.0, schedule="constant", warmup_steps=0, clip_norm=0.0, steps=4,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def small():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(experts, "load_data", lambda config: CORPUS)
    yield


def configure(**flags):
  return experts.Config(**{**SIZES, **flags})


@functools.cache
def built(**flags):
  """(experiment, its first state with routers that prefer one expert, a training batch)."""
  experiment = experts.make(configure(**flags))
  batch = {"tokens": jnp.asarray(CORPUS.train.read(np.array([3, 11, 40, 7]))["tokens"])}
  state = jax.jit(experiment.init)(jax.random.key(7), batch)
  lean = lambda path, x: x * 8 if "router" in jax.tree_util.keystr(path) else x
  return experiment, state._replace(params=jax.tree_util.tree_map_with_path(lean, state.params)), batch


def route_by_hand(logits, k):
  """(chosen (T, E), probability (T, E))."""
  ranks = np.argsort(np.argsort(-logits, -1), -1)
  return (ranks < k).astype(np.float32), np.asarray(jax.nn.softmax(logits))


# -- the losses --------------------------------------------------------------------------------------------------------


def test_an_update_descends_the_loss_with_both_of_the_routers():
  """The gradient of cross-entropy + .3 sum_layers E sum f P + .2 sum_layers mean(lse^2), from the routers' logits."""
  experiment, state, batch = built()
  module = experts.build_model(configure(), CORPUS.vocab_size)
  tokens = batch["tokens"]

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def objective(params):
    logits, found = module.apply(
      {"params": params}, tokens[:, :-1], Mask(causal=True), capture_intermediates=True, mutable=["intermediates"]
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()
    balance, z, routers = 0.0, 0.0, []
    for block in ("block0", "block1"):
      (scores,) = found["intermediates"]["transformer"][block]["feed_forward"]["router"]["__call__"]
      routers.append(scores)
      chosen = jnp.sum(jax.nn.one_hot(jnp.argsort(scores, -1)[:, -2:], 3), 1) / 2
      balance += 3 * jnp.sum(jax.lax.stop_gradient(chosen.mean(0)) * jax.nn.softmax(scores).mean(0))
      z += jnp.mean(jax.nn.logsumexp(scores, -1) ** 2)
    right = jnp.mean(jnp.argmax(logits, -1) == tokens[:, 1:])
    return loss + 0.3 * balance + 0.2 * z, (loss, balance, z, right, routers)

  (_, (loss, balance, z, right, routers)), grads = objective(state.params)
  new, metrics = jax.jit(experiment.step)(state, batch)
  wanted = jax.tree.map(lambda p, g: p - g, state.params, grads)
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(new.params), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5, err_msg=jax.tree_util.keystr(path))
  loads = [route_by_hand(np.asarray(scores), 2)[0].mean(0) / 2 for scores in routers]
  wanted = {"loss": loss, "balance_loss": balance / 2, "z_loss": z / 2, "accuracy": right}
  for name, value in {**wanted, "largest_load": 3 * np.max(loads), "grad_norm": optax.global_norm(grads)}.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
  assert metrics["largest_load"] > 1.1


def test_the_balance_loss_evens_the_loads_and_without_it_they_stay():
  """Of the same first state, whose routers prefer an expert; the weight is in the state."""
  experiment, state = experts.make(configure(capacity_factor=0.0)), built()[1]
  state = set_hparams(state, learning_rate=0.1, z_loss=0.0)
  batch = {"tokens": jnp.asarray(CORPUS.train.read(np.arange(56))["tokens"])}
  step = jax.jit(lambda state: jax.lax.scan(lambda s, _: experiment.step(s, batch), state, None, length=150))
  largest = {w: np.asarray(step(set_hparams(state, balance=w))[1]["largest_load"]) for w in (0.0, 2.0)}
  assert largest[0.0][0] == largest[2.0][0] > 1.2
  assert largest[2.0][-20:].mean() < 1.15 and largest[0.0][-20:].mean() > largest[2.0][-20:].mean() + 0.1


def test_what_exceeds_an_experts_room_is_dropped_and_counted():
  """16 tokens, 32 choices, room for 10 of each expert."""
  experiment, state, batch = built()
  _, metrics = jax.jit(experiment.step)(state, batch)
  logits = experiment.model(state).routers(batch["tokens"][:, :-1])
  assert logits.shape == (2, 4, 4, 3)
  over = [np.maximum(route_by_hand(np.asarray(x).reshape(-1, 3), 2)[0].sum(0) - 10, 0).sum() / 32 for x in logits]
  np.testing.assert_allclose(metrics["dropped"], np.mean(over), atol=1e-6)
  assert metrics["dropped"] > 0.02
  free = experts.make(configure(capacity_factor=0.0))
  assert free.model(state).module.transformer.make_feed_forward(0).capacity_factor is None
  assert "dropped" not in jax.eval_shape(free.step, state, batch)[1]


def test_what_fills_up_the_last_batch_takes_no_room_and_is_not_judged():
  """In front, so that it would arrive before what is real."""
  experiment, state, batch = built()
  evaluate = jax.jit(experiment.evaluate)
  tokens = batch["tokens"]
  mask = jnp.array([0.0, 0.0, 1.0, 1.0])
  found, other = (
    evaluate(state, {"tokens": jnp.concatenate([rest, tokens[2:]]), "mask": mask})
    for rest in (tokens[:2], tokens[2:][::-1])
  )
  for name in ("loss", "accuracy"):
    assert found[name].count == 2
    np.testing.assert_allclose(found[name].total, other[name].total, rtol=1e-5)
  whole = evaluate(state, {"tokens": tokens, "mask": jnp.ones(4)})
  assert whole["loss"].count == 4 and not np.isclose(whole["loss"].total, 2 * found["loss"].total, rtol=1e-3)


def test_a_token_has_as_many_active_parameters_as_in_a_dense_network():
  for k, hidden in ((1, 16), (2, 8)):
    module = experts.build_model(configure(k=k, form="switch"), 7)
    params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    assert params["transformer"]["block1"]["feed_forward"]["widen"].shape == (3, 4, hidden)
  assert experts.build_model(configure(hidden=5), 7).transformer.make_feed_forward(0).hidden == 5


# -- figures -----------------------------------------------------------------------------------------------------------


def test_even_and_collapsed_loads_have_the_figures_they_should():
  even = np.tile(np.arange(4), 6).reshape(1, 12, 2)
  alone = np.zeros((1, 12, 1), int)
  found = _experts_report.measure_choices(even, 4)
  assert found == {"imbalance": 0.0, "effective_experts": pytest.approx(4)}
  assert _experts_report.measure_choices(alone, 4) == {"imbalance": 3.0, "effective_experts": 1.0}
  # Two layers that lean the other way do not make up for each other.
  lean = np.array([[0] * 9 + [1] * 3, [1] * 9 + [0] * 3])[:, :, None]
  assert _experts_report.measure_choices(lean, 2)["imbalance"] == pytest.approx(0.5)
  mixed = np.concatenate([np.tile([0, 1], 6)[None], np.zeros((1, 12), int)])[:, :, None]
  assert _experts_report.measure_choices(mixed, 2) == {"imbalance": 1.0, "effective_experts": 1.0}


def test_tokens_have_kinds():
  words = ("a", "ß", "Q", "7", " ", "\t", "\n", "", ",", "�", "the", " the")
  kinds = [_experts_report.KINDS[_experts_report.kind_of_token(word)] for word in words]
  assert kinds == ["lower case", "lower case", "capitals", "digits", "spaces", "spaces", "line ends", "line ends",
                   "other signs", "other signs", "lower case", "spaces"]  # fmt: skip


def test_the_report_judges_every_token_of_the_test_text(tmp_path, monkeypatch):
  experiment, state, _ = built()
  seen = []
  draw = _experts_report.draw_experts
  monkeypatch.setattr(_experts_report, "draw_experts", lambda *args: seen.append(args) or draw(*args))
  figures = experiment.report(state, tmp_path)
  (choices, words, count, path), model = seen[0], experiment.model(state)
  tokens = CORPUS.test.read(np.arange(6))["tokens"][:, :-1]  # 25 tokens: 6 windows, of which 4 are judged at once
  assert choices.shape == (2, 24, 2) and count == 3 and path.stat().st_size > 1000
  assert words == [TEXT.decode([i]) for i in tokens.reshape(-1)]
  for first in (0, 2):
    routers = np.asarray(model.routers(jnp.asarray(tokens[first : first + 4])))
    for layer, logits in enumerate(routers.reshape(2, 16, 3)):
      found = choices[layer, 4 * first : 4 * first + 16]
      np.testing.assert_array_equal(np.sort(found), np.sort(np.argsort(-logits, -1)[:, :2]))
  wanted = _experts_report.measure_choices(choices, 3)
  assert {name: figures[name] for name in wanted} == wanted
  assert {"unigram", "bigram", "train_imbalance", "train_effective_experts"} <= set(figures)


# -- flags -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags, words", [
  ({"k": 4}, "--k=4.*1 to --experts=3"),
  ({"k": 0}, "--k=0"),
  ({"k": 1}, "--k=1 with --form=mixtral"),
  ({"experts": 0}, "--experts=0"),
  ({"heads": 4}, "--heads=4.*even"),
  ({"capacity_factor": 0.1}, "--capacity_factor=0.1.*0.375"),
  ({"capacity_factor": -1.0}, "--capacity_factor=-1.0"),
  ({"balance": -0.1}, "--balance=-0.1"),
  ({"z_loss": -0.1}, "--z_loss=-0.1"),
  ({"hidden": -1}, "--hidden=-1"),
])  # fmt: skip
def test_a_bad_flag_is_one_sentence_that_names_it(flags, words):
  with pytest.raises(InputError, match=words):
    configure(**flags)


def test_one_expert_is_a_dense_network_whose_router_is_idle():
  config = configure(experts=1, k=1)
  assert {"form", "balance", "z_loss"} <= set(config.idle_flags())
  assert not {"form", "balance", "z_loss"} & set(configure().idle_flags())
