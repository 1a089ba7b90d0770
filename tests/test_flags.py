"""Dataclass to flags and back."""

import dataclasses
from typing import Literal

import pytest
from absl import flags as absl_flags

from mlnotes.errors import InputError
from mlnotes.flags import BaseConfig, config_fields, define, field, idle_notes, parse, read


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
    ("--stpes=3", "program has no flag --stpes: did you mean steps?"),
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
