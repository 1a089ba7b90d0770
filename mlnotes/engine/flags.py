"""A frozen dataclass becomes absl flags, and the parsed flags become the dataclass again.

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(LoopConfig):
      temperature: float = field(0.1, "softmax temperature, > 0")

    if __name__ == "__main__":
      run(main, Config)            # main(config: Config)

Every field is one flag: its type from the annotation, its choices from `Literal`, its help from `field`. Nothing is
defined until `run` is called, so importing a module defines no flags.
"""

import contextlib
import dataclasses
import math
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from absl import app, flags as absl_flags, logging

from mlnotes.engine.errors import InputError, nearest, require
from mlnotes.engine.terminal import prepare_streams

ConfigT = TypeVar("ConfigT")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseConfig:
  """What every part of a config inherits: parts combine by multiple inheritance, and each checks its own fields.

  A part's `__post_init__` calls `super().__post_init__()` first. A subclass may give an inherited field another default
  or fewer choices; another type or help text, which is another meaning, raises TypeError when the class is made.

  Attributes:
    many_processes: whether the program may be one of several processes that work as one (`mlnotes.engine.distributed`).
  """

  many_processes: ClassVar[bool] = False

  def __init_subclass__(cls, **kwargs):
    super().__init_subclass__(**kwargs)
    _require_same_fields(cls)

  def __post_init__(self):
    pass

  def idle_flags(self) -> dict[str, str]:
    """{flag: why} of the flags that change nothing beside the others; a subclass adds its own to those of `super()`.

    Whoever gives one of them is told so before the run starts.
    """
    return {}

  def cpu_layout(self, cores: int) -> Any:
    """The `mlnotes.engine.layout.Layout` that suits a machine of so many cores and no accelerator; None: JAX's own."""
    return None

  @classmethod
  def tuned(cls, **given: Any) -> "BaseConfig":
    """The config with what was given; a subclass may choose other defaults that suit it, as for an environment."""
    return cls(**given)


def field(default: Any, help: str, *, free: bool | Literal["report", "pictures"] = False, refines: bool = False) -> Any:
  """A dataclass field with its help text. `free` fields may change between a run and its resumption.

  free: True for what changes nothing that a run shows; "report" for what changes figures of the evaluation and the
    report alone, "pictures" for what changes pictures alone: a finished run is reported again where it differs.
  refines: the text describes an inherited flag more closely and leaves its meaning as it is.
  """
  return dataclasses.field(default=default, metadata={"help": help, "free": free, "refines": refines})


def _require_same_fields(config_class: type) -> None:
  """Raises TypeError where one name of a flag has two types or two meanings among `config_class` and its bases."""
  first: dict[str, tuple[type, Any, str]] = {}
  for base in reversed(config_class.__mro__[:-1]):
    types = typing.get_type_hints(base)
    for name in vars(base).get("__annotations__", ()) if sys.version_info < (3, 14) else base.__annotations__:
      kind = types[name]
      if typing.get_origin(kind) is ClassVar or kind is ClassVar:
        continue
      default = vars(base).get("__dataclass_fields__", vars(base)).get(name)
      said = default.metadata if isinstance(default, dataclasses.Field) else {}
      text = said.get("help", "")
      if name not in first:
        first[name] = (base, kind, text)
        continue
      origin, expected, meaning = first[name]
      fewer = typing.get_origin(kind) is Literal and set(typing.get_args(kind)) <= set(typing.get_args(expected))
      if kind != expected and not fewer:
        raise TypeError(
          f"{config_class.__name__}: the flag --{name} is {_spell(kind)} in {base.__name__} and {_spell(expected)} in "
          f"{origin.__name__}: expected another name for one of them."
        )
      if text and text != meaning and not said.get("refines"):
        raise TypeError(
          f"{config_class.__name__}: the flag --{name} means {text!r} in {base.__name__} and {meaning!r} in "
          f"{origin.__name__}: expected another name for one of them, or another default alone."
        )


def _spell(kind: Any) -> str:
  return kind.__name__ if isinstance(kind, type) else str(kind)


def experiment_name(config_class: type) -> str:
  """What an experiment is called: by the module that defines its config, `rl.ppo` for experiments/rl/ppo.py.

  One's own is called after its module, or its file, the same whether it is run or imported.
  """
  name = config_class.__module__
  module = sys.modules.get(name)
  if name == "__main__" and getattr(module, "__spec__", None):
    name = module.__spec__.name
  elif name == "__main__" or name.startswith("_experiment_"):  # a file that is run, or that `experiments` imports
    name = Path(getattr(module, "__file__", "") or "interactive").stem
  return name.removesuffix(".__main__").removeprefix("experiments.")


def config_fields(config_class: type) -> Iterator[tuple[dataclasses.Field, Any, typing.Mapping[str, Any]]]:
  """(field, resolved type, metadata) of each field; a field redeclared in a subclass keeps its parent's help."""
  types = typing.get_type_hints(config_class)
  for item in dataclasses.fields(config_class):
    metadata = item.metadata
    if "help" not in metadata:
      inherited = (getattr(base, "__dataclass_fields__", {}).get(item.name) for base in config_class.__mro__)
      metadata = next((f.metadata for f in inherited if f is not None and "help" in f.metadata), metadata)
    yield item, types[item.name], metadata


class _TupleParser(absl_flags.ArgumentParser):
  """Comma-separated values of one type: `--multipliers=1,2,4`."""

  syntactic_help = "a comma separated list"

  def __init__(self, element: Callable[[str], Any]):
    self.element = element

  def parse(self, argument):
    if isinstance(argument, tuple):
      return argument
    return tuple(self.element(part) for part in argument.split(",") if part.strip())

  def flag_type(self):
    return f"comma separated {self.element.__name__}s"


class _TupleSerializer(absl_flags.ArgumentSerializer):
  def serialize(self, value):
    return ",".join(map(str, value))


def define(config_class: type, flag_values: absl_flags.FlagValues = absl_flags.FLAGS) -> None:
  """Defines one flag per field of `config_class`, listed by --helpshort as the program's own.

  Raises TypeError for a field whose type has no flag (bool, int, float, str, Literal of str, tuple[T, ...] have).
  """
  define_simple = {
    bool: absl_flags.DEFINE_bool,
    int: absl_flags.DEFINE_integer,
    float: absl_flags.DEFINE_float,
    str: absl_flags.DEFINE_string,
  }
  for item, kind, metadata in config_fields(config_class):
    common = {"flag_values": flag_values, "module_name": sys.argv[0]}
    args = (item.name, item.default)
    text = metadata.get("help", "")
    if kind in define_simple:
      define_simple[kind](*args, text, **common)
    elif typing.get_origin(kind) is Literal:
      absl_flags.DEFINE_enum(*args, list(typing.get_args(kind)), text, **common)
    elif typing.get_origin(kind) is tuple:
      parser = _TupleParser(typing.get_args(kind)[0])
      absl_flags.DEFINE(parser, *args, text, serializer=_TupleSerializer(), **common)
    else:
      raise TypeError(f"field {item.name!r} of {config_class.__name__} has type {kind}, which has no flag")


def parse(config_class: type[ConfigT], flag_values: absl_flags.FlagValues = absl_flags.FLAGS) -> ConfigT:
  """The parsed flags as a `config_class`. What its `__post_init__` rejects (ValueError) is an InputError."""
  given = {}
  for item, _, _ in config_fields(config_class):
    flag = flag_values[item.name]
    if not flag.using_default_value:
      for number in flag.value if isinstance(flag.value, tuple) else (flag.value,):
        require(not isinstance(number, float) or math.isfinite(number), item.name, number, "a finite number")
      given[item.name] = flag.value
  try:
    return config_class.tuned(**given)
  except ValueError as error:
    raise InputError(str(error)) from error


def idle_notes(config: BaseConfig, flag_values: absl_flags.FlagValues = absl_flags.FLAGS) -> list[str]:
  """A sentence for each flag that was given and has no effect beside the others."""
  idle = config.idle_flags().items()
  return [
    f"--{name}={flag_values[name].value} has no effect: {why}." for name, why in idle if flag_values[name].present
  ]


def from_dict(config_class: type[ConfigT], values: Any) -> ConfigT:
  """The config whose fields were saved as JSON. Raises InputError for what is not a field, or not of its type."""
  if not isinstance(values, typing.Mapping):
    raise InputError(f"found {type(values).__name__} in place of the settings: expected an object of them.")
  kinds = {item.name: kind for item, kind, _ in config_fields(config_class)}
  if unknown := sorted(values.keys() - kinds.keys()):
    raise InputError(f"found the setting {unknown[0]!r}, expected one of {', '.join(sorted(kinds))}.")
  try:
    return config_class(**{name: _as_kind(name, kinds[name], value) for name, value in values.items()})
  except ValueError as error:
    raise InputError(str(error)) from error


def _as_kind(name: str, kind: Any, value: Any) -> Any:
  """A value from JSON as a field of this type has it. Raises InputError for any other."""
  origin, arguments = typing.get_origin(kind), typing.get_args(kind)
  if origin is tuple and isinstance(value, (list, tuple)):
    return tuple(_as_kind(name, arguments[0], part) for part in value)
  if kind is float and type(value) is int:
    return float(value)
  if value in arguments if origin is Literal else type(value) is kind:
    return value
  raise InputError(f"the setting {name} is {value!r}: expected {_spell(kind)}.")


def read(
  config_class: type, arguments: Sequence[str], program: str, *, known_only: bool = False
) -> absl_flags.FlagValues:
  """The flags of `config_class` with what `arguments` set, apart from those of this process.

  known_only: arguments that are not flags of the class are left out. Raises InputError for what does not fit;
  `program` is whose flags they are in its sentence.
  """
  values = absl_flags.FlagValues()
  define(config_class, values)
  rest = _read(values, [program, *arguments], program, known_only)
  if not known_only:
    _require_no_more(rest)
  return values


def _read(
  values: absl_flags.FlagValues,
  argv: Sequence[str],
  program: str,
  known_only: bool = False,
  explain: Callable[[str], str] = lambda name: "",
) -> Sequence[str]:
  try:
    return values(argv, known_only=known_only)
  except absl_flags.UnrecognizedFlagError as error:
    raise no_flag(program, error.flagname, values, explain(error.flagname)) from error
  except absl_flags.IllegalFlagValueError as error:
    raise InputError(_unfit(values, error)) from error
  except (absl_flags.Error, ValueError) as error:  # the latter for --noname=value
    raise InputError(f"{program}: {' '.join(str(error).split()).rstrip('.')}.") from error


def _unfit(values: absl_flags.FlagValues, error: absl_flags.IllegalFlagValueError) -> str:
  """The sentence about a value that its flag cannot have. absl's ends in the words of Python's parser."""
  found = re.fullmatch(r"flag --(\w+)=(.*)", str(error).removesuffix(f": {error.__context__}"), re.DOTALL)
  if not found or found[1] not in values:
    return str(error)
  flag = values[found[1]]
  kinds = {"int": "a whole number", "float": "a number", "bool": "true or false"}
  choices = getattr(flag.parser, "enum_values", ())
  expected = f"one of {', '.join(choices)}" if choices else kinds.get(flag.flag_type(), flag.flag_type())
  return f"--{found[1]}={found[2]} cannot be read: expected {expected}."


# What other codes call the flags that this one calls otherwise.
_ALIASES = {
  "lr": "learning_rate", "alpha": "learning_rate", "step_size": "learning_rate", "bs": "batch_size",
  "batch": "batch_size", "minibatch_size": "batch_size", "epochs": "steps", "max_steps": "steps",
  "num_steps": "steps", "iterations": "steps", "updates": "steps", "total_timesteps": "steps", "wd": "weight_decay",
  "gamma": "discount", "polyak": "tau", "temp": "temperature", "env_id": "env", "env_name": "env",
  "environment": "env", "n_envs": "num_envs", "num_environments": "num_envs", "data": "dataset",
  "data_path": "dataset", "output_dir": "workdir", "logdir": "workdir", "log_dir": "workdir", "out_dir": "workdir",
  "save_dir": "workdir", "num_seeds": "seeds", "random_seed": "seed", "dtype": "precision", "gpus": "devices",
  "num_threads": "threads", "cores": "threads", "nproc": "threads", "n_devices": "devices", "num_devices": "devices",
  "log_interval": "log_every", "eval_interval": "eval_every",
  "save_every": "checkpoint_every", "save_interval": "checkpoint_every", "optim": "optimizer", "opt": "optimizer",
  "scheduler": "schedule", "warmup": "warmup_steps", "grad_clip": "clip_norm", "max_grad_norm": "clip_norm",
  "hidden_sizes": "hidden", "hidden_dims": "hidden", "k": "knn_k", "resume": "workdir",
}  # fmt: skip


def _command(program: str) -> str:
  return f"python {program}" if program.endswith(".py") else f"python -m {program}"


def no_flag(program: str, name: str, values: absl_flags.FlagValues, hint: str = "", command: str = "") -> InputError:
  """What is to be said of a flag that is not there: `hint`, else the nearest that is."""
  plain = name.replace("-", "_").lower()
  known = next((other for other in (plain, _ALIASES.get(plain)) if other in values), None)
  if not hint and known:
    hint = f"did you mean --{known}?"
  flags = [f"--{other}" for other in sorted(values)]
  hint = hint or nearest(f"--{name}", flags, f"{command or _command(program)} --helpshort lists them.")
  return InputError(f"{program} has no flag --{name}: {hint}")


def _missing_platform() -> str:
  """The sentence about a JAX_PLATFORMS that JAX cannot serve; "" where that is not what is wrong."""
  names = os.environ.get("JAX_PLATFORMS", "")
  if not names:
    return ""
  import jax

  try:
    jax.devices()
  except (AssertionError, RuntimeError):
    way = "pip install -e '.[cuda]'" if "cuda" in names or "gpu" in names else "its plugin"
    return f"JAX_PLATFORMS={names}: JAX finds no such device here; expected cpu, or {way} and a device."
  return ""


def _lay_out(config: BaseConfig) -> None:
  if type(config).cpu_layout is BaseConfig.cpu_layout:
    return  # without JAX, which takes its time to import
  from mlnotes.engine import distributed, layout, sharding

  if distributed.find_peers(os.environ) is not None:  # each of the processes is a device
    config = dataclasses.replace(config, devices=1)
  chosen = config.cpu_layout(sharding.count_cores())
  if chosen and layout.runs_on_cpu():
    layout.apply_layout(chosen)


def _together() -> contextlib.AbstractContextManager[None]:
  from mlnotes.engine import distributed

  return distributed.together()


def _require_no_more(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise InputError(f"found the argument {argv[1]!r}: every setting is a flag, expected --name=value.")


def run(
  main: Callable[..., int | None],
  config_class: type,
  *,
  arguments: bool = False,
  explain: Callable[[str], str] = lambda name: "",
) -> None:
  """Defines the flags, parses the command line, calls `main(config)`, exits with its result.

  arguments: whether others than flags are allowed; then it is `main(config, arguments)`.
  explain: what is expected in place of a flag that is not there; "" for the nearest that is.

  An InputError becomes one line on standard error and exit code 2, Ctrl-C one line and 130.
  """
  prepare_streams()
  define(config_class)
  absl_flags.FLAGS.set_gnu_getopt(arguments)  # flags and other arguments in any order
  spec = sys.modules["__main__"].__spec__
  program = spec.name if spec else sys.argv[0]

  def parse_flags(argv):
    try:
      return _read(absl_flags.FLAGS, argv, program, explain=explain)
    except InputError as error:
      print(f"error: {error}", file=sys.stderr)
      sys.exit(2)
    except BrokenPipeError:  # the help, into a pager that was closed
      os._exit(0)

  def parse_and_call(argv):
    if not absl_flags.FLAGS["verbosity"].present:
      # Orbax logs every step of a save, and the traceback of an error that it raises as well.
      logging.set_verbosity(logging.FATAL)
    try:
      if not arguments:
        _require_no_more(argv)
      config = parse(config_class)
      given = (config, argv[1:]) if arguments else (config,)
      _lay_out(config)
      # Notes may make arrays (of an environment's bounds, say): JAX lets no process join the others after that.
      with _together() if config.many_processes else contextlib.nullcontext():
        for note in idle_notes(config):
          print(f"note: {note}", file=sys.stderr)
        return main(*given)
    except InputError as error:
      print(f"error: {error}", file=sys.stderr)
      return 2
    except (AssertionError, RuntimeError):  # what JAX raises differs from platform to platform
      if not (reason := _missing_platform()):
        raise
      print(f"error: {reason}", file=sys.stderr)
      return 2
    except KeyboardInterrupt:
      print("stopped by Ctrl-C", file=sys.stderr)
      return 130

  app.run(parse_and_call, flags_parser=parse_flags)
