"""What groups need of machines, and what a driver does with what Ray tells, without a Ray."""

import io
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tda.bench.messages import Message, Order
from tda.bench.plan import Plan, Subject
from tda.bench.worker_limits import Limits
from tda.records import Record
from tda.results import load
from tda.sweep.cluster import HOST, Cluster, ClusterError, GroupEnd, Needs, Node, fitting, needs_of
from tda.sweep.done import GROUPS
from tda.sweep.driver import Sweep
from tda.sweep.groups import SweepGroup, groups_of
from tda.sweep.node import own_cores
from tda.sweep.view import View

NODES = [
    Node("a", "10.0.0.1", {"CPU": 64.0, "memory": 2e11, HOST: 1.0}),
    Node("b", "10.0.0.2", {"CPU": 16.0, "memory": 6e10, HOST: 1.0, "accelerator_type:H100": 1.0, "GPU": 4.0}),
    Node("c", "10.0.0.3", {"CPU": 8.0, "memory": 3e10}),
]


def test_a_timed_group_takes_a_machine() -> None:
    found = needs_of(True, "cpu", 10**9, None, {}, NODES)
    assert found == Needs(16.0, 0, 10**9, {HOST: 1})
    assert [node.can(found) for node in NODES] == [True, True, False]


def test_a_group_of_quality_alone_takes_cores() -> None:
    found = needs_of(False, "cpu", None, 4, {}, NODES)
    assert (found.cpus, found.gpus) == (4, 0)
    assert 0 < found.resources[HOST] < 0.01  # many of them side by side, and none beside a timed one
    assert needs_of(False, "cpu", None, None, {}, NODES).cpus == 1


def test_a_group_on_a_gpu_takes_one() -> None:
    found = needs_of(True, "cuda", 10**9, None, {"accelerator_type:H100": 0.001}, NODES)
    assert (found.gpus, HOST in found.resources) == (1, False)
    assert [node.can(found) for node in NODES] == [False, True, False]


def test_estimated_memory_is_no_more_than_the_largest_machine_has() -> None:
    assert fitting(Needs(memory_bytes=10**12), NODES).memory_bytes == 2e11
    assert fitting(Needs(memory_bytes=10**9), NODES).memory_bytes == 10**9
    assert fitting(Needs(), NODES).memory_bytes is None


@pytest.mark.parametrize(("gpus", "count"), [(["0"], 1), ([], 4), (["GPU-abc"], 4), (["0", "1"], 4), (["9"], 4)])
def test_a_group_that_has_no_part_of_the_cores_has_all(gpus: list[str], count: int) -> None:
    assert own_cores(gpus, count) is None


def test_gpus_of_one_machine_share_no_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tda.sweep.node.allowed_cores", lambda: frozenset(range(3, 21)))
    parts = [own_cores([str(number)], 4) for number in range(4)]
    assert frozenset().union(*(part or frozenset() for part in parts)) == frozenset(range(3, 21))
    assert sum(len(part or ()) for part in parts) == 18


class Played(Cluster):
    """A cluster on which each group gets on as a script says."""

    def __init__(self, nodes: Sequence[Node] = NODES[:1]) -> None:
        super().__init__(is_local=True, dashboard=None)
        self._nodes = list(nodes)
        self.order: list[str] = []
        self.held: list[list[Record]] = []
        self.scripts: dict[str, list[list[Message | GroupEnd]]] = {}
        self.playing: dict[str, list[Message | GroupEnd]] = {}
        self.waiting: dict[str, list[str]] = {}  # by group, those that had not begun when it was handed over
        self._begun: set[str] = set()

    def nodes(self) -> list[Node]:
        return self._nodes

    def start(self, name: str, orders: Sequence[Order], held: Sequence[Record], limits: Limits, needs: Needs) -> None:
        self.order.append(name)
        self.held.append(list(held))
        self.playing[name] = self.scripts[name].pop(0)
        self.waiting[name] = [one for one in self.playing if one not in self._begun and one != name]

    def messages(self, timeout_s: float) -> Iterator[tuple[str, Message | GroupEnd]]:
        for name in list(self.playing):
            message = self.playing[name].pop(0)
            self._begun |= {name} if message[0] == "started" else set()
            if isinstance(message, GroupEnd):
                del self.playing[name]
            yield name, message


PLAN = Plan(
    tuple(Subject(f"ref:{name}", prompt_tokens=16, new_tokens=4) for name in ("swiglu", "relu", "geglu")),
    methods=("griffin",),
    sparsities=(0.5,),
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Record]]:
    """Real records of a bench of these models, by model."""
    import tda

    names = [subject.model for subject in PLAN.subjects]
    records = tda.run_bench(
        tmp_path_factory.mktemp("bench"), models=names[:1], methods=["griffin"], sparsities=[0.5], rounds=0,
        documents=1, calibration_documents=2, prompt_tokens=16, new_tokens=4,
    )  # fmt: skip
    return {
        name: [one.model_copy(update={"case": one.case.model_copy(update={"model": name})}) for one in records]
        for name in names
    }


def sweep(out: Path, cluster: Played, groups: Sequence[SweepGroup]) -> tuple[Sweep, io.StringIO]:
    told = io.StringIO()
    view = View(Console(file=told, width=200), groups)
    names = [group.name for group in groups]
    return (
        Sweep(groups, out, cluster, dict.fromkeys(names, Needs()), dict.fromkeys(names, Limits()), view, "tda sweep"),
        told,
    )


def well(records: Sequence[Record]) -> list[Message | GroupEnd]:
    one = records[0]
    return [
        Message("started", ("host", "a")),
        Message("hello", (one.machine, one.commit, 1)),
        *(Message("records", [record]) for record in records),
        GroupEnd(None),
    ]


def test_the_first_group_goes_alone_and_others_as_machines_are_free(
    tmp_path: Path, measured: dict[str, list[Record]]
) -> None:
    groups = groups_of(PLAN)
    cluster = Played()
    cluster.scripts = {name: [well(records)] for name, records in measured.items()}
    found, _ = sweep(tmp_path, cluster, groups)
    found.run()
    assert cluster.order == [group.name for group in groups]
    assert {one.case.model for one in load(tmp_path).records} == set(measured)


def test_a_group_that_is_not_timed_waits_for_timed_ones(tmp_path: Path, measured: dict[str, list[Record]]) -> None:
    """Else it would keep a machine from ever being free for them."""
    groups = [replace(group, timed=group.name != "ref:relu") for group in groups_of(PLAN)]
    cluster = Played(NODES)
    cluster.scripts = {name: [well(records)] for name, records in measured.items()}
    found, _ = sweep(tmp_path, cluster, [groups[0], groups[2], groups[1]])
    found.run()
    assert cluster.order == ["ref:swiglu", "ref:geglu", "ref:relu"]
    assert cluster.waiting["ref:geglu"] == []  # the first one alone, until it has begun
    assert cluster.waiting["ref:relu"] == []  # though there are machines enough for both


def test_timed_groups_are_handed_over_together(tmp_path: Path, measured: dict[str, list[Record]]) -> None:
    """As many as there are machines, once the first has begun."""
    cluster = Played(NODES)
    cluster.scripts = {name: [well(records)] for name, records in measured.items()}
    found, _ = sweep(tmp_path, cluster, groups_of(PLAN))
    found.run()
    assert cluster.waiting == {"ref:swiglu": [], "ref:relu": [], "ref:geglu": ["ref:relu"]}


def test_what_is_recorded_is_handed_to_the_next_try(
    tmp_path: Path, measured: dict[str, list[Record]], caplog: pytest.LogCaptureFixture
) -> None:
    records = measured["ref:swiglu"]
    broken = [*well(records[:1])[:-1], GroupEnd(RuntimeError("the machine is gone"))]
    cluster = Played()
    cluster.scripts = {"ref:swiglu": [broken, well(records[1:])]}
    found, _ = sweep(tmp_path, cluster, groups_of(replace(PLAN, subjects=PLAN.subjects[:1])))
    found.run()
    assert cluster.held[0] == []
    assert [one.status for one in cluster.held[1]] == ["ok", "crash"]
    lost = cluster.held[1][1]
    assert (lost.failure.kind, lost.reason) == ("lost", "the machine is gone")
    assert "the machine is gone" in caplog.text


def test_a_group_that_is_lost_again_and_again_is_given_up(tmp_path: Path, measured: dict[str, list[Record]]) -> None:
    start = well(measured["ref:swiglu"])[:2]
    cluster = Played()
    cluster.scripts = {"ref:swiglu": [[*start, GroupEnd(RuntimeError("gone"))] for _ in range(5)]}
    found, _ = sweep(tmp_path, cluster, groups_of(replace(PLAN, subjects=PLAN.subjects[:1])))
    found.run()
    assert len(cluster.order) == 5
    loaded = load(tmp_path)
    assert [one.failure.kind for one in loaded.records] == ["lost"] * 5
    assert [(item.model, item.reason) for item in loaded.left_out] == [("ref:swiglu", "gone")]


def test_an_error_of_a_model_is_a_record(tmp_path: Path, measured: dict[str, list[Record]]) -> None:
    begin = well(measured["ref:swiglu"])[:2]
    cluster = Played()
    cluster.scripts = {"ref:swiglu": [[*begin, Message("raised", ValueError("no such model")), GroupEnd(None)]]}
    found, _ = sweep(tmp_path, cluster, groups_of(replace(PLAN, subjects=PLAN.subjects[:1])))
    found.run()
    (record,) = load(tmp_path).records
    assert (record.status, record.reason, record.case.method) == ("error", "no such model", "dense")
    assert not (tmp_path / GROUPS).exists()  # the next run looks at it again


def test_a_group_whose_worker_cannot_begin_is_not_done(tmp_path: Path, measured: dict[str, list[Record]]) -> None:
    """Though an earlier run left some of its records: the next run would pass over the rest."""
    records, groups = measured["ref:swiglu"], groups_of(replace(PLAN, subjects=PLAN.subjects[:1]))
    cluster = Played()
    started = Message("started", ("host", "a"))
    broken = [started, Message("raised", ChildProcessError("no torch here")), GroupEnd(None)]
    cluster.scripts = {"ref:swiglu": [[*well(records[:1])[:-1], GroupEnd(RuntimeError("gone"))], broken]}
    found, told = sweep(tmp_path, cluster, groups)
    found.run()
    assert not (tmp_path / GROUPS).exists()
    assert [item.reason for item in load(tmp_path).left_out] == ["no torch here"]
    assert "done" not in told.getvalue()


def test_a_done_group_is_skipped_as_long_as_its_records_are_there(
    tmp_path: Path, measured: dict[str, list[Record]]
) -> None:
    groups = groups_of(replace(PLAN, subjects=PLAN.subjects[:1]))
    for number in range(3):
        cluster = Played()
        cluster.scripts = {"ref:swiglu": [well(measured["ref:swiglu"])]}
        if number == 2:  # another question
            groups = [replace(groups[0], plan=replace(groups[0].plan, documents=3))]
        sweep(tmp_path, cluster, groups)[0].run()
        assert len(cluster.order) == (number != 1)
    path = tmp_path / "results.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:1]))
    cluster = Played()
    cluster.scripts = {"ref:swiglu": [well(measured["ref:swiglu"])]}
    sweep(tmp_path, cluster, groups)[0].run()
    assert cluster.order == ["ref:swiglu"]


def test_a_group_without_a_machine_is_told_once(
    tmp_path: Path, measured: dict[str, list[Record]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tda")
    cluster = Played([])
    told = Message(
        "log", logging.makeLogRecord({"name": "tda.bench.stage", "levelno": logging.INFO, "msg": "still here"})
    )
    cluster.scripts = {"ref:swiglu": [[told, told, *well(measured["ref:swiglu"])]]}
    sweep(tmp_path, cluster, groups_of(replace(PLAN, subjects=PLAN.subjects[:1])))[0].run()
    waiting, *others = caplog.record_tuples
    assert waiting[:2] == ("tda.sweep.driver", logging.WARNING)
    assert "waits for one that joins" in waiting[2]
    assert others == [("tda.bench.stage", logging.INFO, "still here")] * 2


def test_a_group_that_no_machine_could_take_is_refused() -> None:
    cluster = Played(NODES)
    with pytest.raises(ClusterError, match=r"machine .*big, .*CPU 65"):
        cluster.check({"big": Needs(cpus=65)})
    with pytest.raises(ClusterError, match=r"quantum; .*CPU, GPU, accelerator_type:H100, mem"):
        cluster.check({"odd": Needs(resources={"quantum": 1})})
    bare = Played(NODES[2:])
    with pytest.raises(ClusterError, match=json.dumps({HOST: 1}).replace("{", r"\{")):
        bare.check({"timed": needs_of(True, "cpu", None, None, {}, bare.nodes())})


def test_the_view_tells_of_every_group(measured: dict[str, list[Record]]) -> None:
    groups = groups_of(PLAN)
    told = io.StringIO()
    view = View(Console(file=told, width=160, force_terminal=True), groups, ["Ray's dashboard: http://127.0.0.1:8265"])
    view.waits("ref:swiglu")
    view.began("ref:swiglu", "host-7")
    view.stage("ref:swiglu", "round 2", 10)
    view.advance("ref:swiglu", 3)
    view.recorded("ref:swiglu", 4)
    view.ended("ref:relu", "done")
    Console(file=told, width=160).print(view.table())
    text = told.getvalue()
    assert "1 of 3 groups have ended" in text
    for word in ("host-7", "round 2, 3 of 10", "running", "done", "not yet", "ref:geglu"):
        assert word in text


def test_a_loss_before_any_case_keeps_no_group_from_being_done(
    tmp_path: Path, measured: dict[str, list[Record]]
) -> None:
    begin = well(measured["ref:swiglu"])[:2]
    cluster = Played()
    cluster.scripts = {"ref:swiglu": [[*begin, GroupEnd(RuntimeError("gone"))], well(measured["ref:swiglu"])]}
    groups = groups_of(replace(PLAN, subjects=PLAN.subjects[:1]))
    sweep(tmp_path, cluster, groups)[0].run()
    again = Played()
    sweep(tmp_path, again, groups)[0].run()
    assert again.order == []
