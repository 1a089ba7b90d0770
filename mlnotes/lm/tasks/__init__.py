"""Small tasks for language models with known answers, drawn on the device."""

from mlnotes.lm.tasks.languages import (
  Alignment as Alignment,
  Documents as Documents,
  Grammar as Grammar,
  draw_documents as draw_documents,
  entropy_rate as entropy_rate,
  make_grammar as make_grammar,
  measure_alignment as measure_alignment,
)
