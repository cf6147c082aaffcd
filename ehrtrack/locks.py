"""How a platform locks: `flock` on Linux and macOS; `msvcrt` on Windows, which is not tried."""

from __future__ import annotations

import os
import sys

if sys.platform == "win32":
    import msvcrt

    def lock(descriptor: int, *, waits: bool) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_LOCK if waits else msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(error.errno, error.strerror) from error

else:
    import fcntl

    def lock(descriptor: int, *, waits: bool) -> None:
        """Lock an open file, or on Linux and macOS a folder, for this process alone, until the descriptor is closed.

        Parameters
        ----------
        waits : whether to wait while another has the lock

        Raises
        ------
        BlockingIOError
            If another has the lock and `waits` is False.
        OSError
            If the disk knows no locks.

        Examples
        --------
        >>> import tempfile
        >>> with tempfile.TemporaryFile() as mine:
        ...     lock(mine.fileno(), waits=False)
        """
        fcntl.flock(descriptor, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
