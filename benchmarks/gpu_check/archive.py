"""One archive of what the parts left: records, pages, logs and traces, within a size."""

import io
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from tda.results import write_whole

LIMIT_BYTES = 15 << 20
"""The summary beside it may take the sixteenth."""
NAME, FOLDER = "records.tar.gz", "gpu-check"
BLOCK = 512
"""Of a tar file: what a file's entry takes at least, and what its content is rounded up to."""
LEFT_ASIDE = ("inductor", "model", ".lock")
"""Folders and files that are no results: what torch compiled, weights, locks."""
TRACES = (".trace.json.gz", ".pickle")
"""Ends of the names of traces, which go first where there is no room."""


def pack(scratch: Path, out: Path, limit_bytes: int = LIMIT_BYTES) -> list[str]:
    """Write the archive; the names of what found no room in it, the largest traces first."""
    packed, dropped, taken = io.BytesIO(), [], 0
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=6) as archive:
        for path in _by_worth(scratch):
            name = path.relative_to(scratch).as_posix()
            size = _packed_bytes(path) if path.stat().st_size <= 8 * limit_bytes else limit_bytes
            if taken + size > limit_bytes:
                dropped.append(name)
                continue
            archive.add(path, arcname=f"{FOLDER}/{name}", recursive=False)
            taken += size
    write_whole(out / NAME, packed.getvalue())
    return dropped[::-1]


def _by_worth(scratch: Path) -> Iterator[Path]:
    """What counts as a result: all else before traces, small before large."""
    found = [
        path
        for path in scratch.rglob("*")
        if path.is_file() and not path.is_symlink() and not {*path.relative_to(scratch).parts} & set(LEFT_ASIDE)
    ]
    yield from sorted(found, key=lambda path: (path.name.endswith(TRACES), path.stat().st_size, path.as_posix()))


def _packed_bytes(path: Path) -> int:
    """About what a file takes in the archive, and not less: compressed by itself, with its entry."""
    return len(zlib.compress(path.read_bytes(), 1)) + 2 * BLOCK
