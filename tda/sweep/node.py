"""What runs on the machines of a cluster: a group's supervisor, and a look at what all must share."""

import importlib.metadata
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tda.bench.messages import Order
from tda.bench.supervisor import supervised
from tda.bench.worker_limits import Limits
from tda.bench.worker_process import TAIL
from tda.cores import allowed_cores
from tda.records import Commit, Record
from tda.registry import plug_ins


def attend(orders: Sequence[Order], held: Sequence[Record], limits: Limits) -> Iterator[tuple[str, Any]]:
    """Look after the workers of a group, on the machine that Ray chose."""
    import ray

    yield "started", (platform.node(), ray.get_runtime_context().get_node_id())
    cores = own_cores(ray.get_gpu_ids(), _gpus_of_this_node())
    for kind, value in supervised(orders, held, replace(limits, cores=cores)):
        yield kind, value[-TAIL:] if kind == "stderr" else value


def _gpus_of_this_node() -> int:
    import ray

    own = ray.get_runtime_context().get_node_id()
    return next((int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["NodeID"] == own), 0)


def own_cores(gpus: Sequence[Any], count: int) -> frozenset[int] | None:
    """The part of a machine's cores that goes with a GPU, so that groups on others do not share them; None for all."""
    with suppress(ValueError):
        if len(gpus) == 1 and count > 1 and 0 <= int(gpus[0]) < count:
            cores, number = sorted(allowed_cores()), int(gpus[0])
            own = cores[number * len(cores) // count : (number + 1) * len(cores) // count]
            return frozenset(own) or None
    return None


def versions(commit: Commit) -> dict[str, str | None]:
    """What must be equal on all machines."""
    names = ("torch", "transformers")
    return {
        "tda's commit": commit.hash,
        "tda's uncommitted change": commit.change,
        **{name: importlib.metadata.version(name) for name in names},
        "the list of plug-ins": ", ".join(plug_ins()) or "empty",
    }


def look(mark: str, needed: Sequence[str], own: Mapping[str, str | None]) -> list[str]:
    """On a machine: what does not fit with the machine that drives the sweep."""
    from tda.device import commit

    problems = []
    path = Path(mark)
    if not path.is_file() or path.read_text() != path.name:
        problems.append(f"{path.parent} is not the folder that the sweep writes to: it must lie on shared storage")
    elif not os.access(path.parent, os.W_OK):
        problems.append(f"{path.parent} cannot be written")
    problems += [f"{one} is not there, or not readable" for one in needed if not os.access(one, os.R_OK)]
    here = versions(commit())
    problems += [f"{name} is {here[name]}, and {value} where the sweep was started" for name, value in own.items()
                 if here[name] != value]  # fmt: skip
    return problems
