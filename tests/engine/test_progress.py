"""What a person sees on standard error."""

import itertools

from mlnotes.engine import progress


def test_a_report_says_each_new_step_and_then_every_ten_seconds(monkeypatch, capsys):
  monkeypatch.setattr(progress, "_said", ("", 0.0))
  clock = itertools.count(100, 2)  # two seconds a call
  monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock) / 2)
  for done in range(24):
    progress.report_step("sampling", done, 24)
  progress.report_step("drawing")
  lines = [line.strip() for line in capsys.readouterr().err.splitlines()]
  assert lines[0] == "sampling: 0 of 24" and lines[-1] == "drawing"
  assert 3 <= len(lines) <= 5  # 24 calls within half a minute
