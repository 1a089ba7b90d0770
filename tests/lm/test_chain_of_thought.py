"""Calculating with written steps: what is learned, what is scored, how solutions vote, what flags reach."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.lm import chain_of_thought
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import root_key
from mlnotes.lm import Generated
from mlnotes.lm.tasks import decode_tokens, is_held_out, write_solution
from mlnotes.lm.tasks.arithmetic import ALPHABET, Problem
from mlnotes.optim import eval_params
from mlnotes.optim.flags import make_optimizer
from mlnotes.optim.lookahead import LookaheadState

SMALL = dict(
  task="addition", digits=2, second_digits=1, depth=1, heads=2, width=8, batch_size=16, test_problems=24, steps=4,
  warmup_steps=0, log_every=2, eval_every=0, samples=3, vote_problems=5,
)  # fmt: skip


def small(**more):
  return chain_of_thought.Config(**{**SMALL, **more})


def start(config):
  experiment, feeds = chain_of_thought.make(config), chain_of_thought.make_feeds(config)
  batch = jax.jit(lambda arrays: feeds.train.draw(arrays, root_key(0), 0))(feeds.train.arrays)
  state = jax.jit(experiment.init)(root_key(0), batch)
  # What is said hangs on what was read, even before it has learned.
  return (
    experiment,
    feeds,
    state._replace(params=jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, state.params)),
    batch,
  )


@pytest.fixture(scope="module")
def started():
  return start(small(lookahead=2, adam_eps=1e-3))


@pytest.fixture(scope="module")
def tests(started):
  given = started[1].evaluate
  draw = jax.jit(lambda i: given.draw(given.arrays, i))
  return [draw(i) for i in range(given.num_batches)]


def problems_of(form, batch):
  first = batch["tokens"][:, : form.digits] - 1
  return Problem(first, batch["tokens"][:, form.digits + 1 : form.prompt_size - 1] - 1)


def right_traces(form, prompts, wrong=(), misspelt=()):
  """What a model writes that knows everything, but for the answers of `wrong` rows and the steps of `misspelt` ones."""
  tokens = jax.vmap(lambda problem: write_solution(form, problem).tokens)(problems_of(form, {"tokens": prompts}))
  found = tokens[:, form.prompt_size :]
  for rows, column in ((wrong, -2), (misspelt, 0)):
    rows = jnp.array(rows, int)
    found = found.at[rows, column].set(1 + found[rows, column] % 10)
  return Generated(found, jnp.full(len(found), found.shape[1]), jnp.zeros(found.shape))


def test_what_is_tested_is_never_learned(started, tests):
  config, (_, feeds, _, batch) = small(), started
  form = chain_of_thought.make_form(config)
  is_held = jax.jit(jax.vmap(is_held_out))
  held = lambda batch: np.asarray(is_held(problems_of(form, batch)))
  later = jax.jit(lambda: feeds.train.draw(feeds.train.arrays, root_key(1), 9))()
  assert not held(batch).any() and not held(later).any() and np.any(later["tokens"] != batch["tokens"])
  assert all(held(batch).all() for batch in tests)
  assert sum(float(batch["mask"].sum()) for batch in tests) == 24
  assert decode_tokens(batch["tokens"][0]).count("#") == 1


def test_an_update_is_along_the_gradient_of_what_stands_behind_the_prompt(started):
  config, (experiment, _, state, batch) = small(lookahead=2, adam_eps=1e-3), started
  form, module = chain_of_thought.make_form(config), experiment.model(state).module

  def nats(params):
    logits = module.apply({"params": params}, batch["tokens"][:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["tokens"][:, 1:])
    return jnp.mean(losses[:, form.prompt_size - 1 :])

  @jax.jit
  def update(params):
    loss, grads = jax.value_and_grad(nats)(params)
    optimizer = make_optimizer(config, config.steps)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return loss, optax.apply_updates(params, updates)

  loss, expected = update(state.params)
  after, metrics = jax.jit(experiment.step)(state, batch)
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), after.params, expected)
  assert after.step == 1


def test_an_evaluation_scores_what_the_averaged_model_writes_by_itself(started, tests):
  """Token for token without a cache; of Lookahead's slow weights; copies that fill a batch up do not count."""
  experiment, _, state, _ = started
  form, batch = chain_of_thought.make_form(small()), tests[1]  # 8 of the 16 fill it up
  slow = jax.tree.map(lambda x: x + 0.3 * jnp.sin(9 * x), state.params)
  is_lookahead = lambda node: isinstance(node, LookaheadState)
  put = lambda node: node._replace(slow=slow) if is_lookahead(node) else node
  opt_state = jax.tree.map(put, state.opt_state, is_leaf=is_lookahead)
  state = state._replace(opt_state=opt_state)
  params = eval_params(opt_state, state.params)
  assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(state.params)))
  module = experiment.model(state).module
  tokens = jnp.pad(batch["tokens"][:, : form.prompt_size], ((0, 0), (0, form.trace_size)))

  @jax.jit
  def write(tokens):
    def one(i, tokens):
      said = jnp.argmax(module.apply({"params": params}, tokens[:, :-1]), -1)[:, i - 1]
      return tokens.at[:, i].set(said)

    return jax.lax.fori_loop(form.prompt_size, form.size, one, tokens)

  written = np.asarray(write(tokens))[:, form.prompt_size :]
  ended = np.array([[*row, ALPHABET.index(".")].index(ALPHABET.index(".")) + 1 for row in written])
  found = jax.jit(experiment.evaluate)(state, batch)
  assert found["tokens"].total == np.minimum(ended, form.trace_size)[:8].sum()
  logits = jax.jit(lambda tokens: module.apply({"params": params}, tokens))(batch["tokens"][:, :-1])
  nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch["tokens"][:, 1:])[:8, form.prompt_size - 1 :]
  np.testing.assert_allclose(found["loss"].total / found["loss"].count, nats.mean(), rtol=1e-5)
  assert {name: float(found[name].count) for name in ("accuracy", "right_traces", "tokens", "loss")} == {
    "accuracy": 8, "right_traces": 8, "tokens": 8, "loss": 8 * form.trace_size
  }  # fmt: skip


def test_the_answer_alone_counts_and_steps_are_counted_beside_it(started, tests, monkeypatch):
  experiment, _, state, _ = started
  form = chain_of_thought.make_form(small())

  def write(config, module, params, prompts, keys=None):
    full = right_traces(form, tests[0]["tokens"][:, : form.prompt_size], wrong=(0, 3, 5), misspelt=(5, 6))
    return full._replace(length=full.length - jnp.arange(16))

  monkeypatch.setattr(chain_of_thought, "write", write)
  found = {
    name: float(x.total) for name, x in jax.jit(lambda *given: experiment.evaluate(*given))(state, tests[0]).items()
  }
  assert (found["accuracy"], found["right_traces"]) == (13, 12)
  assert found["tokens"] == 16 * form.trace_size - 120
  scores = chain_of_thought.score_written(form, tests[0], write(*[None] * 4))
  np.testing.assert_array_equal(np.flatnonzero(~scores.digits[:, -1]), [0, 3, 5])
  assert np.all(scores.digits[:, :-1])


def test_without_steps_there_are_no_traces_to_be_right():
  config = small(thought="none")
  experiment, given = chain_of_thought.make(config), chain_of_thought.make_feeds(config).evaluate
  batch = jax.eval_shape(lambda: given.draw(given.arrays, 0))
  state = jax.eval_shape(experiment.init, root_key(0), batch)
  assert set(jax.eval_shape(experiment.evaluate, state, batch)) == {"loss", "accuracy", "token_accuracy", "tokens"}


def test_solutions_are_drawn_at_the_temperature(started, tests):
  _, _, state, _ = started
  config = small()
  form, module = chain_of_thought.make_form(config), chain_of_thought.build_module(config)
  prompts = tests[0]["tokens"][:, : form.prompt_size]
  keys = jax.random.split(root_key(0), len(prompts))

  def write(temperature, keys):
    config = small(temperature=temperature)
    return np.asarray(
      jax.jit(lambda p, k: chain_of_thought.write(config, module, p, prompts, k))(state.params, keys).tokens
    )

  likeliest = write(1.0, None)
  np.testing.assert_array_equal(write(1e-4, keys), likeliest)
  assert np.mean(write(50.0, keys) != likeliest) > 0.5


def test_votes_are_of_groups_and_tokens_of_all_their_solutions(tests, monkeypatch):
  """Of a model that is right in two of three solutions, and otherwise says any of many answers."""
  config = small(samples=3, vote_problems=4)
  form, problems = chain_of_thought.make_form(config), jax.device_get(tests[0])
  drawn, in_parts = [], chain_of_thought._in_parts
  monkeypatch.setattr(chain_of_thought, "_in_parts", lambda f, given: drawn.append(given["keys"]) or in_parts(f, given))

  def write(config, module, params, prompts, keys):
    return right_traces(form, prompts, wrong=(0, 4, 6, 8, 9))._replace(length=jnp.arange(12))

  monkeypatch.setattr(chain_of_thought, "write", write)
  votes = chain_of_thought.count_votes(config, None, None, problems)
  # Solutions 0 1 2 | 3 4 5 | 6 7 8 | 9 10 11 of four problems: 0, 4, 6, 8 and 9 are wrong.
  assert list(votes) == [1, 2, 3]
  assert votes[1] == (pytest.approx(7 / 12), 5.5)
  # Of two, the first of those that are as common: wrong where the first is.
  assert votes[2] == (pytest.approx(1 / 4), 11)
  # Both wrong ones of the third say the same.
  assert votes[3] == (pytest.approx(3 / 4), 16.5)
  assert len({tuple(x) for x in drawn[0]}) == 12
  assert chain_of_thought.count_votes(small(samples=0), None, None, problems) == {}


def test_rows_in_parts_are_all_of_them(monkeypatch):
  monkeypatch.setattr(chain_of_thought, "_AT_ONCE", 4)
  sizes = []
  found = chain_of_thought._in_parts(lambda part: sizes.append(len(part["x"])) or part, {"x": np.arange(10)})
  np.testing.assert_array_equal(found["x"], np.arange(10))
  assert sizes == [4, 4, 4]


def test_a_report_has_votes_traces_and_a_picture(started, tests, tmp_path, monkeypatch):
  config, (experiment, _, state, _) = small(), started
  form = chain_of_thought.make_form(config)

  def write(config, module, params, prompts, keys=None):
    return right_traces(form, prompts, wrong=(1,), misspelt=(2,))

  monkeypatch.setattr(chain_of_thought, "write", write)
  found = experiment.report(state, tmp_path)
  assert found["problems_read"] == 4 * 16 and found["tokens_read"] == 4 * 16 * (form.size - 1)
  assert found["accuracy_of_1"] == pytest.approx(14 / 15) and found["accuracy_of_3"] == 1
  assert found["tokens_of_vote"] == 3 * form.trace_size
  text = (tmp_path / "traces.txt").read_text()
  assert text.startswith("95.8% of 24 answers are right, 1 are wrong.")
  lines = text.splitlines()
  assert lines[4].startswith(decode_tokens(tests[0]["tokens"][0])) and lines[5] == "  right"
  assert lines[8].startswith("  wrong, expected ") and lines[11].startswith("  right, expected ")
  assert "Wrong ones:" in lines
  assert (tmp_path / "accuracy.png").stat().st_size > 5000


def test_flags_reach_problems_and_network():
  written = lambda **flags: decode_tokens(
    chain_of_thought.make_feeds(small(batch_size=1, **flags)).train.draw((), root_key(3), 0)["tokens"][0]
  )
  text = written(task="multiplication", digits=3, second_digits=2)
  assert text[3] == "*" and text.count("*") == 1 + 6 and text.count(">") == 2
  text = written(thought="none")
  assert text.partition("=")[2][0] == "#" and text.count("+") == 1
  module = chain_of_thought.build_module(small(model="llama", depth=3, heads=4, width=24))
  body = module.transformer
  assert (module.vocabulary, body.depth, body.heads, body.width) == (len(ALPHABET), 3, 4, 24)
  assert body.rotary_base and body.activation == "swiglu" and module.position == "none"
  assert chain_of_thought.build_module(small(model="gpt2")).position == "learned"


def test_defaults_follow_the_task_and_the_tokens():
  tuned = chain_of_thought.Config.tuned
  assert tuned(task="addition", digits=7).second_digits == 7 and tuned().second_digits == 2
  assert tuned(task="addition", second_digits=1).second_digits == 1
  steps, none = tuned(), tuned(thought="none")
  tokens = lambda config: config.batch_size * chain_of_thought.make_form(config).size
  assert none.batch_size > 4 * steps.batch_size and abs(tokens(none) / tokens(steps) - 1) < 0.01
  assert tuned(thought="none", batch_size=5).batch_size == 5


@pytest.mark.parametrize("flags, words", [
  (dict(digits=1, second_digits=1), "--digits"),
  (dict(digits=65), "at most 64"),
  (dict(second_digits=0), "--second_digits"),
  (dict(heads=3), "--heads"),
  (dict(heads=8, model="llama"), "into even numbers"),
  (dict(temperature=0.0), "--temperature"),
  (dict(samples=-1), "--samples"),
  (dict(vote_problems=0), "--vote_problems"),
  (dict(depth=0), "--depth"),
])  # fmt: skip
def test_what_does_not_fit_is_one_sentence(flags, words):
  with pytest.raises(InputError, match=words):
    small(**flags)


def test_flags_that_do_nothing_say_so():
  names = {"temperature", "vote_problems"}
  assert names <= set(small(samples=0).idle_flags()) and not names & set(small().idle_flags())
