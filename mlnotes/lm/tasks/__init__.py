"""Small tasks for language models with known answers, drawn on the device."""

from mlnotes.lm.tasks.answers import (
  Aligned as Aligned,
  Answers as Answers,
  enumerate_answers as enumerate_answers,
  find_answers as find_answers,
  measure_policy as measure_policy,
  optimal_policy as optimal_policy,
  reward_frontier as reward_frontier,
)
from mlnotes.lm.tasks.arithmetic import (
  Form as Form,
  Problem as Problem,
  Solution as Solution,
  decode_tokens as decode_tokens,
  draw_problem as draw_problem,
  encode_text as encode_text,
  final_answer as final_answer,
  is_held_out as is_held_out,
  majority_answer as majority_answer,
  read_answer as read_answer,
  write_solution as write_solution,
)
from mlnotes.lm.tasks.facts import (
  Facts as Facts,
  count_tokens as count_tokens,
  draw_facts as draw_facts,
  split_people as split_people,
  swap_values as swap_values,
)
from mlnotes.lm.tasks.languages import (
  Alignment as Alignment,
  Documents as Documents,
  Grammar as Grammar,
  bridge_entropy as bridge_entropy,
  draw_documents as draw_documents,
  entropy_rate as entropy_rate,
  make_grammar as make_grammar,
  measure_alignment as measure_alignment,
  share_words as share_words,
)
from mlnotes.lm.tasks.modular import (
  Operation as Operation,
  Table as Table,
  frequency_energy as frequency_energy,
  group_order as group_order,
  key_frequencies as key_frequencies,
  modular_table as modular_table,
  split_pairs as split_pairs,
  wave_logits as wave_logits,
)
from mlnotes.lm.tasks.probes import (
  Exchanged as Exchanged,
  Followed as Followed,
  Lowered as Lowered,
  Moved as Moved,
  cut_words as cut_words,
  draw_starts as draw_starts,
  exchange_words as exchange_words,
  follow_passages as follow_passages,
  lower_case as lower_case,
  move_spans as move_spans,
  shift_words as shift_words,
)
from mlnotes.lm.tasks.regression import (
  Prompt as Prompt,
  averaged_predictions as averaged_predictions,
  draw_regression as draw_regression,
  expected_error as expected_error,
  leave_features_out as leave_features_out,
  ridge_predictions as ridge_predictions,
)
from mlnotes.lm.tasks.tools import (
  Desk as Desk,
  Goal as Goal,
  Trace as Trace,
  World as World,
  answer_at_once as answer_at_once,
  draw_goal as draw_goal,
  draw_world as draw_world,
  imitate as imitate,
  make_desk as make_desk,
  observe as observe,
  solve as solve,
  write_goal as write_goal,
)
