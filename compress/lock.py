"""A lock between processes, also between processes of several containers or hosts that share a disk."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@contextmanager
def locked(path: Path, note: Callable[[str], None]) -> Iterator[bool]:
    """Hold the lock file ``path`` in the block; if another process holds it, report that with ``note`` and wait.

    It is a POSIX record lock: it ends when the process ends for any reason, and works between hosts over NFS.
    The file is deleted when the block ends, and its folder when it is empty.

    Yields:
        whether the lock is held; False if the disk does not support locks, which is reported with ``note``.
    """
    file, held = _open(path, note)
    try:
        yield held
    finally:
        path.unlink(missing_ok=True)
        file.close()
        with suppress(OSError):
            path.parent.rmdir()


def _open(path: Path, note: Callable[[str], None]) -> tuple[IO[str], bool]:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("a+", encoding="utf-8", errors="replace")
        except FileNotFoundError:  # the folder was deleted just now, with its last lock
            continue
        try:
            held = _lock(file, path, note)
            if not held:
                return file, False
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
                return file, True
        except BaseException:
            file.close()
            raise
        file.close()  # its last holder deleted it


def _lock(file: IO[str], path: Path, note: Callable[[str], None]) -> bool:
    try:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            note(f"{path.name}: {holder} is at work on it; waiting until it ends")
            fcntl.lockf(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        note(
            f"{path.parent.parent} is on a disk without file locks ({error.strerror}): run one process at a time there"
        )
        return False
    return True
