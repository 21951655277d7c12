"""Files that this user alone may write: what is loaded as code must not be another's."""

import os
import stat
import tempfile
from pathlib import Path


def folder(path: Path) -> Path:
    """A folder of this user, closed to others; made where it is missing.

    Raises
    ------
    OSError
        If there is no such folder; PermissionError if it is another user's.
    """
    for each in (*reversed(path.parents), path):
        each.mkdir(mode=0o700, exist_ok=True)
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        state = os.fstat(handle)
        if state.st_uid != os.geteuid():
            raise PermissionError(f"{path} belongs to another user")
        if state.st_mode & 0o077:
            os.fchmod(handle, 0o700)  # what others may have put there is told by its owner
    finally:
        os.close(handle)
    return path


def read(path: Path) -> bytes | None:
    """What a file holds; None where there is no file that this user alone could have written.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with open(handle, "rb") as file:
        state = os.fstat(handle)
        ours = stat.S_ISREG(state.st_mode) and state.st_uid == os.geteuid() and not state.st_mode & 0o022
        return file.read() if ours else None


def write(path: Path, content: bytes) -> None:
    """Write a file of this user alone, under another name first, so that processes that write at once do not meet.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as work:
        written = Path(work) / path.name
        written.touch(mode=0o600)
        written.write_bytes(content)
        os.replace(written, path)
