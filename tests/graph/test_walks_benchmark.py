"""The benchmark's graph, its table, and its sentence where another package is not there."""

import numpy as np
import pytest

from launch.benchmarks import walks
from mlnotes.engine.errors import InputError


def test_the_drawn_graph_is_simple_and_some_of_its_nodes_have_many_neighbours():
  senders, receivers = walks.attach(500, 6)
  pairs = np.stack([senders, receivers], axis=1)
  assert np.all(senders < receivers) and len(np.unique(pairs, axis=0)) == len(pairs) and pairs.max() == 499
  degree = np.bincount(pairs.ravel(), minlength=500)
  assert degree.min() >= 1 and 5 < degree.mean() <= 6 and degree.max() > 5 * degree.mean()


def test_the_table_has_a_row_of_each_p_and_q_and_says_what_was_not_measured(capsys):
  walks.main(walks.Config(nodes=30, degree=4, length=4, walks=8, batch_size=4, rounds=1, p=(1.0, 2.0), q=(1.0, 0.5)))
  rows = [line for line in capsys.readouterr().out.splitlines() if "not measured" in line]
  assert [row.split("|")[1].strip() for row in rows] == ["1, 1", "2, 0.5"]
  assert all(float(row.split("|")[2].replace(",", "")) > 0 for row in rows)


def test_an_interpreter_without_the_package_is_named(tmp_path):
  python = tmp_path / "python"
  python.write_text("#!/bin/sh\necho 'No module named node2vec' >&2\nexit 1\n")
  python.chmod(0o755)
  config = walks.Config(peer_python=str(python))
  with pytest.raises(InputError, match="could not run node2vec: No module named node2vec"):
    walks.time_node2vec(np.array([[0, 1]]), 1.0, 1.0, config)


@pytest.mark.parametrize(
  "flags, sentence",
  [(dict(q=(1.0,)), "expected 3 values, as many as of p"), (dict(walks=5), "--walks=5 is out of range: expected 1024")],
)
def test_bad_flags_are_refused(flags, sentence):
  with pytest.raises(InputError, match=sentence):
    walks.Config(**flags)
