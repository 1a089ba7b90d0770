"""Dataclass to flags and back."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from absl import flags as absl_flags

from experiments import catalogue, import_experiment
from mlnotes.engine.errors import InputError, nearest
from mlnotes.engine.flags import BaseConfig, config_fields, define, field, from_dict, idle_notes, parse, read
from mlnotes.rl import make_env

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base(BaseConfig):
  steps: int = field(10, "updates", free=True)
  rate: float = field(0.5, "learning rate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Base):
  steps: int = 20
  kind: Literal["a", "b"] = field("a", "which")
  sizes: tuple[int, ...] = field((1, 2), "sizes")
  fast: bool = field(False, "fast")
  name: str = field("", "name")

  def __post_init__(self):
    super().__post_init__()
    if self.rate < 0:
      raise ValueError(f"--rate={self.rate} is out of range: expected 0 or more.")


def parsed(*argv):
  return parse(Config, read(Config, argv, "program"))


def test_defaults_come_back_unchanged():
  assert parsed() == Config()


def test_every_type_is_parsed():
  config = parsed("--steps=3", "--rate=2", "--kind=b", "--sizes=4,5,6", "--fast", "--name=x")
  assert config == Config(steps=3, rate=2.0, kind="b", sizes=(4, 5, 6), fast=True, name="x")


@pytest.mark.parametrize("numbers", ["nan", "0.5,inf"])
def test_each_number_of_several_is_finite(numbers):
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Several(BaseConfig):
    rates: tuple[float, ...] = field((0.1,), "rates")

  with pytest.raises(InputError, match=f"--rates={numbers[-3:]} is out of range: expected a finite number"):
    parse(Several, read(Several, [f"--rates={numbers}"], "program"))


def test_flagfile_holds_a_whole_config(tmp_path):
  values = absl_flags.FlagValues()
  define(Config, values)
  values(["program", "--sizes=7,8", "--kind=b"])
  path = tmp_path / "flags"
  path.write_text(values.flags_into_string())
  absl_flags.DEFINE_string("flagfile", "", "", flag_values=values)
  assert parsed(*path.read_text().split()) == Config(sizes=(7, 8), kind="b")


def test_redeclared_field_keeps_help_and_freedom():
  info = {item.name: (item.default, metadata) for item, _, metadata in config_fields(Config)}
  default, metadata = info["steps"]
  assert default == 20 and metadata["help"] == "updates" and metadata["free"]


@pytest.mark.parametrize(
  "argument, sentence",
  [
    ("--kind=c", "--kind=c cannot be read: expected one of a, b."),
    ("--steps=a:b", "--steps=a:b cannot be read: expected a whole number."),
    ("--steps=2.5", "--steps=2.5 cannot be read: expected a whole number."),
    ("--rate=x", "--rate=x cannot be read: expected a number."),
    ("--fast=maybe", "--fast=maybe cannot be read: expected true or false."),
    ("--sizes=1,x", "--sizes=1,x cannot be read: expected comma separated ints."),
    ("--stpes=3", "program has no flag --stpes: did you mean --steps?"),
    ("--epochs=3", "program has no flag --epochs: did you mean --steps?"),
    ("--Steps=3", "program has no flag --Steps: did you mean --steps?"),
    ("--zzz", "program has no flag --zzz: python -m program --helpshort lists them."),
    ("--nofast=1", "program: --nofast=1 does not take an argument."),
    ("--steps", "program: Missing value for flag --steps."),
    ("steps=3", "found the argument 'steps=3': every setting is a flag, expected --name=value."),
  ],
)
def test_a_wrong_argument_is_one_sentence(argument, sentence):
  with pytest.raises(InputError) as caught:
    parsed(argument)
  assert str(caught.value) == sentence


def test_flags_of_others_are_left_out():
  assert parse(Config, read(Config, ["--stpes=3", "--steps=4", "more"], "program", known_only=True)).steps == 4


def test_post_init_becomes_an_input_error():
  with pytest.raises(InputError, match="--rate=-1"):
    parsed("--rate=-1")


def test_a_type_without_flag_is_a_programming_error():
  @dataclasses.dataclass(frozen=True)
  class Odd:
    table: dict = field(None, "no flag")

  with pytest.raises(TypeError, match="table"):
    define(Odd, absl_flags.FlagValues())


@pytest.mark.parametrize(
  "name, kind, default, sentence",
  [
    ("rate", bool, True, "--rate is bool in Child and float in Base"),
    ("rate", float, field(0.5, "how often"), "--rate means 'how often' in Child and 'learning rate' in Base"),
    ("kind", Literal["a", "c"], "a", "--kind is .*'c'.* in Child"),
  ],
)
def test_an_inherited_flag_keeps_its_type_and_its_meaning(name, kind, default, sentence):
  with pytest.raises(TypeError, match=sentence):
    type("Child", (Config,), {"__annotations__": {name: kind}, name: default})


def test_an_inherited_flag_may_have_another_default_and_fewer_choices():
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Child(Config):
    kind: Literal["b"] = "b"
    rate: float = field(0.1, "learning rate of the second kind", refines=True)

  assert Child() == Child(kind="b", rate=0.1)


def test_two_parts_of_a_config_cannot_give_one_flag_two_meanings():
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Clip(BaseConfig):
    fast: float = field(0.0, "speed")

  with pytest.raises(TypeError, match="Both: the flag --fast is"):

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Both(Config, Clip):
      pass


def test_a_flag_without_effect_says_so_where_it_was_given():
  class Child(Config):
    def idle_flags(self):
      return super().idle_flags() | ({"rate": "--kind=b has none"} if self.kind == "b" else {})

  def notes(*argv):
    values = read(Child, argv, "program")
    return idle_notes(parse(Child, values), values)

  assert notes("--kind=b", "--rate=1") == ["--rate=1.0 has no effect: --kind=b has none."]
  assert notes("--kind=b") == notes("--rate=1") == []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kinds(BaseConfig):
  flag: bool = field(False, "a flag")
  count: int = field(1, "a whole number")
  rate: float = field(0.1, "a number")
  name: str = field("", "a text")
  kind: Literal["a", "b"] = field("a", "a choice")
  sizes: tuple[int, ...] = field((1,), "several")


def test_a_saved_config_comes_back_as_it_was():
  config = Kinds(flag=True, count=3, rate=2.0, name="x", kind="b", sizes=(1, 2))
  saved = json.loads(json.dumps(dataclasses.asdict(config)))
  assert from_dict(Kinds, saved) == config
  assert from_dict(Kinds, {"rate": 2}) == Kinds(rate=2.0)


@pytest.mark.parametrize(
  "values",
  [
    {"flag": 1}, {"flag": "true"}, {"count": 1.5}, {"count": True}, {"count": "3"}, {"count": None}, {"count": [1]},
    {"rate": "fast"}, {"rate": None}, {"rate": True}, {"name": 3}, {"name": []}, {"kind": "c"}, {"kind": ["a"]},
    {"sizes": 3}, {"sizes": [1, "x"]}, {"sizes": [[1]]}, {"other": 1}, [], 3, None, "text",
  ],
)  # fmt: skip
def test_a_saved_config_of_other_types_is_one_sentence(values):
  with pytest.raises(InputError, match="expected"):
    from_dict(Kinds, values)


@pytest.mark.parametrize(
  ("experiment", "flag", "sentence"),
  [
    ("rl.ppo", "--lr=.1", "rl.ppo has no flag --lr: did you mean --learning_rate?"),
    ("rl.ppo", "--gamma=.9", "rl.ppo has no flag --gamma: did you mean --discount?"),
    ("rl.ppo", "--learning-rate=.1", "rl.ppo has no flag --learning-rate: did you mean --learning_rate?"),
    ("diffusion.ddpm", "--bs=3", "diffusion.ddpm has no flag --bs: did you mean --batch_size?"),
  ],
)
def test_the_words_of_other_codes_are_known(experiment, flag, sentence):
  with pytest.raises(InputError) as caught:
    read(import_experiment(experiment).Config, [flag], experiment)
  assert str(caught.value) == sentence


def test_the_flags_of_all_experiments_go_together():
  """The benchmark's beside each experiment's, and each word of other codes with a flag that some experiment has.

  That a class cannot change what it inherits is checked when it is made.
  """
  from launch.bench import settings_class
  from mlnotes.engine.flags import _ALIASES

  known = set()
  for name, _ in catalogue():
    module = import_experiment(name)
    known |= {item.name for item in dataclasses.fields(module.Config)}
    if hasattr(module, "make"):
      settings_class(name)
  assert set(_ALIASES.values()) <= known


def test_nearest_takes_no_offence_at_capitals():
  assert nearest("Cartpole-v1", ["CartPole-v1", "Acrobot-v1"]) == "did you mean CartPole-v1?"
  with pytest.raises(InputError, match=r"--env=Cartpole-v1 is not an environment: did you mean CartPole-v1\?"):
    make_env("Cartpole-v1")


def run_module(*arguments, **environment):
  return subprocess.run(
    [sys.executable, "-m", *arguments], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
    timeout=240,
  )  # fmt: skip


@pytest.mark.parametrize("arguments", [["experiments.rl.pppo", "--steps=3"], ["experiments", "rl.pppo"]])
def test_a_module_that_is_not_there_gets_the_nearest(arguments):
  done = run_module(*arguments)
  assert done.returncode == 2 and done.stderr == "error: rl.pppo is not an experiment: did you mean rl.ppo?\n"


def test_a_chapter_that_is_not_there_gets_the_nearest():
  done = run_module("experiments.rll")
  assert done.returncode == 2 and done.stderr == "error: rll is not an experiment: did you mean rl?\n"


NOTED = """
import contextlib, dataclasses
from mlnotes.engine import distributed
from mlnotes.engine.flags import BaseConfig, field, run

@contextlib.contextmanager
def together():
  print("joins the other processes", flush=True)
  yield

@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
  many_processes = True
  rate: float = field(0.1, "step size")

  def idle_flags(self):
    return {"rate": "nothing is learned"}

distributed.together = together
run(lambda config: print("works", flush=True), Config)
"""


def test_notes_are_made_when_the_process_has_joined_the_others(tmp_path):
  """They may ask an environment, whose bounds are arrays: after the first array a process cannot join."""
  (tmp_path / "noted.py").write_text(NOTED)
  command = [sys.executable, str(tmp_path / "noted.py"), "--rate=1"]
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  done = subprocess.run(
    command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
  )
  assert done.stdout.splitlines() == [
    "joins the other processes", "note: --rate=1.0 has no effect: nothing is learned.", "works",
  ]  # fmt: skip


def test_a_chapter_lists_its_experiments():
  done = run_module("experiments.rl")
  assert done.returncode == 0 and "experiments.rl.ppo" in done.stdout and "simclr" not in done.stdout


def test_a_platform_that_is_not_there_is_one_sentence(tmp_path):
  done = run_module("experiments", "rl.q_learning", f"--workdir={tmp_path / 'run'}", JAX_PLATFORMS="tpu")
  assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: JAX_PLATFORMS=tpu: JAX finds no such")
  assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


def test_more_devices_than_there_are_leave_no_directory(tmp_path):
  from experiments.rl import q_learning

  with pytest.raises(InputError, match="--devices=400 is out of range"):
    q_learning.main(q_learning.Config(workdir=str(tmp_path / "run"), devices=400))
  assert not (tmp_path / "run").exists()
