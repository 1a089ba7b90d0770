"""The names, axes and settings by which Hugging Face keeps GPT-2, BERT, T5 and Llama, and those of ours.

    module, params = from_hugging_face(config, tensors)      # config.json as a dict, arrays by their names
    config, tensors = to_hugging_face(module, params)

`mlnotes.lm.weights` reads and writes their folders.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from mlnotes.engine.experiment import root_key
from mlnotes.lm.forms import make_bert, make_gpt2, make_llama, make_t5
from mlnotes.lm.model import EncoderDecoder, LanguageModel


class Source(NamedTuple):
  """Where an array stands with them: under `name`, perhaps transposed, as the last axis' part number `part`."""

  name: str
  transposed: bool = False
  part: int = 0
  parts: int = 1


class Kind(NamedTuple):
  """A model type.

  prefix: what its names begin with in a model with a head, and not in one without.
  unused: ends of names of arrays that hold nothing learned, or a head that is not ours.
  copies: {name of an array that may be there again: the one it must equal where the head is tied}.
  read: (config, names that are there) -> module.
  sources: module -> {path of ours: Source}.
  write: module -> config.
  """

  prefix: str
  unused: tuple[str, ...]
  copies: Mapping[str, str]
  read: Callable[[Mapping[str, Any], set[str]], Any]
  sources: Callable[[Any], dict[str, Source]]
  write: Callable[[Any], dict[str, Any]]


def from_hugging_face(
  config: Mapping[str, Any], tensors: Mapping[str, Any], dtype: DTypeLike | None = None
) -> tuple[LanguageModel | EncoderDecoder, dict[str, Any]]:
  """(module, params in float32) of a model of type gpt2, bert, t5 or llama (mistral without its window).

  `dtype` is that of the module's arithmetic. Raises ValueError, one sentence that names it, for another type, a setting
  that our form has not, and an array that is missing, left over, or of another shape.
  """
  kind = _kind(config)
  given = {_usual_name(name, kind.prefix): value for name, value in tensors.items()}
  given = {name: value for name, value in given.items() if not name.endswith(kind.unused)}
  module = kind.read(config, set(given)).clone(dtype=dtype)
  if dtype is not None:
    sides = ("encoder", "decoder") if isinstance(module, EncoderDecoder) else ("transformer",)
    module = module.clone(**{side: getattr(module, side).clone(dtype=dtype) for side in sides})
  shapes = _shapes(module)
  sources = kind.sources(module)
  params: dict[str, Any] = {}
  for path, shape in shapes.items():
    source = sources[path]
    if source.name not in given:
      raise ValueError(f"no tensor {source.name!r} was found, expected one for {path!r}")
    value = np.asarray(given[source.name]).astype(np.float32)
    whole = (*shape[:-1], shape[-1] * source.parts)
    expected = whole[::-1] if source.transposed else whole
    if value.shape != expected:
      raise ValueError(f"tensor {source.name!r} has shape {value.shape}, expected {expected}")
    value = np.split(value.T if source.transposed else value, source.parts, -1)[source.part]
    _put(params, path, jnp.asarray(value))
  used = {source.name for source in sources.values()}
  for name in sorted(given.keys() - used):
    of = kind.copies.get(name)
    if of not in given or not np.array_equal(given[name], given[of]):
      raise ValueError(f"tensor {name!r} was found, expected none of that name{f', or a copy of {of!r}' if of else ''}")
  return module, params


def to_hugging_face(
  module: LanguageModel | EncoderDecoder, params: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """(config, {name: float32 array}) as transformers' models with a head keep them, tied arrays once.

  A decoder's config says of no token that it begins or ends a text, as the module does not know one: the ids that
  transformers takes otherwise, 2 of a Llama's, are of its own tokenizers, and would end texts.
  Raises ValueError for a module that is none of the four forms.
  """
  name = _form_of(module)
  kind = KINDS[name]
  parts: dict[str, dict[int, np.ndarray]] = {}
  for path, source in kind.sources(module).items():
    value = np.asarray(_get(params, path), np.float32)
    parts.setdefault(source.name, {})[source.part] = value.T if source.transposed else value
  joined = {key: np.concatenate([found[i] for i in sorted(found)], -1) for key, found in parts.items()}
  heads = ("lm_head.", "cls.")
  bare = isinstance(module, LanguageModel) and not module.causal and module.transform is None
  prefix = "" if bare else kind.prefix
  tensors = {key if key.startswith(heads) else prefix + key: np.ascontiguousarray(x) for key, x in joined.items()}
  ends = dict.fromkeys(("bos_token_id", "eos_token_id")) if name in ("gpt2", "llama") else {}
  return {"model_type": name, **kind.write(module), **ends}, tensors


# -- the four kinds ----------------------------------------------------------------------------------------------------

_GELU = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_erf", "relu": "relu"}
_GELU_BACK = {"gelu": "gelu_new", "gelu_erf": "gelu", "relu": "relu"}


def _read_gpt2(config: Mapping[str, Any], names: set[str]) -> LanguageModel:
  _refuse(config, add_cross_attention=False, scale_attn_by_inverse_layer_idx=False, scale_attn_weights=True)
  return make_gpt2(
    config["vocab_size"], config["n_positions"], config["n_layer"], config["n_head"], config["n_embd"],
    hidden=config.get("n_inner"), epsilon=config.get("layer_norm_epsilon", 1e-5),
    activation=_choose(config, "activation_function", "gelu_new", _GELU), tied=config.get("tie_word_embeddings", True),
  )  # fmt: skip


def _gpt2_sources(module: LanguageModel) -> dict[str, Source]:
  found = {"embed/embedding": Source("wte.weight"), "positions/embedding": Source("wpe.weight")}
  if not module.tied:
    found["head/kernel"] = Source("lm_head.weight", True)
  _norm(found, "transformer/last_norm", "ln_f")
  for i in range(module.transformer.depth):
    ours, theirs = f"transformer/block{i}", f"h.{i}"
    _norm(found, f"{ours}/attention_norm", f"{theirs}.ln_1")
    _norm(found, f"{ours}/feed_forward_norm", f"{theirs}.ln_2")
    for end, kept in (("kernel", "weight"), ("bias", "bias")):  # their Conv1D has the axes of a kernel
      for part, name in enumerate(("query", "key", "value")):
        found[f"{ours}/attention/{name}/{end}"] = Source(f"{theirs}.attn.c_attn.{kept}", False, part, 3)
      found[f"{ours}/attention/out/{end}"] = Source(f"{theirs}.attn.c_proj.{kept}")
      found[f"{ours}/feed_forward/widen/{end}"] = Source(f"{theirs}.mlp.c_fc.{kept}")
      found[f"{ours}/feed_forward/narrow/{end}"] = Source(f"{theirs}.mlp.c_proj.{kept}")
  return found


def _write_gpt2(module: LanguageModel) -> dict[str, Any]:
  body = module.transformer
  return {
    "architectures": ["GPT2LMHeadModel"], "vocab_size": module.vocabulary, "n_positions": module.length,
    "n_layer": body.depth, "n_head": body.heads, "n_embd": body.width, "n_inner": body.hidden,
    "layer_norm_epsilon": _epsilon(body), "activation_function": _GELU_BACK[body.activation],
    "tie_word_embeddings": module.tied,
  }  # fmt: skip


def _read_bert(config: Mapping[str, Any], names: set[str]) -> LanguageModel:
  _refuse(config, position_embedding_type="absolute", is_decoder=False, tie_word_embeddings=True)
  return make_bert(
    config["vocab_size"], config["max_position_embeddings"], config["num_hidden_layers"],
    config["num_attention_heads"], config["hidden_size"], hidden=config["intermediate_size"],
    types=config["type_vocab_size"], epsilon=config.get("layer_norm_eps", 1e-12),
    activation=_choose(config, "hidden_act", "gelu", _GELU), head=any(x.startswith("cls.predictions.") for x in names),
    pooler="pooler.dense.weight" in names,
  )  # fmt: skip


def _bert_sources(module: LanguageModel) -> dict[str, Source]:
  found = {
    f"{ours}/embedding": Source(f"embeddings.{theirs}_embeddings.weight")
    for ours, theirs in (("embed", "word"), ("positions", "position"), ("token_types", "token_type"))
  }
  _norm(found, "norm", "embeddings.LayerNorm")
  for i in range(module.transformer.depth):
    ours, theirs = f"transformer/block{i}", f"encoder.layer.{i}"
    for name in ("query", "key", "value"):
      _linear(found, f"{ours}/attention/{name}", f"{theirs}.attention.self.{name}")
    _linear(found, f"{ours}/attention/out", f"{theirs}.attention.output.dense")
    _norm(found, f"{ours}/attention_norm", f"{theirs}.attention.output.LayerNorm")
    _linear(found, f"{ours}/feed_forward/widen", f"{theirs}.intermediate.dense")
    _linear(found, f"{ours}/feed_forward/narrow", f"{theirs}.output.dense")
    _norm(found, f"{ours}/feed_forward_norm", f"{theirs}.output.LayerNorm")
  if module.transform:
    _linear(found, "head_dense", "cls.predictions.transform.dense")
    _norm(found, "head_norm", "cls.predictions.transform.LayerNorm")
    found["head_bias"] = Source("cls.predictions.bias")
  if module.pooler:
    _linear(found, "pool_dense", "pooler.dense")
  return found


def _write_bert(module: LanguageModel) -> dict[str, Any]:
  body = module.transformer
  return {
    "architectures": ["BertForMaskedLM" if module.transform else "BertModel"], "vocab_size": module.vocabulary,
    "max_position_embeddings": module.length, "num_hidden_layers": body.depth, "num_attention_heads": body.heads,
    "hidden_size": body.width, "intermediate_size": body.hidden or 4 * body.width, "type_vocab_size": module.types,
    "layer_norm_eps": _epsilon(body), "hidden_act": _GELU_BACK[body.activation],
  }  # fmt: skip


_T5_FORWARD = {"relu": "relu", "gated-gelu": "geglu"}


def _read_t5(config: Mapping[str, Any], names: set[str]) -> EncoderDecoder:
  divided = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))
  return make_t5(
    config["vocab_size"], config["num_layers"], config["num_heads"], config["d_model"],
    decoder_depth=config.get("num_decoder_layers"), head_dim=config["d_kv"], hidden=config["d_ff"],
    activation=_choose(config, "feed_forward_proj", "relu", _T5_FORWARD),
    buckets=config["relative_attention_num_buckets"], furthest=config.get("relative_attention_max_distance", 128),
    epsilon=config.get("layer_norm_epsilon", 1e-6), tied=divided or "lm_head.weight" not in names, divided=divided,
  )  # fmt: skip


def _t5_sources(module: EncoderDecoder) -> dict[str, Source]:
  found = {"embed/embedding": Source("shared.weight")}
  if not module.tied:
    found["head/kernel"] = Source("lm_head.weight", True)
  for side in ("encoder", "decoder"):
    body = getattr(module, side)
    bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    found[f"{side}_relative/embedding"] = Source(bias)
    _scale(found, f"{side}/last_norm", f"{side}.final_layer_norm")
    steps = [("attention", "SelfAttention"), ("cross_attention", "EncDecAttention")][: 1 + body.cross]
    for i in range(body.depth):
      ours, theirs = f"{side}/block{i}", f"{side}.block.{i}.layer"
      for j, (name, their) in enumerate(steps):
        for of, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
          found[f"{ours}/{name}/{of}/kernel"] = Source(f"{theirs}.{j}.{their}.{letter}.weight", True)
        _scale(found, f"{ours}/{name}_norm", f"{theirs}.{j}.layer_norm")
      last = f"{theirs}.{len(steps)}"
      gated = {"widen": "wi_0", "gate": "wi_1", "narrow": "wo"}
      names = gated if body.activation == "geglu" else {"widen": "wi", "narrow": "wo"}
      for of, their in names.items():
        found[f"{ours}/feed_forward/{of}/kernel"] = Source(f"{last}.DenseReluDense.{their}.weight", True)
      _scale(found, f"{ours}/feed_forward_norm", f"{last}.layer_norm")
  return found


def _write_t5(module: EncoderDecoder) -> dict[str, Any]:
  body, divided = module.encoder, module.tied if module.divided is None else module.divided
  return {
    "architectures": ["T5ForConditionalGeneration"], "vocab_size": module.vocabulary, "num_layers": body.depth,
    "num_decoder_layers": module.decoder.depth, "num_heads": body.heads, "d_model": body.width,
    "d_kv": body.head_dim or body.width // body.heads, "d_ff": body.hidden or 4 * body.width,
    "feed_forward_proj": {ours: theirs for theirs, ours in _T5_FORWARD.items()}[body.activation],
    "relative_attention_num_buckets": module.buckets, "relative_attention_max_distance": module.furthest,
    "layer_norm_epsilon": _epsilon(body), "tie_word_embeddings": module.tied, "scale_decoder_outputs": divided,
    "is_encoder_decoder": True,
  }  # fmt: skip


def _read_llama(config: Mapping[str, Any], names: set[str]) -> LanguageModel:
  _refuse(config, attention_bias=False, mlp_bias=False, hidden_act="silu", rope_scaling=None, sliding_window=None)
  rope = config.get("rope_parameters") or {}
  _refuse(rope, rope_type="default", partial_rotary_factor=1.0)
  return make_llama(
    config["vocab_size"], config["max_position_embeddings"], config["num_hidden_layers"],
    config["num_attention_heads"], config["hidden_size"], kv_heads=config.get("num_key_value_heads"),
    head_dim=config.get("head_dim"), hidden=config["intermediate_size"], epsilon=config.get("rms_norm_eps", 1e-6),
    rotary_base=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
    tied=config.get("tie_word_embeddings", False),
  )  # fmt: skip


def _llama_sources(module: LanguageModel) -> dict[str, Source]:
  found = {"embed/embedding": Source("embed_tokens.weight")}
  if not module.tied:
    found["head/kernel"] = Source("lm_head.weight", True)
  _scale(found, "transformer/last_norm", "norm")
  for i in range(module.transformer.depth):
    ours, theirs = f"transformer/block{i}", f"layers.{i}"
    for of, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
      found[f"{ours}/attention/{of}/kernel"] = Source(f"{theirs}.self_attn.{letter}_proj.weight", True)
    for of, their in (("widen", "gate"), ("gate", "up"), ("narrow", "down")):
      found[f"{ours}/feed_forward/{of}/kernel"] = Source(f"{theirs}.mlp.{their}_proj.weight", True)
    _scale(found, f"{ours}/attention_norm", f"{theirs}.input_layernorm")
    _scale(found, f"{ours}/feed_forward_norm", f"{theirs}.post_attention_layernorm")
  return found


def _write_llama(module: LanguageModel) -> dict[str, Any]:
  body = module.transformer
  return {
    "architectures": ["LlamaForCausalLM"], "vocab_size": module.vocabulary, "max_position_embeddings": module.length,
    "num_hidden_layers": body.depth, "num_attention_heads": body.heads, "hidden_size": body.width,
    "num_key_value_heads": body.kv_heads or body.heads, "head_dim": body.head_dim or body.width // body.heads,
    "intermediate_size": body.hidden or 8 * body.width // 3, "rms_norm_eps": _epsilon(body),
    "rope_parameters": {"rope_theta": body.rotary_base, "rope_type": "default"}, "tie_word_embeddings": module.tied,
  }  # fmt: skip


_EMBEDS = {f"{side}.embed_tokens.weight": "shared.weight" for side in ("encoder", "decoder")}
_BERT_HEAD = {
  "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
  "cls.predictions.decoder.bias": "cls.predictions.bias",
}
KINDS = {
  "gpt2": Kind("transformer.", (".attn.bias", ".attn.masked_bias"), {"lm_head.weight": "wte.weight"}, _read_gpt2,
               _gpt2_sources, _write_gpt2),
  "bert": Kind("bert.", ("position_ids", "cls.seq_relationship.weight", "cls.seq_relationship.bias"), _BERT_HEAD,
               _read_bert, _bert_sources, _write_bert),
  "t5": Kind("", ("EncDecAttention.relative_attention_bias.weight",), {**_EMBEDS, "lm_head.weight": "shared.weight"},
             _read_t5, _t5_sources, _write_t5),
  "llama": Kind("model.", ("rotary_emb.inv_freq",), {"lm_head.weight": "embed_tokens.weight"}, _read_llama,
                _llama_sources, _write_llama),
}  # fmt: skip


def _kind(config: Mapping[str, Any]) -> Kind:
  name = config.get("model_type")
  name = "llama" if name == "mistral" else name
  if name not in KINDS:
    raise ValueError(f"model_type is {name!r}, expected one of {', '.join(KINDS)}, mistral")
  return KINDS[name]


def _form_of(module: LanguageModel | EncoderDecoder) -> str:
  unknown = "the module is no GPT-2, BERT, T5 or Llama, expected one that these forms make, without experts"
  if isinstance(module, EncoderDecoder):
    if module.position != "relative":
      raise ValueError(unknown)
    return "t5"
  body = module.transformer
  if body.make_feed_forward is None and body.order == "post" and not module.causal:
    return "bert"
  if body.make_feed_forward is None and body.order == "pre" and module.causal and not module.types:
    if module.position == "learned" and body.activation in _GELU_BACK and body.use_bias:
      return "gpt2"
    if module.position == "none" and body.activation == "swiglu" and body.rotary_base and not body.use_bias:
      return "llama"
  raise ValueError(unknown)


# -- settings, names, trees --------------------------------------------------------------------------------------------


def _refuse(config: Mapping[str, Any], **expected: Any) -> None:
  for name, value in expected.items():
    if config.get(name, value) not in (value, None):
      raise ValueError(f"{name} is {config[name]!r} in config.json, expected {value!r}")


def _choose(config: Mapping[str, Any], name: str, default: str, known: Mapping[str, str]) -> str:
  if (found := config.get(name, default)) not in known:
    raise ValueError(f"{name} is {found!r} in config.json, expected one of {', '.join(known)}")
  return known[found]


def _usual_name(name: str, prefix: str) -> str:
  name = name.removeprefix(prefix)
  for old, new in ((".gamma", ".weight"), (".beta", ".bias")):  # of the first releases of BERT
    name = name.removesuffix(old) + new if name.endswith(old) else name
  return name


def _linear(found: dict[str, Source], ours: str, theirs: str) -> None:
  found[f"{ours}/kernel"], found[f"{ours}/bias"] = Source(f"{theirs}.weight", True), Source(f"{theirs}.bias")


def _norm(found: dict[str, Source], ours: str, theirs: str) -> None:
  found[f"{ours}/scale"], found[f"{ours}/bias"] = Source(f"{theirs}.weight"), Source(f"{theirs}.bias")


def _scale(found: dict[str, Source], ours: str, theirs: str) -> None:
  found[f"{ours}/scale"] = Source(f"{theirs}.weight")


def _epsilon(body: Any) -> float:
  return getattr(body.norm, "keywords", {}).get("epsilon", 1e-6)


def _shapes(module: LanguageModel | EncoderDecoder) -> dict[str, tuple[int, ...]]:
  token = jnp.zeros((1, 1), jnp.int32)
  given = (token, token) if isinstance(module, EncoderDecoder) else (token,)
  params = jax.eval_shape(module.init, root_key(0), *given)["params"]
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {"/".join(str(entry.key) for entry in path): leaf.shape for path, leaf in leaves}


def _put(params: dict[str, Any], path: str, value: Any) -> None:
  *places, last = path.split("/")
  for place in places:
    params = params.setdefault(place, {})
  params[last] = value


def _get(params: Mapping[str, Any], path: str) -> Any:
  for place in path.split("/"):
    params = params[place]
  return params
