"""Masks against transformers' collator, in their statistics; who sees whom in XLNet against transformers' XLNet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlnotes.attention import Transformer
from mlnotes.lm.masking import mask_words
from mlnotes.lm.permutation import permute
from mlnotes.lm.vocabulary import Vocabulary

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


def test_masks_are_those_of_the_collator():
  """Rates of choice and fates, and of the first and the last word, within 4 standard deviations of each other."""
  from tokenizers import Tokenizer, models

  words = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3, **{f"w{i}": 4 + i for i in range(20)}}
  names = dict(pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]", unk_token="w0")
  backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
  tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names)
  rows, length = 4000, 12
  tokens = np.random.default_rng(0).integers(5, 24, (rows, length))
  tokens[:, 0], tokens[:, -3], tokens[:, -2:] = 1, 2, 0
  collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, seed=0)
  theirs = collate([{"input_ids": row.tolist()} for row in tokens])
  chosen = {"theirs": (theirs["labels"] != -100).numpy()}
  inputs = {"theirs": theirs["input_ids"].numpy()}
  vocabulary = Vocabulary(24, (0, 1, 2, 3, 4), mask=3, pad=0)
  found = jax.jit(lambda key: mask_words(key, jnp.asarray(tokens), vocabulary))(jax.random.key(0))
  chosen["ours"], inputs["ours"] = np.asarray(found.weights) == 1, np.asarray(found.inputs)

  def rates(who):
    where, read = chosen[who], inputs[who]
    counts = [(where[:, i].sum(), rows) for i in range(length)]
    counts += [((read == 3)[where].sum(), where.sum()), ((read == tokens)[where].sum(), where.sum())]
    return np.array(counts).T

  (a, n), (b, m) = rates("ours"), rates("theirs")
  p = (a + b) / (n + m)
  assert np.all(np.abs(a / n - b / m) <= 4 * np.sqrt(p * (1 - p) * (1 / n + 1 / m)))
  assert np.all(p[[0, 9, 10, 11]] == 0)  # marks and padding of both


def test_predictions_see_what_those_of_xlnet_see():
  """Through two layers of each: which tokens a prediction has a gradient of, and which a content place has."""
  length, rows = 6, 3
  tokens = jnp.asarray(np.random.default_rng(0).integers(1, 20, (rows, length)))
  found = permute(jax.random.key(0), tokens, Vocabulary(20, (0,), mask=0), share=0.5)
  order, places = np.asarray(found.order), np.asarray(found.places)
  count = places.shape[1]
  config = transformers.XLNetConfig(vocab_size=20, d_model=8, n_layer=2, n_head=2, d_inner=8, dropout=0.0)
  model = transformers.XLNetModel(config).eval()
  before = order[:, None, :] < order[:, :, None]
  together = (order[:, None, :] == 0) & (order[:, :, None] == 0)
  target = torch.tensor(np.eye(length)[places], dtype=torch.float32)
  embedded = torch.randn(rows, length, 8, requires_grad=True)
  perm_mask = torch.tensor(~(before | together), dtype=torch.float32)
  said = model(inputs_embeds=embedded, perm_mask=perm_mask, target_mapping=target, use_mems=False)[0]
  assert said.shape == (rows, count, 8)
  theirs = np.zeros((rows, count, length), bool)
  for k in range(count):
    (grad,) = torch.autograd.grad(said[:, k].cos().sum(), embedded, retain_graph=True)
    theirs[:, k] = np.any(grad.numpy() != 0, -1)

  stack = Transformer(2, 2, 8)
  x = jax.random.normal(jax.random.key(1), (rows, length + count, 8))
  variables = stack.init(jax.random.key(2), x)
  loss = lambda x, k: jnp.sum(jnp.cos(stack.apply(variables, x, mask=found.mask)[:, length + k]))
  pull = jax.jit(jax.grad(loss))
  ours = np.stack([np.any(np.asarray(pull(x, k))[:, :length] != 0, -1) for k in range(count)], 1)
  np.testing.assert_array_equal(ours, theirs)
  assert ours.any() and not ours.all()
