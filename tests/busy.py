"""Other processes that use the cores while a test watches."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SPIN = "print('on', flush=True)\nwhile True: pass"


@contextmanager
def half_of_the_cores() -> Iterator[None]:
    """As many spinning processes, from when they do until the block ends."""
    count = max(1, (os.cpu_count() or 1) // 2)
    children = [subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()
        yield
    finally:
        for child in children:
            child.kill()
            child.communicate()
