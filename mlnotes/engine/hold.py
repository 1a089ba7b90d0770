"""A directory that one process at a time may write to."""

import contextlib
import errno
import fcntl
import os
import socket
import sys
from pathlib import Path

from mlnotes.engine.errors import InputError

NAME = ".held"
# A file system without locks, as some network ones are.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Hold:
  """The lock of a directory, held until `release` or the end of the process, however it ends.

  The kernel keeps it on the file `.held`, over NFS the server: what a killed process leaves behind holds nobody up.
  Raises InputError, which names the holder, where another process has it; OSError where nothing can be written.
  """

  def __init__(self, directory: Path):
    self._path = directory / NAME
    while True:
      self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
      try:
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError as error:
        if error.errno not in _NO_LOCKS:
          holder = os.pread(self._file, 200, 0).decode(errors="replace").strip() or "a process that is starting"
          os.close(self._file)
          if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
          raise InputError(
            f"--workdir={directory} is in use by {holder}: expected that to end first, or another --workdir."
          ) from None
        print(f"note: {directory} cannot be locked ({error.strerror}): give it to one process alone.", file=sys.stderr)
      if self._is_current():
        break
      os.close(self._file)  # its holder has let go and removed it meanwhile
    try:
      os.ftruncate(self._file, 0)
      os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    except OSError:
      self.release()
      raise

  def _is_current(self) -> bool:
    try:
      return os.path.samestat(os.fstat(self._file), os.stat(self._path))
    except FileNotFoundError:
      return False

  def release(self) -> None:
    """Removes the lock's file and lets go."""
    with contextlib.suppress(OSError):
      self._path.unlink()
    os.close(self._file)
