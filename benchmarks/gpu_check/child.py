"""What the process of a part does: call it, and write each figure as it comes.

    python -m benchmarks.gpu_check.child MODULE:FUNCTION SETTING

with the setting as JSON. Standard input is held by the parent: when it dies, however it dies, we end with all that we
started.
"""

import importlib
import os
import signal
import sys
import threading

from benchmarks.gpu_check.setting import CheckSetting
from tda.results import append_lines

FIGURES = "figures.jsonl"


def carry_out(call: str, setting: CheckSetting) -> None:
    """Write the figures of a part to its folder."""
    module, _, function = call.partition(":")
    for figure in getattr(importlib.import_module(module, __package__), function)(setting):
        append_lines(setting.folder / FIGURES, [figure.model_dump_json()])


def _end_with_parent() -> None:
    os.read(0, 1)
    os.killpg(os.getpid(), signal.SIGKILL)  # `process.finish` made us the leader of our group


def main() -> None:
    """Carry out what the arguments name."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    carry_out(sys.argv[1], CheckSetting.model_validate_json(sys.argv[2]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # what is done is written; a driver that fails on the way out takes none of it


if __name__ == "__main__":
    main()
