"""An environment by its name."""

from mlnotes.rl.env import Environment
from mlnotes.rl.gymnax_env import make_gymnax_env
from mlnotes.rl.table import TABLE_ENVS


def make_env(name: str) -> Environment:
  """The environment of that name: a table of Gymnasium's, one of gymnax, or one that runs on the host.

  The last are `gymnasium:NAME` and `module:function`; see `mlnotes.rl.host_env`. Raises InputError for an unknown name.
  """
  if ":" in name:
    from mlnotes.rl.host_env import make_host_env

    return make_host_env(name)
  if name in TABLE_ENVS:
    from mlnotes.rl.table import make_table_env, read_table

    return make_table_env(read_table(name))
  return make_gymnax_env(name)
