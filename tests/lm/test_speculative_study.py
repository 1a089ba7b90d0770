"""The study of speculative decoding: what is timed and counted, formulas beside it, what does not go together."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lm import _trained, pretrain, speculative
from experiments.lm._text import Model
from experiments.lm._trained import Decoder, cut_prompts
from mlnotes.data import Corpus, Windows
from mlnotes.data.tokenizer import train_tokenizer
from mlnotes.engine.errors import InputError
from mlnotes.lm import generate, make_llama
from mlnotes.lm.speculative import expected_speedup

LENGTH = 12


def corpus_of(letters="abcd"):
  tokenizer = train_tokenizer("characters", (letters,), 0, ())
  tokens = np.random.default_rng(0).integers(0, tokenizer.vocab_size, 60)
  return Corpus("noise", Windows(tokens, LENGTH), Windows(tokens[:41], LENGTH), tokenizer)


def decoder(seed, depth, length=LENGTH, corpus=None):
  corpus = corpus or corpus_of()
  module = make_llama(corpus.vocab_size, length, depth, 2, 8, tied=False)
  params = module.init(jax.random.key(seed), jnp.zeros((1, 2), int))["params"]
  params = jax.tree.map(lambda x: 25 * x if x.ndim == 2 else x, params)
  return Decoder(module, params, corpus, pretrain.Config(dataset=corpus.name))


@pytest.fixture(scope="module")
def pair():
  return decoder(1, 1), decoder(2, 1)


def configure(**flags):
  return speculative.Config(**{**dict(drafted=(2,), prompts=2, prompt_tokens=3, tokens=5, rounds=2), **flags})


def test_a_race_is_by_turns_with_a_key_and_a_prompt_of_each_texts_own(monkeypatch):
  """Of a clock that goes on by what each way takes."""
  now, met = [0.0], []
  monkeypatch.setattr(speculative.time, "perf_counter", lambda: now[0])

  def way(name, seconds):
    def run_one(key, prompt):
      met.append((name, jax.random.key_data(key).tolist(), prompt.tolist()))
      now[0] += seconds
      text = jnp.full(5, prompt[0])
      if name == "alone":
        return text
      return SimpleNamespace(rounds=jnp.int32(2), accepted=jnp.int32(len(met)), refused=jnp.int32(1), tokens=text)

    return run_one

  monkeypatch.setattr(speculative.jax, "block_until_ready", lambda x: x)
  prompts = np.array([[1, 1, 1], [2, 2, 2]])
  ways = {2: way("two", 0.5), 4: way("four", 0.25)}
  clock, found, texts, shown = speculative.race(configure(), way("alone", 1.0), ways, prompts)
  assert (
    clock.tolist() == [1] * 4 and found[2].seconds.tolist() == [0.5] * 4 and found[4].seconds.tolist() == [0.25] * 4
  )
  names, keys, asked = zip(*met[3:])
  assert (
    names == ("alone", "two", "four") * 4 and [prompt[0] for prompt in asked] == [1] * 3 + [2] * 3 + [1] * 3 + [2] * 3
  )
  assert len({tuple(key) for key in keys}) == 4 and keys[0] == keys[1] == keys[2]
  assert found[2].accepted.tolist() == [5, 8, 11, 14] and found[4].accepted.tolist() == [6, 9, 12, 15]
  assert found[2].rounds.tolist() == [2] * 4 and found[2].refused.tolist() == [1] * 4
  assert texts.tolist() == [[1] * 8, [2] * 8] * 2 and len(shown[4]) == 4


def test_figures_stand_beside_the_formulas():
  array = lambda *values: np.array(values)
  found = {
    2: speculative.Way(array(0.5, 0.5, 0.25), array(4, 4, 4), array(6, 2, 4), array(2, 4, 3)),
    4: speculative.Way(array(1.0, 1.0, 1.0), array(1, 1, 1), array(4, 0, 2), array(0, 1, 1)),
  }
  costs = speculative.Costs(0.1, {2: 1.2, 4: 1.5})
  figures = speculative.gather(configure(tokens=50), array(1.0, 2.0, 1.0), found, 0.6, costs)
  assert figures["target_tokens_per_second"] == 50 and figures["overlap"] == 0.6 and figures["cost_ratio"] == 0.1
  of = lambda g, name: figures[f"drafted_{g}/{name}"]
  assert of(2, "acceptance") == pytest.approx(12 / 21) and of(2, "tokens_per_call") == pytest.approx(2)
  assert of(4, "acceptance") == pytest.approx(6 / 8) and of(4, "tokens_per_call") == pytest.approx(3)
  assert (of(2, "speedup"), of(4, "speedup")) == (2, 1)
  for g, cost in costs.target.items():
    mean = 1 + sum(0.6**i for i in range(1, g + 1))
    assert of(g, "expected_tokens") == pytest.approx(mean)
    assert of(g, "expected_speedup") == pytest.approx(mean / (0.1 * g + 1))
    assert of(g, "expected_speedup_of_calls") == pytest.approx(mean / (0.1 * g + cost))
  assert (figures["best_drafted"], figures["best_speedup"]) == (2, 2)
  # Leviathan et al. 2023, table 1: T5 at g = 7, a = 0.75, c = 0.02 has theirs within rounding of the sum.
  assert float(expected_speedup(0.75, 7, 0.02)) == pytest.approx((1 - 0.75**8) / (0.25 * 1.14), rel=1e-5)


@pytest.mark.parametrize("temperature, top_k", [(0.7, 0), (1.0, 2)])
def test_the_overlap_is_of_the_distributions_that_are_drawn_from(pair, temperature, top_k):
  target, draft = pair
  texts = np.random.default_rng(3).integers(0, 4, (3, 8))
  found = speculative.measure_overlap(configure(temperature=temperature, top_k=top_k), *pair, texts)

  def chances(run):
    logits = np.asarray(run.module.apply({"params": run.params}, jnp.asarray(texts)), np.float64)
    if top_k:
      logits = np.where(logits >= np.sort(logits)[..., [-top_k]], logits, -np.inf)
    exp = np.exp(logits / temperature)
    return (exp / exp.sum(-1, keepdims=True))[:, 2:-1]  # of what follows the prompt of three

  assert found == pytest.approx(np.minimum(chances(target), chances(draft)).sum(-1).mean(), rel=1e-5)


def test_flags_reach_both_ways(pair):
  """Of one likeliest token: what is written is the target's, which is not the draft's."""
  prompt = jnp.asarray([1, 2, 3])
  greedy = [generate(x.module, {"params": x.params}, prompt[None], count=5).tokens[0].tolist() for x in pair]
  assert greedy[0] != greedy[1]
  alone, ways = speculative.make_ways(configure(top_k=1), *pair)
  text = ways[2](jax.random.key(0), prompt)
  assert alone(jax.random.key(0), prompt).tolist() == greedy[0] == text.tokens[3:].tolist()
  assert text.drafted == 2 * text.rounds and text.refused > 0
  hot, _ = speculative.make_ways(configure(temperature=50.0), *pair)
  assert len({tuple(hot(jax.random.key(i), prompt).tolist()) for i in range(9)}) > 7
  assert speculative.greedy_agreement(configure(), *pair, np.array([[1, 2, 3], [0, 0, 1]])) == 1


def test_costs_are_in_calls_of_the_target_for_one_token(monkeypatch, pair):
  target, draft = pair

  def time_call(run_of, prompt, count, room):
    assert room == 3 + 5 + 4 and len(prompt) == 3
    return lambda: 0.5 if run_of is draft else 2.0 + count

  monkeypatch.setattr(speculative, "time_call", time_call)
  costs = speculative.measure_costs(configure(drafted=(1, 4)), target, draft, np.array([1, 2, 3]))
  assert costs.draft == pytest.approx(0.5 / 3) and costs.target == {1: 4 / 3, 4: 7 / 3}


def test_runs_that_do_not_go_together():
  check = lambda **flags: speculative.check_pair(configure(**flags), decoder(0, 1), decoder(0, 1))
  check(tokens=8)  # 3 + 8 + 2 - 1 places
  with pytest.raises(InputError, match=r"--tokens=9 is out of range: .*at most 8.*windows of 12"):
    check(tokens=9)
  with pytest.raises(InputError, match=r"at most 8.*windows of 12"):
    speculative.check_pair(configure(tokens=9), decoder(0, 1, 99), decoder(0, 1))
  other = decoder(0, 1, corpus=corpus_of("abce"))
  with pytest.raises(InputError, match=r"--draft reads other tokens .* than --target .*one tokenizer"):
    speculative.check_pair(configure(), decoder(0, 1), other)
  wider = decoder(0, 1)
  wider = wider._replace(module=wider.module.clone(vocabulary=9))
  with pytest.raises(InputError, match="--draft has 9 embeddings, --target 5"):
    speculative.check_pair(configure(), decoder(0, 1), wider)


@pytest.mark.parametrize("flags, words", [
  (dict(drafted=(4, 2)), "--drafted=4,2"),
  (dict(drafted=()), "--drafted="),
  (dict(drafted=(0, 2)), "--drafted=0,2"),
  (dict(tokens=0), "--tokens=0"),
  (dict(prompts=0), "--prompts=0"),
  (dict(rounds=0), "--rounds=0"),
  (dict(temperature=-1.0), "--temperature=-1"),
  (dict(top_k=-1), "--top_k=-1"),
  (dict(target="x", tokens=125), "--tokens=125 is out of range: expected at most 124.*windows of 128"),
])  # fmt: skip
def test_what_is_out_of_range_is_one_sentence(flags, words):
  with pytest.raises(InputError, match=words):
    configure(**flags)


def test_prompts_are_stretches_of_the_test_text_apart():
  found = cut_prompts(corpus_of(), 3, 5)
  tokens = corpus_of().test.arrays["tokens"]
  np.testing.assert_array_equal(found, [tokens[a : a + 5] for a in (0, 13, 26)])
  with pytest.raises(InputError, match="--prompts=9 of 5 tokens are more than the 41"):
    cut_prompts(corpus_of(), 9, 5)


def test_a_decoder_is_the_run_its_seed_and_its_checkpoint(monkeypatch, tmp_path):
  path = tmp_path / "text.txt"
  path.write_text("a few words " * 9)
  sizes = dict(dataset=str(path), seed=3, seeds=4, devices=2, depth=1, width=8, heads=2, length=6, batch_size=4)
  trained, asked = pretrain.Config(**sizes), []
  model = Model("module", {"w": np.arange(3)})

  def restore(module, directory, config, checkpoint, seed, said):
    asked.append((module, directory, checkpoint, seed, config.devices, said))
    return SimpleNamespace(model=lambda state: model), f"state {seed}"

  monkeypatch.setattr(_trained, "load_config", lambda directory, known, said: ("lm.pretrain", trained))
  monkeypatch.setattr(_trained, "restore_seed", restore)
  found = _trained.load_decoder("draft", tmp_path, "best", 5)
  assert asked == [(pretrain, tmp_path, "best", 5, 1, f"--draft={tmp_path}")] and found.module == "module"
  assert found.params["w"].tolist() == [0, 1, 2] and found.corpus.tokenizer.kind == "characters"
  for change, words in (
    (dict(objective="masked"), "--draft=.* learned by --objective=masked"),
    (dict(packed=True), "--packed"),
  ):
    trained = pretrain.Config(**sizes, **change)
    with pytest.raises(InputError, match=words):
      _trained.load_decoder("draft", tmp_path)


def test_what_would_not_do_is_refused_before_it_is_trained(monkeypatch, pair):
  """Beside a run of another tokenizer, and texts that fit no window."""

  def find_stage(flag, given, module, workdir, **settings):
    return given or pytest.fail("trained")

  monkeypatch.setattr(speculative, "find_stage", find_stage)
  monkeypatch.setattr(speculative, "load_decoder", lambda *_, **__: pair[0])
  monkeypatch.setattr(speculative, "load_data", lambda config: corpus_of("abce"))
  with pytest.raises(InputError, match=r"--draft is empty, .* other tokens than --target=mine: expected a --draft"):
    speculative.main(configure(target="mine"))
  with pytest.raises(InputError, match=r"--tokens=200 .*windows of 128"):
    speculative.main(configure(tokens=200))


def test_both_are_trained_first_and_figures_are_left(monkeypatch, pair, tmp_path):
  stages, loads = [], []

  def find_stage(flag, given, module, workdir, **settings):
    stages.append((flag, given, settings))
    return workdir / flag

  def load(flag, directory, **given):
    loads.append((flag, directory, given))
    return pair[flag == "draft"]

  monkeypatch.setattr(speculative, "find_stage", find_stage)
  monkeypatch.setattr(speculative, "load_decoder", load)
  monkeypatch.setattr(speculative, "load_data", lambda config: pair[0].corpus)
  monkeypatch.setattr(speculative, "time_call", lambda run_of, prompt, count, room: lambda: 1.0 + (run_of is pair[0]))
  flags = dict(draft="mine", checkpoint="best", model_seed=3, data_dir="d", workdir=str(tmp_path))
  assert speculative.main(configure(**flags)) == 0
  given = dict(checkpoint="best", model_seed=3, data_dir="d")
  assert loads == [("draft", tmp_path / "draft", given), ("target", tmp_path / "target", given)]
  assert [stage[:2] for stage in stages] == [("draft", "mine"), ("target", "")]
  (_, _, small), (_, _, large) = stages
  assert large["width"] > small["width"] and large["depth"] > small["depth"] and large["length"] == small["length"]
  card = json.loads((tmp_path / "result.json").read_text())
  figures = {name: x["mean"] for name, x in card["metrics"].items()}
  assert card["finished"] and figures["greedy_agreement"] == 1 and figures["cost_ratio"] == 0.5
  assert 0 < figures["overlap"] < 1 <= figures["drafted_2/tokens_per_call"] <= 3
  assert figures["target_loss"] != figures["draft_loss"]
  assert (tmp_path / "speculative.png").stat().st_size > 9000
  texts = (tmp_path / "texts.txt").read_text()
  assert texts.startswith("Prompts of 3 tokens") and "[" in texts and texts.count("-" * 40) == 4
