"""Tell asv which machine this is, without questions: ``python -m benchmarks.asv.machine`` prints the name to use.

The name holds everything whose change makes numbers incomparable, the GPU and its driver too, which asv does not ask
for. So a new torch or driver begins a series of its own.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # asv imports every module of the suite for every value that it reads
    from tda.records import Machine


def name_of(machine: "Machine") -> str:
    """What the results of a machine are filed under."""
    facts = [
        machine.cpu,
        f"{machine.cores_told}",
        f"{machine.threads} threads",
        machine.gpu,
        machine.driver and f"driver {machine.driver}",
        f"torch {machine.torch}",
        f"transformers {machine.transformers}",
    ]
    return re.sub("[^a-z0-9.]+", "-", " ".join(filter(None, facts)).lower()).strip("-")


def this() -> str:
    """Name of the machine that runs this."""
    import torch

    from tda.device import machine

    return name_of(machine("cuda" if torch.cuda.is_available() else "cpu"))


def register(name: str) -> None:
    """Note the machine in asv's own file in the home folder."""
    from asv import machine

    machine.MachineCollection.save(name, {**machine.Machine.get_defaults(), "machine": name})


if __name__ == "__main__":
    name = this()
    register(name)
    print(name)
