"""Language models: their forms, weights, losses and generation (notes: 语言模型, language models)."""

from mlnotes.lm.forms import (
  make_bert as make_bert,
  make_gpt2 as make_gpt2,
  make_llama as make_llama,
  make_t5 as make_t5,
)
from mlnotes.lm.generate import (
  Generated as Generated,
  Sampling as Sampling,
  adjust_logits as adjust_logits,
  generate as generate,
)
from mlnotes.lm.hugging_face import from_hugging_face as from_hugging_face, to_hugging_face as to_hugging_face
from mlnotes.lm.loss import head_cross_entropy as head_cross_entropy, token_cross_entropy as token_cross_entropy
from mlnotes.lm.model import EncoderDecoder as EncoderDecoder, LanguageModel as LanguageModel
from mlnotes.lm.objective import (
  Objective as Objective,
  Terms as Terms,
  causal_objective as causal_objective,
  compute_gradients as compute_gradients,
)
from mlnotes.lm.packing import document_mask as document_mask
from mlnotes.lm.weights import load_hugging_face as load_hugging_face, save_hugging_face as save_hugging_face
