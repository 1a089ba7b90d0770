"""The one exception that is meant for the person at the terminal."""


class InputError(ValueError):
  """A flag, file or argument cannot be used. The message is one sentence: what was found, what was expected.

  Entrypoints print the sentence and exit with code 2; any other exception is a bug and keeps its traceback.
  """
