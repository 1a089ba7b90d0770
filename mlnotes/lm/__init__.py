"""Language models: forms, weights, objectives, tuning, preferences, decoding (notes: 语言模型, language models)."""

from mlnotes.lm.adapters import (
  adapt as adapt,
  init_adapters as init_adapters,
  insert_adapters as insert_adapters,
)
from mlnotes.lm.agent import (
  Acted as Acted,
  Surroundings as Surroundings,
  act as act,
  call_gain as call_gain,
  call_weights as call_weights,
  context_mask as context_mask,
)
from mlnotes.lm.contrast import (
  QuickThought as QuickThought,
  quick_thought as quick_thought,
)
from mlnotes.lm.forms import (
  make_bart as make_bart,
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
from mlnotes.lm.heads import (
  PairHead as PairHead,
  SentenceHead as SentenceHead,
  SpanHead as SpanHead,
  SpanLogits as SpanLogits,
  TokenHead as TokenHead,
  best_span as best_span,
  pool as pool,
  span_loss as span_loss,
)
from mlnotes.lm.hugging_face import (
  from_hugging_face as from_hugging_face,
  to_hugging_face as to_hugging_face,
)
from mlnotes.lm.layer_mix import (
  LayerMix as LayerMix,
)
from mlnotes.lm.lora import (
  apply_lora as apply_lora,
  init_lora as init_lora,
  lora_layers as lora_layers,
  merge as merge,
  unmerge as unmerge,
)
from mlnotes.lm.loss import (
  head_cross_entropy as head_cross_entropy,
  token_cross_entropy as token_cross_entropy,
)
from mlnotes.lm.masking import (
  BoundaryHead as BoundaryHead,
  Masked as Masked,
  MaskedSpans as MaskedSpans,
  mask_spans as mask_spans,
  mask_words as mask_words,
)
from mlnotes.lm.model import (
  EncoderDecoder as EncoderDecoder,
  LanguageModel as LanguageModel,
)
from mlnotes.lm.objective import (
  Objective as Objective,
  Terms as Terms,
  causal_objective as causal_objective,
  compute_gradients as compute_gradients,
)
from mlnotes.lm.packing import (
  document_mask as document_mask,
)
from mlnotes.lm.pairs import (
  Neighbours as Neighbours,
  Packed as Packed,
  Pairs as Pairs,
  Sentences as Sentences,
  find_neighbours as find_neighbours,
  next_sentence_pairs as next_sentence_pairs,
  pack_pairs as pack_pairs,
  sentence_order_pairs as sentence_order_pairs,
)
from mlnotes.lm.penalties import (
  estimate_fisher as estimate_fisher,
  l2_sp as l2_sp,
)
from mlnotes.lm.permutation import (
  Permuted as Permuted,
  permute as permute,
  two_stream_attention as two_stream_attention,
  two_stream_mask as two_stream_mask,
)
from mlnotes.lm.preference import (
  Preference as Preference,
  answer_advantages as answer_advantages,
  answer_log_probability as answer_log_probability,
  answer_rewards as answer_rewards,
  answer_weights as answer_weights,
  bradley_terry_loss as bradley_terry_loss,
  dpo_loss as dpo_loss,
  group_advantages as group_advantages,
  grpo_loss as grpo_loss,
  ranking_loss as ranking_loss,
  shift_reward as shift_reward,
  token_log_probability as token_log_probability,
  whiten as whiten,
)
from mlnotes.lm.prefix import (
  Continued as Continued,
  Reading as Reading,
  continue_prefix as continue_prefix,
  draw_reading as draw_reading,
  prefix_mask as prefix_mask,
)
from mlnotes.lm.replaced import (
  ElectraLosses as ElectraLosses,
  Replaced as Replaced,
  electra_losses as electra_losses,
  electra_objective as electra_objective,
  sample_replacements as sample_replacements,
)
from mlnotes.lm.retrieval import (
  Retrieved as Retrieved,
  TextEncoder as TextEncoder,
  bm25_scores as bm25_scores,
  bm25_weights as bm25_weights,
  contrast_documents as contrast_documents,
  count_words as count_words,
  marginalize_documents as marginalize_documents,
  recall_at as recall_at,
  reciprocal_rank as reciprocal_rank,
  search as search,
)
from mlnotes.lm.scaling import (
  ScalingLaw as ScalingLaw,
  bootstrap_scaling_law as bootstrap_scaling_law,
  compute_optimal as compute_optimal,
  fit_scaling_law as fit_scaling_law,
)
from mlnotes.lm.span_corruption import (
  Corrupted as Corrupted,
  Fragment as Fragment,
  corrupt_spans as corrupt_spans,
  corrupted_sizes as corrupted_sizes,
  hide_fragment as hide_fragment,
  infill as infill,
  permute_sentences as permute_sentences,
)
from mlnotes.lm.speculative import (
  Checked as Checked,
  Speculated as Speculated,
  check_draft as check_draft,
  expected_speedup as expected_speedup,
  expected_tokens as expected_tokens,
  next_distribution as next_distribution,
  speculative_decode as speculative_decode,
  speculative_generate as speculative_generate,
)
from mlnotes.lm.trainable import (
  any_of as any_of,
  combine as combine,
  count_bytes as count_bytes,
  count_parameters as count_parameters,
  last_layers as last_layers,
  partition as partition,
)
from mlnotes.lm.vocabulary import (
  Vocabulary as Vocabulary,
  join_rows as join_rows,
)
from mlnotes.lm.weights import (
  load_hugging_face as load_hugging_face,
  save_hugging_face as save_hugging_face,
)
