"""The cluster: a Ray of our own on this machine or the user's, what its machines can do, and groups handed to it."""

import importlib.metadata
import json
import os
import signal
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from tda.bench.messages import Message, Order
from tda.bench.worker_limits import Limits
from tda.cores import allowed_cores
from tda.names import needs_extra
from tda.records import Commit, Record
from tda.results import write_whole
from tda.sweep.node import attend, look, versions

HOST = "tda_host"
"""Custom resource of a machine: a timed group on the CPU takes all of it, one that is not timed next to nothing."""
SHARE = 0.001
"""What "next to nothing" is."""
STORE_BYTES = 128 << 20
"""Ray's object store of a Ray of our own: what goes through it are records."""
ANSWERS_S = 10.0
"""Seconds in which the head of a cluster must answer."""
LOOKS_S = 120.0
"""Seconds in which every machine has looked at what all of them must share."""


class ClusterError(ValueError):
    """What a cluster lacks for a sweep."""


@dataclass(frozen=True)
class Needs:
    """What a group takes of the machine that measures it.

    Attributes
    ----------
    cpus, gpus : float
        Cores and GPUs.
    memory_bytes : int or None
        Host memory; None does not say.
    resources : mapping
        Custom resources of Ray.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory_bytes: int | None = None
    resources: Mapping[str, float] = field(default_factory=dict)

    def of_ray(self) -> dict[str, float]:
        """As Ray counts resources, by its names."""
        found = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        return {**found, **({} if self.memory_bytes is None else {"memory": float(self.memory_bytes)})}


class Node(NamedTuple):
    """A machine of the cluster, as Ray knows it."""

    id: str
    address: str
    resources: Mapping[str, float]

    def can(self, needs: Needs) -> bool:
        """Whether it could ever take a group of such needs."""
        return all(self.resources.get(name, 0.0) >= amount for name, amount in needs.of_ray().items() if amount)


class GroupEnd(NamedTuple):
    """That a group has nothing more to say, and why, if not because it is done."""

    error: Exception | None


@dataclass
class Cluster:
    """A connected Ray.

    Attributes
    ----------
    is_local : bool
        Whether it was started for this sweep, on this machine alone.
    dashboard : str or None
        Address of Ray's dashboard.
    address : str or None
        Address of the head.
    """

    is_local: bool
    dashboard: str | None
    address: str | None = None
    _running: dict[Any, str] = field(default_factory=dict)  # a generator of messages, and whose they are

    def nodes(self) -> list[Node]:
        """Machines that are alive."""
        import ray

        return [
            Node(node["NodeID"], node["NodeManagerAddress"], node["Resources"]) for node in ray.nodes() if node["Alive"]
        ]

    def check(self, needs: Mapping[str, Needs]) -> None:
        """Refuse what no machine could ever take.

        Raises
        ------
        ClusterError
            If a resource is unknown, or no machine has enough of all.
        """
        nodes = self.nodes()
        known = sorted({name for node in nodes for name in node.resources if not name.startswith("node:")})
        for group, one in needs.items():
            asked = {name: amount for name, amount in one.of_ray().items() if amount}
            if HOST in asked and HOST not in known:
                raise ClusterError(
                    f"no machine of the cluster has the resource {HOST}, which keeps a timed group alone on its "
                    f"machine; start Ray there with: ray start --resources='{json.dumps({HOST: 1})}' ..."
                )
            if unknown := [name for name in asked if name not in known]:
                raise ClusterError(
                    f"no machine of the cluster has {', '.join(unknown)}; its resources: {', '.join(known)}"
                )
            if not any(node.can(one) for node in nodes):
                told = ", ".join(f"{name} {amount:g}" for name, amount in asked.items())
                most = "; ".join(
                    ", ".join(f"{name} {node.resources.get(name, 0):g}" for name in asked) for node in nodes
                )
                raise ClusterError(f"no machine is large enough for {group}, which needs {told}; they have: {most}")

    def check_shared(self, out: Path, needed: Sequence[Path], commit: Commit, needs: Sequence[Needs]) -> None:
        """Have every machine that may take a group look at what all of them must share.

        Raises
        ------
        ClusterError
            If one does not see the results folder, a model folder or a text, or runs another tda.
        """
        if self.is_local:
            return
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        mark = out / f".shared-{uuid.uuid4().hex}"
        write_whole(mark, mark.name)
        own = versions(commit)
        try:
            looking = {
                node.id: ray.remote(look)
                .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False))
                .remote(str(mark.resolve()), [str(path.resolve()) for path in needed], own)
                for node in self.nodes()
                if any(node.can(one) for one in needs)
            }
            addresses, problems = {node.id: node.address for node in self.nodes()}, []
            for one, answer in looking.items():
                try:
                    problems += [f"{addresses[one]}: {problem}" for problem in ray.get(answer, timeout=LOOKS_S)]
                except (ray.exceptions.RayTaskError, ray.exceptions.GetTimeoutError) as error:
                    problems.append(f"{addresses.get(one, one)}: {_first_line(error)}")  # as where tda is not installed
                except ray.exceptions.RayError:
                    continue  # it was lost meanwhile
        finally:
            mark.unlink(missing_ok=True)
        if problems:
            raise ClusterError("machines of the cluster do not fit together: " + "; ".join(problems))

    def start(self, name: str, orders: Sequence[Order], held: Sequence[Record], limits: Limits, needs: Needs) -> None:
        """Hand a group to Ray: it runs on the first machine that has what it needs."""
        import ray

        options: dict[str, Any] = {
            "num_cpus": needs.cpus,
            "num_gpus": needs.gpus,
            "resources": dict(needs.resources),
            "max_retries": 0,  # a lost group goes on from what it has recorded: `tda.sweep.driver` hands it over again
            "num_returns": "streaming",
            "name": f"tda {name}",
            **({} if needs.memory_bytes is None else {"memory": needs.memory_bytes}),
        }
        task = ray.remote(attend).options(**options)
        self._running[task.remote(orders, list(held), limits)] = name

    @property
    def handed_over(self) -> int:
        """Groups that Ray has, waiting or running."""
        return len(self._running)

    def messages(self, timeout_s: float) -> Iterator[tuple[str, Message | GroupEnd]]:
        """What groups say, by name: what is there within a time."""
        import ray

        ready, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        if not ready:
            ready, _ = ray.wait(list(self._running), num_returns=1, timeout=timeout_s)
        for generator in ready:
            name = self._running[generator]
            try:
                yield name, Message(*ray.get(next(generator)))
            except StopIteration:
                del self._running[generator]
                yield name, GroupEnd(None)
            except Exception as error:
                del self._running[generator]
                yield name, GroupEnd(error)


@contextmanager
def connected(address: str | None) -> Iterator[Cluster]:
    """A Ray on this machine alone, or the one at an address, for as long as it is needed.

    Raises
    ------
    ClusterError
        If Ray is not installed, or nothing that is a Ray of our version answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to Ray's makers
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "2")  # a head that is gone is asked for minutes else
    try:
        import ray
    except ImportError:
        raise ClusterError(needs_extra("a sweep needs", "cluster")) from None
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": True, "logging_level": "error"}
    if address is not None:
        _check_answers(address)
    asked_to_end = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)}
    try:
        if address is None:
            context = ray.init(
                address="local",  # else it is the one of RAY_ADDRESS, or any that runs here
                num_cpus=len(allowed_cores()),
                resources={HOST: 1},
                include_dashboard=importlib.util.find_spec("aiohttp_cors") is not None,
                dashboard_host="127.0.0.1",
                object_store_memory=STORE_BYTES,
                _node_ip_address="127.0.0.1",
                **quiet,
            )
        else:
            context = ray.init(address=address, **quiet)
    except Exception as error:  # whatever Ray raises for an address that is none, or that does not answer
        where = "on this machine" if address is None else f"at {address}"
        raise ClusterError(f"no Ray {where}: {_first_line(error)}") from None
    except BaseException:  # Ctrl-C while Ray starts
        ray.shutdown()
        raise
    try:
        for one, handler in asked_to_end.items():  # Ray has put its own there, which print where they were
            signal.signal(one, handler)
        dashboard = f"http://{context.dashboard_url}" if context.dashboard_url else None
        yield Cluster(address is None, dashboard, context.address_info["gcs_address"])
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise ClusterError if an address is none of a head of Ray, or nobody answers there."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdigit() and "/" not in host):
        raise ClusterError(
            f"an address of Ray is auto or HOST:PORT of its head (port 6379 unless chosen); got {address!r}"
        )
    try:
        socket.create_connection((host, int(port)), timeout=ANSWERS_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"no Ray at {address}: {error}") from None


def needs_of(
    timed: bool,
    device: str,
    memory_bytes: int | None,
    cpus: int | None,
    resources: Mapping[str, float],
    nodes: Sequence[Node],
) -> Needs:
    """What a group takes: a GPU, or a machine to itself where it is timed, or so many cores of one."""
    if device != "cpu":
        return Needs(cpus or 1, 1, memory_bytes, resources)
    if not timed:
        return Needs(cpus or 1, 0, memory_bytes, {HOST: SHARE, **resources})
    hosts = [node.resources.get("CPU", 0.0) for node in nodes if HOST in node.resources]
    return Needs(min(hosts, default=1.0), 0, memory_bytes, {HOST: 1, **resources})


def fitting(needs: Needs, nodes: Sequence[Node]) -> Needs:
    """Needs whose estimated memory is no more than the largest machine has: it may do with less."""
    most = max((node.resources.get("memory", 0.0) for node in nodes), default=0.0)
    if needs.memory_bytes is None or needs.memory_bytes <= most:
        return needs
    return replace(needs, memory_bytes=int(most))


def _first_line(error: Exception) -> str:
    told = [line.strip() for line in str(error).splitlines() if line.strip()]
    return told[-1] if told and "Traceback" in str(error) else told[0] if told else type(error).__name__
