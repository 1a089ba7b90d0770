"""The benchmark's arithmetic against hand counts and XLA's own analysis, its tables, its words for bad input."""

import dataclasses
import functools
import json
import subprocess
import sys
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments import catalogue, import_experiment
from launch import bench
from launch.flops import find_peak
from launch.measure import make_stepper, measure, updates_before_learning
from launch.profiler import compare_with_profiler, execution_seconds, write_trace
from launch.timing import summarize_times
from launch.traffic import count_traffic
from mlnotes.data import Feeds
from mlnotes.engine.arithmetic import count_flops
from mlnotes.engine.errors import InputError
from mlnotes.engine.experiment import Experiment, Mean
from mlnotes.engine.loop import LoopConfig
from mlnotes.engine.program import make_mesh
from mlnotes.nn import Conv

ROWS, COLUMNS, TURNS = 64, 48, 7
PRODUCT = 2 * ROWS * ROWS * COLUMNS


class State(NamedTuple):
  step: jax.Array
  key: jax.Array
  matrix: jax.Array
  x: jax.Array


def make_product(config, rows=ROWS):
  """An update is TURNS products of a square matrix with a tall one, in a loop, and no other arithmetic."""

  def init(key, batch):
    return State(jnp.zeros([], jnp.int32), key, jnp.eye(rows), jnp.ones((rows, COLUMNS)))

  def step(state, batch):
    x = jax.lax.fori_loop(0, TURNS, lambda _, x: state.matrix @ x, state.x)
    return state._replace(step=state.step + 1, x=x), {"corner": x[0, 0]}

  evaluate = lambda state, batch: {"corner": Mean(state.x[0, 0], jnp.float32(1))}
  return Experiment(init, step, evaluate, lambda state, directory: None)


def module(**sizes):
  return SimpleNamespace(make=functools.partial(make_product, **sizes), make_feeds=lambda config: Feeds())


@pytest.fixture(scope="module")
def stepper():
  return make_stepper(module(), LoopConfig(devices=1))


@pytest.fixture(scope="module", autouse=True)
def _compiled_afresh():
  """What is measured here is compiled here, whatever other tests have kept."""
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()
  yield
  jax.config.update("jax_enable_compilation_cache", True)
  compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def row(stepper):
  found = measure("matrix.product", stepper, LoopConfig(devices=1), measurements=3, seconds=0.01)
  return {**found, "config": {"seed": 0}}


# -- what is counted -------------------------------------------------------------------------------------------------


def test_flops_of_an_update_are_those_counted_by_hand(row):
  assert row["matrix_flops"] == row["flops"] == TURNS * PRODUCT
  assert row["flops_exact"]
  # XLA's analysis turns each loop once, that of the updates too.
  assert PRODUCT <= row["xla_flops"] < 1.1 * PRODUCT
  rate = row["flops"] / row["step_seconds"]["median"]
  assert row["utilization"] == pytest.approx(rate / row["peak_flops_per_second"])


def test_seeds_multiply_the_arithmetic_and_the_throughput():
  config = LoopConfig(devices=1, seeds=3)
  found = measure("matrix.product", make_stepper(module(), config), config, measurements=1, seconds=0.001)
  assert found["matrix_flops"] == 3 * TURNS * PRODUCT
  assert found["examples_per_second"] == pytest.approx(3 / found["step_seconds"]["median"])


def perceptron(weights, x):
  for kernel in weights:
    x = jnp.tanh(x @ kernel)
  return jnp.mean(x**2)


def convolve(stride, x, kernel):
  numbers = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=numbers)


def own_convolution(x):
  return jnp.sum(
    Conv(5, (3, 3), strides=(2, 2)).apply({"params": {"kernel": jnp.ones((3, 3, 3, 5)), "bias": jnp.ones(5)}}, x) ** 2
  )


IMAGES, KERNEL = np.ones((4, 9, 9, 3), np.float32), np.ones((3, 3, 3, 5), np.float32)


@pytest.mark.parametrize(
  ("function", "arguments", "tolerance"),
  [
    (jax.value_and_grad(perceptron), ([np.ones((64, 128), np.float32)], np.ones((256, 64), np.float32)), 0.01),
    (jnp.log2, (IMAGES,), 0.01),
    (functools.partial(convolve, 1), (IMAGES, KERNEL), 0),
    (functools.partial(convolve, 2), (IMAGES, KERNEL), 0),
    (jax.value_and_grad(lambda x, kernel: jnp.sum(convolve(2, x, kernel) ** 2)), (IMAGES, KERNEL), 0.02),
    # On the CPU its gradients multiply some zeros.
    (jax.value_and_grad(own_convolution), (IMAGES,), 0.1),
  ],
)
def test_flops_agree_with_xla_where_there_is_no_loop(function, arguments, tolerance):
  ours = count_flops(jax.make_jaxpr(function)(*arguments)).flops
  theirs = jax.jit(function).lower(*arguments).cost_analysis()
  assert ours == pytest.approx(theirs["flops"] + theirs.get("transcendentals", 0), rel=tolerance)


def test_loops_and_conditions():
  x = jnp.ones(10)
  unknown = jax.make_jaxpr(lambda x: jax.lax.while_loop(lambda x: x[0] < 5, lambda x: x + 1, x))(x)
  work = count_flops(unknown)
  assert work.flops == 10 and not work.exact
  counted = jax.make_jaxpr(lambda x: jax.lax.scan(lambda c, _: (c * c + c, None), x, length=6)[0])(x)
  assert count_flops(counted) == (6 * 20, 0, True)
  branches = jax.make_jaxpr(lambda p, x: jax.lax.cond(p, lambda x: x * x + x, lambda x: x, x))(True, x)
  assert count_flops(branches).flops == 20


def test_every_device_of_a_mesh_counts():
  mesh = make_mesh(2)
  shared = jax.shard_map(lambda x: x * x, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P("data"))
  assert count_flops(jax.make_jaxpr(shared)(jnp.ones(10))).flops == 10


def test_what_devices_exchange_is_counted():
  mesh = make_mesh(4)

  def both(x):
    return jax.lax.psum(x, "data"), jax.lax.all_gather(x, "data"), jax.lax.psum(x[0] > 0, "data")

  specs = (jax.P(), jax.P(), jax.P())
  shared = jax.jit(jax.shard_map(both, mesh=mesh, in_specs=jax.P("data"), out_specs=specs, check_vma=False))
  found = count_traffic(shared.lower(jnp.ones(40)).compile().as_text())
  assert found["all-gather"] == (1, 4 * 10 * 4)
  assert found["all-reduce"].bytes == 10 * 4 + 4
  assert count_traffic(jax.jit(jnp.sin).lower(jnp.ones(3)).compile().as_text()) == {}
  text = """
    %start = (f32[8]{0}, f32[32]{0}) all-gather-start(%x), dimensions={0}
    %done = f32[32]{0} all-gather-done(%start)
    ROOT %r = (f32[2,3]{1,0}, /*index=1*/s8[5]{0}) all-reduce(%a, %b), to_apply=%add
  """
  assert count_traffic(text) == {"all-gather": (1, 128), "all-reduce": (1, 29)}
  exchanged = {"all-gather": {"count": 1, "bytes": 2048}, "all-reduce": {"count": 2, "bytes": 29}}
  assert bench.describe_traffic(exchanged) == "1 all-gather of 2 KiB, 2 all-reduce of 29 B"
  assert bench.describe_traffic({}) == "nothing between devices"


def test_percentiles():
  found = summarize_times([5.0, 1.0, 2.0, 4.0, 3.0])
  assert found == pytest.approx({"median": 3.0, "p10": 1.4, "p90": 4.6})


def test_peak_comes_from_the_table():
  devices = [SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3")] * 4
  assert find_peak(devices, "bfloat16").flops_per_second == pytest.approx(4 * 989.5e12)
  assert find_peak(devices, "float32").flops_per_second == pytest.approx(4 * 494.5e12)
  pcie = [SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 PCIe")]
  assert find_peak(pcie, "bfloat16").flops_per_second == pytest.approx(756.5e12)
  light = [SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")]
  assert find_peak(light, "bfloat16").flops_per_second == pytest.approx(197e12)
  unknown = find_peak([SimpleNamespace(platform="gpu", device_kind="Abacus")], "float32")
  assert unknown.flops_per_second is None and "Abacus" in unknown.source


def test_row_is_consistent(row):
  step, parts = row["step_seconds"], row["compile"]
  assert 0 < step["p10"] <= step["median"] <= step["p90"]
  assert sum(parts[f"{name}_seconds"] for name in ("trace", "lower", "backend")) == pytest.approx(parts["seconds"])
  assert parts["backend_seconds"] > 0 and not parts["cached"]
  assert row["memory"]["program_bytes"] >= 4 * (ROWS * ROWS + ROWS * COLUMNS)
  assert row["memory"]["peak_bytes"] > row["memory"]["program_bytes"]
  assert row["data_wait_seconds"] == 0


def test_units_and_flags_of_every_experiment():
  names = lambda config: {item.name for item in dataclasses.fields(config)}
  own, units = names(bench.BenchConfig), {}
  for name in bench.experiments_in_loop():
    assert not own & names(import_experiment(name).Config), name
    config = bench.settings_class(name).tuned()
    units[name] = config.UNIT
    assert config.units_per_update >= 1
  expected = {"rl.ppo": "env_steps", "rl.reinforce": "episodes", "diffusion.ddpm": "examples", "meta.maml": "tasks"}
  assert {name: units[name] for name in expected} == expected


def test_an_agent_is_timed_once_it_learns():
  config = import_experiment("rl.dqn").Config(num_envs=4, train_every=2, learning_starts=30)
  assert updates_before_learning(config) == 4
  assert updates_before_learning(LoopConfig()) == 0


# -- the profiler ----------------------------------------------------------------------------------------------------


def line(name, *events):
  """Events are (name, start, duration), in nanoseconds."""
  make = lambda name, start, duration: SimpleNamespace(name=name, start_ns=start, duration_ns=duration)
  return SimpleNamespace(name=name, events=[make(*event) for event in events])


def test_durations_of_programs_in_a_profile():
  runs = "ThunkExecutor::Execute"
  cpu = SimpleNamespace(
    name="/host:CPU",
    lines=[
      line("python", ("block_until_ready", 0, 9e9)),
      line("tf_XLAPjRtCpuClient/7", (runs, 1e9, 1e9), (f"{runs} (wait for completion)", 2e9, 2e9), (runs, 8e9, 1e9)),
      line("tf_XLAEigen/1", ("dot", 1.5e9, 1e9), ("mark", 6e9, 0), ("dot", 3.5e9, 1e9)),
    ],
  )
  # From 1 to 4.5 and from 8 to 9.
  assert execution_seconds(SimpleNamespace(planes=[cpu])) == pytest.approx(4.5)
  gpus = [
    SimpleNamespace(name=f"/device:GPU:{i}", lines=[line("XLA Modules", ("jit_repeat", 0, 3e9))]) for i in range(2)
  ]
  assert execution_seconds(SimpleNamespace(planes=[cpu, *gpus])) == 3.0
  with pytest.raises(InputError, match="recorded no execution"):
    execution_seconds(SimpleNamespace(planes=[SimpleNamespace(name="/host:CPU", lines=[])]))


def test_clock_agrees_with_the_profiler():
  big = make_stepper(module(rows=512), LoopConfig(devices=1))
  big(1)
  found = compare_with_profiler(big, 3, 40)
  assert found.clock == pytest.approx(found.profiler, rel=0.1)


def test_trace_is_written(stepper, tmp_path):
  text = write_trace(stepper, 2, tmp_path / "trace")
  (perfetto,) = (tmp_path / "trace").rglob("perfetto_trace.json.gz")
  assert str(perfetto) in text and "ui.perfetto.dev" in text


# -- tables and comparison -------------------------------------------------------------------------------------------


def scale(row, factor):
  step = {name: factor * value for name, value in row["step_seconds"].items()}
  return {**row, "step_seconds": step, "examples_per_second": row["examples_per_second"] / factor}


def test_ratios_and_their_warnings(row):
  machine = {"device": "cpu", "cores": 2}
  before = {"machine": machine, "rows": [row]}
  other = {"machine": {**machine, "cores": 4}, "rows": [{**scale(row, 2.0), "config": {"seed": 1}}]}
  cores, settings, table = bench.compare_reports(other, before)
  assert cores == "warning: cores differs: 4 now, 2 before"
  assert settings == "warning: matrix.product ran with other settings: --seed=1 now, 0 before"
  header, values = (text.split("  ") for text in table.splitlines())
  figures = dict(zip([name.strip() for name in header if name], [value.strip() for value in values if value]))
  assert figures["update"] == "2.000" and figures["throughput"] == "0.500" and figures["memory"] == "1.000"
  assert len(bench.compare_reports(before, before)) == 1
  assert "not measured before" in bench.compare_reports(before, {"machine": machine, "rows": []})[-1]


def test_text_of_a_row(row):
  text = dict(bench.describe_row(row))
  assert "examples/s" in text["throughput"] and "trace" in text["compile"]
  assert bench.summary_line(row)[0] == "matrix.product"
  table = bench.format_table([bench._COLUMNS, bench.summary_line(row), ["rl.broken", "error: no such thing"]])
  assert table.splitlines()[-1].endswith("error: no such thing")


@pytest.mark.parametrize(
  ("seeds", "devices", "threads", "in_turn", "text"),
  [
    (1, 1, 1, False, "1 device of 1 thread"),
    (1, 4, None, False, "4 devices"),
    (8, 2, 1, False, "2 devices of 1 thread, 8 seeds side by side"),
    (4, 1, 2, True, "1 device of 2 threads, 4 seeds in turn"),
    (2, 2, 1, True, "2 devices of 1 thread, 2 seeds side by side"),
  ],
)
def test_the_layout_in_words(seeds, devices, threads, in_turn, text):
  row = {"seeds": seeds, "devices": devices, "threads": threads, "seeds_in_turn": in_turn}
  assert bench.describe_layout(row) == text


@pytest.mark.parametrize(
  ("value", "text"), [(0, "0 B"), (999, "999 B"), (1023, "1023 B"), (1024, "1 KiB"), (3 * 2**29, "1.5 GiB")]
)
def test_bytes(value, text):
  assert bench.binary(value) == text


def test_numbers():
  assert bench.scaled(12_345_678, "FLOP") == "12.3 MFLOP" and bench.scaled(None) == "-"
  assert [bench.duration(s) for s in (12.34, 0.01234, 1.234e-5, 1e-8)] == ["12.3 s", "12.3 ms", "12.3 µs", "0.01 µs"]


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "--experiment is missing"),
    (["--experiment=contrastive.simcrl"], "did you mean contrastive.simclr?"),
    (["--experiment=qlearning,rl.ppo"], "--experiment=qlearning is not an experiment"),
    (["--experiment=optim.compare"], "is a study"),
    (["--experiment=rl.ppo", "--measurements=many"], "measurements"),
  ],
)
def test_names_that_do_not_fit(arguments, message):
  with pytest.raises(InputError, match=message.replace("?", r"\?")):
    bench.named_experiments(arguments)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--num_env=3"], "num_envs"),
    (["--rollout_length=0"], "--rollout_length=0 is out of range"),
    (["--seconds=0"], "--seconds=0"),
    (["--json=no/such/place.json"], "--json=no/such/place.json"),
    (["--json=/tmp"], "--json=/tmp is out of range: expected a file"),
    (["--json=/proc/report.json"], "--json=/proc/report.json cannot be written"),
    (["rubbish"], "found the argument 'rubbish'"),
  ],
)
def test_flags_that_do_not_fit(arguments, message):
  with pytest.raises(InputError, match=message):
    bench.parse_flags("rl.ppo", ["--experiment=rl.ppo", *arguments])


def test_each_of_several_runs_alone(tmp_path):
  given = ["--experiment=rl.ppo,rl.a2c", "--seeds=2", "--json=all.json", "--compare=before.json"]
  own = bench.own_arguments("rl.a2c", given, tmp_path / "row.json")
  assert bench.named_experiments(own) == ["rl.a2c"]
  config = bench.parse_flags("rl.a2c", own)
  assert (config.seeds, config.json, config.compare) == (2, str(tmp_path / "row.json"), "")


def test_several_make_a_line_each(row, monkeypatch, capsys, tmp_path):
  failed = {"experiment": "rl.a2c", "error": "error: no memory"}
  measured = {"rl.ppo": {**row, "experiment": "rl.ppo"}, "rl.a2c": failed}
  monkeypatch.setattr(bench, "bench_apart", lambda name, _: {"machine": {"cores": 2}, "rows": [measured[name]]})
  arguments = ["--experiment=rl.ppo,rl.a2c", f"--json={tmp_path / 'both.json'}"]
  assert bench.bench_several(["rl.ppo", "rl.a2c"], arguments) == 1
  shown = capsys.readouterr()
  head, ppo, a2c = shown.out.splitlines()
  assert "2 of 2: rl.a2c error: no memory" in shown.err
  assert head.startswith("experiment") and ppo.startswith("rl.ppo") and a2c.endswith("error: no memory")
  report = bench.load_report(tmp_path / "both.json")
  assert [line["experiment"] for line in report["rows"]] == ["rl.ppo", "rl.a2c"] and report["machine"] == {"cores": 2}


def test_what_is_measured_outlives_an_interrupt(row, monkeypatch, capsys, tmp_path):
  def measure_one(name, arguments):
    if name == "rl.a2c":
      raise KeyboardInterrupt
    return {"machine": {"cores": 2}, "rows": [{**row, "experiment": name}]}

  monkeypatch.setattr(bench, "bench_apart", measure_one)
  names = ["rl.ppo", "rl.a2c", "rl.trpo"]
  assert bench.bench_several(names, [f"--experiment={','.join(names)}", f"--json={tmp_path / 'some.json'}"]) == 130
  assert [line["experiment"] for line in bench.load_report(tmp_path / "some.json")["rows"]] == ["rl.ppo"]
  assert "stopped after 1 of 3" in capsys.readouterr().err


def test_reports_that_are_none(tmp_path):
  with pytest.raises(InputError, match="cannot be read"):
    bench.load_report(tmp_path / "absent.json")
  for text in (
    "{",
    "[]",
    '{"rows": []}',
    '{"machine": {}, "rows": [1]}',
    '{"machine": {}, "rows": [{"experiment": "x"}]}',
  ):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(InputError, match="not a report of this benchmark"):
      bench.load_report(tmp_path / "other.json")


def test_all_of_the_catalogue_is_in_the_loop_or_a_study():
  names = {name for name, _ in catalogue()}
  assert set(bench.experiments_in_loop()) < names


def test_the_command_measures_writes_and_compares(row, tmp_path):
  (tmp_path / "before.json").write_text(json.dumps({"machine": {"device": "abacus"}, "rows": [row]}))
  flags = ["--env=FrozenLake-v1", "--steps_per_update=20", "--measurements=2", "--seconds=0.01", "--devices=1"]
  files = [f"--json={tmp_path / 'now.json'}", f"--compare={tmp_path / 'before.json'}"]
  command = [sys.executable, "-m", "launch.bench", "--experiment=rl.q_learning", *flags, *files]
  done = subprocess.run(command, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  assert "env steps/s" in done.stdout
  assert "abacus before" in done.stdout and "not measured before" in done.stdout
  report = bench.load_report(tmp_path / "now.json")
  assert report["rows"][0]["config"]["steps_per_update"] == 20
