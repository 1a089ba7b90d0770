"""The study of 8 bits: each form against its numbers turned back, losses of the test text, bytes, what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lm import _quantize_report, pretrain, quantize
from experiments.lm._text import Model, window_losses
from experiments.lm._trained import Decoder
from mlnotes.data import Corpus, Windows
from mlnotes.data.tokenizer import train_tokenizer
from mlnotes.engine.errors import InputError
from mlnotes.lm import generate, make_llama
from mlnotes.nn.int8 import dequantize, quantize as quantize_array

LENGTH = 8


@pytest.fixture(scope="module")
def run_of():
  tokenizer = train_tokenizer("characters", ("abcdefg",), 0, ())
  draw = np.random.default_rng(0)
  train, test = (draw.integers(0, tokenizer.vocab_size, size) for size in (60, 8 * 19 + 3))
  corpus = Corpus("noise", Windows(train, LENGTH), Windows(test, LENGTH), tokenizer)
  module = make_llama(corpus.vocab_size, LENGTH, 1, 2, 16, tied=False)
  params = module.init(jax.random.key(1), jnp.zeros((1, 2), int))["params"]
  params = jax.tree.map(lambda x: 25 * x if x.ndim == 2 else x, params)
  return Decoder(module, params, corpus, pretrain.Config())


def configure(**flags):
  return quantize.Config(**{**dict(bits=(8, 3), prompts=2, prompt_tokens=3, tokens=4), **flags})


@pytest.fixture(scope="module")
def found(run_of):
  return quantize.compare(configure(), run_of)


def test_bits_are_steps_of_the_largest_value():
  x = jnp.asarray(np.random.default_rng(1).normal(size=(50, 3)), jnp.float32)
  for bits, most in ((8, 127), (4, 7), (2, 1)):
    found = quantize_array(x, 0, bits)
    assert np.abs(found.values).max(0).tolist() == [most] * 3
    assert np.all(np.abs(dequantize(found) - x) <= found.scale / 2 * (1 + 1e-5))
    np.testing.assert_allclose(found.scale[0], np.abs(x).max(0) / most, rtol=1e-6)
  for bits in (1, 9):
    with pytest.raises(ValueError, match=f"bits is {bits}, expected 2 to 8"):
      quantize_array(x, 0, bits)


def test_losses_are_of_the_whole_test_text(found, run_of):
  """19 windows in two batches; against the report's own losses."""
  expected = window_losses(run_of.corpus, Model(run_of.module, run_of.params))
  assert len(expected) == 8 * 19 and found["float"]["loss"] == pytest.approx(expected.mean(), rel=1e-5)
  assert (found["float"]["rise"], found["float"]["same_next"], found["float"]["same_greedy"]) == (0, 1, 1)
  for form in found.values():
    assert form["rise"] == pytest.approx(form["loss"] - found["float"]["loss"], abs=1e-5)


def test_weights_are_rounded_by_columns_and_stay_floats(found, run_of):
  """Each against a network of the rounded weights; three bits lose more than eight."""
  for bits in (8, 3):
    parts = quantize.split(run_of.params, bits)
    assert len(parts.layers) == 7 and "head" in parts.rest and "embed" in parts.rest
    whole = run_of.params["transformer"]["block0"]["attention"]["key"]["kernel"]
    most = 2 ** (bits - 1) - 1
    scale = np.abs(whole).max(0) / most
    back = quantize.join(parts, run_of.params)
    got = back["transformer"]["block0"]["attention"]["key"]["kernel"]
    np.testing.assert_allclose(got, np.round(np.asarray(whole) / scale) * scale, atol=1e-5)
    assert jax.tree.structure(back) == jax.tree.structure(run_of.params)
    expected = window_losses(run_of.corpus, Model(run_of.module, back)).mean()
    assert found[f"weights_{bits}"]["loss"] == pytest.approx(expected, rel=1e-5)
    assert 0 < quantize.largest_error(run_of.params, parts) <= 0.5001
  assert abs(found["weights_3"]["rise"]) > 3 * abs(found["weights_8"]["rise"]) > 0
  assert found["weights_3"]["same_next"] < found["weights_8"]["same_next"] <= 1


def test_inputs_are_rounded_too_but_for_outliers(found):
  """What is rounded beyond the weights moves the loss by a little; a cache of bytes as well."""
  losses = {name: form["loss"] for name, form in found.items()}
  assert len(set(losses.values())) == len(losses)  # no form is another one
  for name in ("products", "plain", "cache", "all"):
    assert 0 < abs(found[name]["rise"]) < 0.05 and found[name]["same_next"] > 0.9
    assert found[name]["rise_error"] > 0
  assert set(quantize.make_forms(configure(outliers=0.0), {"a": {"kernel": jnp.ones((2, 2))}})) == set(found) - {
    "plain"
  }


def test_outliers_are_those_of_the_flag(run_of):
  """Of so many features of the inputs as are beyond it, counted by a larger and a smaller one."""
  shares = [quantize.count_outliers(run_of, outliers) for outliers in (1e-9, 1.5, 1e9)]
  assert shares[0] == 1 and 0 < shares[1] < 1 and shares[2] == 0
  forms = quantize.make_forms(configure(outliers=1.5), run_of.params)
  assert forms["products"].outliers == forms["all"].outliers == 1.5 and forms["plain"].outliers == 0
  x = quantize.make_judge(run_of.module, forms["all"])
  tokens = jnp.asarray(run_of.corpus.test.read(np.arange(2))["tokens"])
  # Where all features are outliers the rounded weights alone are left.
  everything = forms["products"]._replace(outliers=1e-9)
  nats, _ = quantize.make_judge(run_of.module, everything)(everything.parts, tokens)
  wanted, _ = quantize.make_judge(run_of.module, forms["weights_8"])(forms["weights_8"].parts, tokens)
  np.testing.assert_allclose(nats, wanted, rtol=1e-3, atol=1e-4)
  assert not np.allclose(x(forms["all"].parts, tokens)[0], wanted, rtol=1e-5)


def test_bytes_are_those_of_the_arrays(found, run_of):
  """Of a network of 16 features, 42 hidden ones, 8 tokens and a window of 8."""
  numbers, columns = 4 * 16 * 16 + 3 * 16 * 42, 4 * 16 + 2 * 42 + 16
  rest = 4 * (2 * 8 * 16 + 3 * 16)
  assert found["float"]["weight_bytes"] == 4 * numbers + rest == found["cache"]["weight_bytes"]
  for name in ("weights_8", "products", "plain", "all"):
    assert found[name]["weight_bytes"] == numbers + 4 * columns + rest
  assert found["weights_3"]["weight_bytes"] == 3 * numbers / 8 + 4 * columns + rest
  tokens = 2 * LENGTH  # keys and values
  assert found["float"]["cache_bytes"] == tokens * 2 * 8 * 4 + 4  # two heads of 8, and the length
  assert found["cache"]["cache_bytes"] == found["all"]["cache_bytes"] == tokens * 2 * (8 + 4) + 4
  figures = quantize.gather(found)
  assert figures["weight_ratio"] == found["all"]["weight_bytes"] / found["float"]["weight_bytes"] < 0.5
  assert figures["cache_ratio"] == pytest.approx((tokens * 24 + 4) / (tokens * 64 + 4))
  assert figures["weights_3/loss"] == found["weights_3"]["loss"]


def test_texts_are_the_likeliest_tokens_of_each_form(found, run_of):
  prompts = jnp.asarray(quantize.cut_prompts(run_of.corpus, 2, 3))
  plain = generate(run_of.module, {"params": run_of.params}, prompts, count=4).tokens
  back = quantize.join(quantize.split(run_of.params, 3), run_of.params)
  other = generate(run_of.module, {"params": back}, prompts, count=4).tokens
  assert found["weights_3"]["same_greedy"] == np.mean(plain == other) < 1


def test_a_rise_that_is_none_stands_at_its_own_place(monkeypatch, found, tmp_path):
  """Below 0 too, with the sign that its label says; all within the picture."""
  figures = []
  monkeypatch.setattr("mlnotes.engine.plot.save_figure", lambda figure, path: figures.append(figure))
  rises = {"weights_8": -0.0012, "weights_3": -1e-6}
  given = {name: {**values, "rise": rises.get(name, values["rise"])} for name, values in found.items()}
  _quantize_report.draw(given, (8, 3), 6.0, tmp_path / "x.png")
  curve = figures[0].axes[1]
  low, high = curve.get_ylim()
  (drawn,) = (line.get_ydata() for line in curve.lines if line.get_marker() == "o")
  assert list(drawn) == [-1e-6, -0.0012] and low < min(drawn) < max(drawn) < high
  assert [text.get_text() for text in curve.texts] == ["+0.0000", "-0.0012"]


@pytest.mark.parametrize("change, flags, words", [
  (dict(experts=2), {}, "has experts"),
  (dict(precision="bfloat16"), {}, "computes in bfloat16"),
  ({}, dict(tokens=7), r"--tokens=7 is out of range: .*at most 6.*windows of 8"),
])  # fmt: skip
def test_runs_that_have_no_form_here(change, flags, words, run_of):
  with pytest.raises(InputError, match=words):
    quantize.check_run(configure(**flags), run_of._replace(config=pretrain.Config(**change)))
  quantize.check_run(configure(tokens=6), run_of)


@pytest.mark.parametrize("flags, words", [
  (dict(bits=()), "--bits="),
  (dict(bits=(8, 8)), "--bits=8,8"),
  (dict(bits=(1,)), "--bits=1"),
  (dict(bits=(9,)), "--bits=9"),
  (dict(outliers=-1.0), "--outliers=-1"),
  (dict(pretrain_steps=0), "--pretrain_steps=0"),
  (dict(tokens=63), "--tokens=63 is out of range: expected at most 62.*windows of 64"),
])  # fmt: skip
def test_what_is_out_of_range_is_one_sentence(flags, words):
  with pytest.raises(InputError, match=words):
    configure(**flags)


def test_texts_that_fit_no_window_are_refused_before_a_run_is_trained(monkeypatch):
  monkeypatch.setattr(quantize, "find_stage", lambda *_, **__: pytest.fail("trained"))
  with pytest.raises(InputError, match=r"--tokens=64 is out of range: .*at most 49.*windows of 64"):
    quantize.main(quantize.Config(tokens=64))


def test_a_run_is_trained_first_and_figures_are_left(monkeypatch, run_of, found, tmp_path):
  stages, loads = [], []
  monkeypatch.setattr(
    quantize, "find_stage", lambda flag, given, module, workdir, **more: stages.append((flag, given, more)) or workdir
  )
  monkeypatch.setattr(quantize, "load_decoder", lambda *given: loads.append(given) or run_of)
  monkeypatch.setattr(quantize, "compare", lambda config, run_of: found)
  flags = dict(pretrain_steps=7, checkpoint="best", model_seed=2, data_dir="d", workdir=str(tmp_path), outliers=2.0)
  assert quantize.main(configure(**flags)) == 0
  assert stages == [("pretrained", "", dict(steps=7, eval_every=0))]
  assert loads == [("pretrained", tmp_path, "best", 2, "d")]
  card = json.loads((tmp_path / "result.json").read_text())
  figures = {name: x["mean"] for name, x in card["metrics"].items()}
  assert card["finished"] and 0 < figures["outlier_share"] < 1 and 0 < figures["largest_error_steps"] < 0.5001
  assert figures["all/rise"] == pytest.approx(found["all"]["rise"])
  assert (tmp_path / "quantize.png").stat().st_size > 9000
