"""Sweeps on Ray: the same table as a bench, and every fault that a fleet knows, each really done."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments import sweep_soak
from tda.records import Record
from tda.sweep.node import look
from tda.web.report import build_report
from tests import sweeps
from tests.sweeps import MODELS, SCORED, SMALL, TIMED, failures, finished, good, lines, run, start, until, workers

pytest.importorskip("ray", reason="needs the extra: pip install tda-bench[cluster]")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # sockets of Ray's own test cluster
]


@pytest.fixture
def mark() -> str:
    return uuid.uuid4().hex


@pytest.fixture(scope="module")
def cluster() -> Iterator[sweeps.Nodes]:
    """Two machines that tests share: none of these kills one."""
    with sweeps.nodes() as found:
        yield found


@pytest.fixture(scope="module")
def benched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `tda bench` gives for a timed matrix of two models."""
    out = tmp_path_factory.mktemp("benched")
    code, said = run([*MODELS, *TIMED, "--budget", "none", "--out", out], "benched", "bench")
    assert code == 0, said
    return out


QUALITY = ("perplexity", "nll_nats", "kl_to_dense_nats", "top1_disagreement", "selection_digest")


def quality(out: Path) -> dict[tuple[str, str, str], tuple[float, ...]]:
    """Samples of round 0 that no clock gives."""
    return {
        (*one.series, name): one.samples(name)
        for one in lines(out)
        for name in QUALITY
        if one.round == 0 and one.samples(name)
    }


def check_whole(out: Path, benched: Path) -> None:
    """Every cell of the bench is there, once, and nothing else."""
    assert good(out) == good(benched)
    assert set(good(out).values()) == {1}


def named(out: Path) -> str:
    """What the report says."""
    return build_report([out], out).index.read_text()


# The same table.


def test_a_local_ray_gives_the_cells_of_a_bench(benched: Path, tmp_path: Path, mark: str) -> None:
    code, said = run([*MODELS, *TIMED, "--out", tmp_path], mark)
    assert code == 0, said
    assert "Ray's dashboard: http://127.0.0.1:" in said
    check_whole(tmp_path, benched)
    assert quality(tmp_path) == quality(benched)
    assert [one.case.model for one in lines(tmp_path)] == sorted(
        (one.case.model for one in lines(tmp_path)),
        key=[one.case.model for one in lines(tmp_path)].index,
    )  # one timed group after another, never two at once on one machine


def test_two_workers_side_by_side_give_the_quality_of_a_bench(tmp_path: Path, mark: str) -> None:
    preset = ["--preset", "smoke", *MODELS, "-m", "ref:geglu", "--rounds", "0"]
    code, said = run([*preset, "--budget", "none", "--out", tmp_path / "bench"], mark, "bench")
    assert code == 0, said
    with start([*preset, "--cpus", "1", "--out", tmp_path / "sweep"], mark) as process:
        until(lambda: len(workers(mark)) == 2, process)  # two groups at once
        _, said = finished(process)
    assert process.returncode == 0, said
    assert quality(tmp_path / "sweep") == quality(tmp_path / "bench")
    assert good(tmp_path / "sweep") == good(tmp_path / "bench")
    assert not any(one.samples("decode_ms") for one in lines(tmp_path / "sweep"))


def test_machines_of_a_cluster_share_the_work(benched: Path, tmp_path: Path, cluster: sweeps.Nodes) -> None:
    words = [*MODELS, *TIMED, "--ray-address", cluster.address, "--out", tmp_path]
    with start(words, cluster.mark) as process:
        until(lambda: len({cluster.raylet_of(one).node_id for one in workers(cluster.mark)}) == 2, process)
        _, said = finished(process)
    assert process.returncode == 0, said
    check_whole(tmp_path, benched)
    assert quality(tmp_path) == quality(benched)
    code, said = run(words, cluster.mark)  # again: nothing is left to do, and nothing starts
    assert code == 0, said
    assert said.count("measured earlier") == 2
    check_whole(tmp_path, benched)


# Faults.


def test_a_killed_worker_loses_no_cell(benched: Path, tmp_path: Path, cluster: sweeps.Nodes) -> None:
    with start([*MODELS, *TIMED, "--ray-address", cluster.address, "--out", tmp_path], cluster.mark) as process:
        until(lambda: len(good(tmp_path)) >= 3, process)
        before = good(tmp_path)
        workers(cluster.mark)[0].kill()
        _, said = finished(process)
    assert process.returncode in (0, 1), said
    assert not before - good(tmp_path)
    check_whole(tmp_path, benched)
    (failed,) = failures(tmp_path)
    assert failed.failure.kind == "killed"
    assert "its process was killed from outside" in named(tmp_path)


def test_a_killed_task_of_ray_is_handed_over_again(benched: Path, tmp_path: Path, cluster: sweeps.Nodes) -> None:
    with start([*MODELS, *TIMED, "--ray-address", cluster.address, "--out", tmp_path], cluster.mark) as process:
        until(lambda: len(good(tmp_path)) >= 3, process)
        worker = workers(cluster.mark)[0]
        worker.parent().kill()  # the supervisor, which is a worker of Ray
        worker.wait(20)  # what it started ends with it
        _, said = finished(process)
    assert process.returncode in (0, 1), said
    check_whole(tmp_path, benched)
    assert [one.failure.kind for one in failures(tmp_path)] == ["lost"]
    assert "its machine or its worker was lost" in named(tmp_path)


def test_a_machine_that_is_lost_is_replaced_by_another(benched: Path, tmp_path: Path) -> None:
    with (
        sweeps.nodes() as cluster,
        start([*MODELS, *TIMED, "--ray-address", cluster.address, "--out", tmp_path], cluster.mark) as process,
    ):
        until(lambda: len(good(tmp_path)) >= 3, process)
        cluster.kill(cluster.raylet_of(workers(cluster.mark)[0]))
        _, said = finished(process)
    assert process.returncode in (0, 1), said
    check_whole(tmp_path, benched)
    assert {one.failure.kind for one in failures(tmp_path)} <= {"lost"}
    assert "was lost" in said


def test_all_machines_may_go_and_come_back(benched: Path, tmp_path: Path) -> None:
    with (
        sweeps.nodes(1) as cluster,
        start([*MODELS, *TIMED, "--ray-address", cluster.address, "--out", tmp_path], cluster.mark) as process,
    ):
        until(lambda: len(good(tmp_path)) >= 3, process)
        cluster.kill(cluster.nodes[0])
        until(lambda: any(one.failure.kind == "lost" for one in failures(tmp_path)), process)
        cluster.nodes.append(cluster.add())
        _, said = finished(process)
    assert process.returncode in (0, 1), said
    check_whole(tmp_path, benched)


def test_a_killed_driver_is_resumed(benched: Path, tmp_path: Path, cluster: sweeps.Nodes) -> None:
    words = [*MODELS, *TIMED, "--ray-address", cluster.address, "--out", tmp_path]
    with start(words, cluster.mark) as process:
        until(lambda: len(good(tmp_path)) >= 5, process)
        process.kill()
    before = good(tmp_path)
    until(lambda: not workers(cluster.mark))  # nobody is left that measures for nobody
    code, said = run(words, cluster.mark)
    assert code == 0, said
    assert not before - good(tmp_path)
    check_whole(tmp_path, benched)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_sweep_is_resumed(
    benched: Path, tmp_path: Path, mark: str, number: signal.Signals, code: int
) -> None:
    words = [*MODELS, *TIMED, "--out", tmp_path]
    with start(words, mark) as process:
        until(lambda: len(good(tmp_path)) >= 3, process)
        process.send_signal(number)
        _, said = finished(process)
    assert process.returncode == code, said
    assert "The same command goes on" in said
    until(lambda: not workers(mark))
    assert run(words, mark)[0] == 0
    check_whole(tmp_path, benched)


def limited(size: int) -> str:
    """Code that lets no file grow beyond a size, and then runs `tda`."""
    return (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size})); "
        "from tda.cli.main import main; sys.argv[0] = 'tda'; main()"
    )


def test_a_full_disk_ends_a_sweep_that_goes_on_later(benched: Path, tmp_path: Path, cluster: sweeps.Nodes) -> None:
    """On a small disk of its own, where this process may mount one; else no file of the driver may grow further."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = (benched / "results.jsonl").stat().st_size // 2
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size + (160 << 10)}", "tmpfs", str(disk)], capture_output=True
    )
    words = ["sweep", *MODELS, *TIMED, "--ray-address", cluster.address, "--out", str(disk)]
    program = ["-m", "tda.cli.main"] if mounted.returncode == 0 else ["-c", limited(size)]
    try:
        done = subprocess.run(
            [sys.executable, *program, *words], env=sweeps.environment(cluster.mark), capture_output=True, text=True
        )
        assert done.returncode == 2, done.stderr
        assert any(os.strerror(number) in done.stderr for number in (errno.ENOSPC, errno.EFBIG))
        assert "the same command goes on" in done.stderr
        before = good(disk)
        assert before
        assert not [line for line in (disk / "results.jsonl").read_text().splitlines() if not line.endswith("}")]
        if mounted.returncode == 0:
            subprocess.run(["mount", "-o", f"remount,size={64 << 20}", str(disk)], check=True)
        code, said = run(words[1:], cluster.mark)
        assert code == 0, said
        assert not before - good(disk)
        check_whole(disk, benched)
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(disk)], check=False)


def test_a_hanging_worker_is_ended(benched: Path, tmp_path: Path, cluster: sweeps.Nodes) -> None:
    words = [*MODELS, *TIMED, "--ray-address", cluster.address, "--case-timeout", "25s", "--out", tmp_path]
    with start(words, cluster.mark) as process:
        until(lambda: len(good(tmp_path)) >= 3, process)
        workers(cluster.mark)[0].suspend()
        _, said = finished(process)
    assert process.returncode in (0, 1), said
    check_whole(tmp_path, benched)
    (failed,) = failures(tmp_path)
    assert (failed.status, failed.failure.kind) == ("timeout", "hang")
    assert "it hung" in named(tmp_path)


def test_a_model_beyond_the_memory_limit_is_told_and_the_others_are_measured(
    benched: Path, tmp_path: Path, mark: str
) -> None:
    words = ["-m", "ref:swiglu", "-m", "ref:wide:8x", *TIMED, "--memory", "1600MB", "--out", tmp_path]
    code, said = run(words, mark)
    assert code == 1, said
    assert {one.case.model for one in failures(tmp_path)} == {"ref:wide:8x"}
    assert {(one.status, one.failure.kind) for one in failures(tmp_path)} == {("oom", "host_memory")}
    assert all("more than the limit of 1.6 GB" in one.reason for one in failures(tmp_path))
    own = Counter({place: n for place, n in good(benched).items() if place in good(tmp_path)})
    assert own == Counter(
        (*one.series, one.round) for one in lines(benched) if one.case.model == "ref:swiglu" and one.status == "ok"
    )
    assert "did not fit into host memory" in named(tmp_path)


def test_a_damaged_line_is_measured_again(benched: Path, tmp_path: Path, mark: str) -> None:
    words = [*MODELS, *TIMED, "--out", tmp_path]
    assert run(words, mark)[0] == 0
    path = tmp_path / "results.jsonl"
    whole = path.read_text().splitlines()
    damaged = Record.model_validate_json(whole[1])
    assert (
        damaged.round == 0
    )  # of a timed round all cells would be measured again, since only those of one process pair
    path.write_text("\n".join([whole[0], whole[1][: len(whole[1]) // 2], *whole[2:]]) + "\n")
    code, said = run(words, mark)
    assert code == 0, said
    assert "line 2 skipped" in said
    assert said.count("measured earlier") == 1  # only its group is looked at again
    check_whole(tmp_path, benched)
    again = [one for one in lines(tmp_path) if (*one.series, one.round) == (*damaged.series, damaged.round)]
    assert len(again) == 1
    assert len(path.read_text().splitlines()) == len(whole) + 1


def test_a_second_driver_is_refused(tmp_path: Path, cluster: sweeps.Nodes) -> None:
    words = [*MODELS, *TIMED, "--ray-address", cluster.address, "--out", tmp_path]
    with start(words, cluster.mark) as process:
        until(lambda: good(tmp_path), process)
        process.send_signal(signal.SIGSTOP)  # it is there, however long the second takes to begin
        code, said = run(words, cluster.mark)
        process.send_signal(signal.SIGCONT)
        assert code == 2
        assert "another measurement is running in" in said
        _, first = finished(process)
    assert process.returncode == 0, first
    assert set(good(tmp_path).values()) == {1}


# What is refused before any work starts.


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--resource", "quantum=2"], "no machine of the cluster has quantum; its resources: "),
        (["--resource", "tda_host=0"], "a resource is NAME or NAME=AMOUNT, more than zero"),
        (["--resource", "CPU=2"], "a group takes CPU as it needs it"),
        (["--memory", "900TB"], "no machine is large enough for"),
        (["--memory", "much"], "a size is bytes such as 16GB"),
        (["--case-timeout", "soon"], "the time of a case is a duration such as 50s"),
        (["--device", "cuda"], "no machine of the cluster has GPU"),
        (["--device", "cuda:1"], "Ray chooses the GPU of a group"),
        (["--cpus", "4000", "--rounds", "0"], "no machine is large enough for"),
    ],
)
def test_wrong_needs_are_refused(words: list[str], told: str, tmp_path: Path, cluster: sweeps.Nodes) -> None:
    code, said = run([*MODELS, *SMALL, *words, "--ray-address", cluster.address, "--out", tmp_path], cluster.mark)
    assert code == 2, said
    assert told in said
    assert not lines(tmp_path)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:6379", "ray://127.0.0.1:1", "what is this"])
def test_a_wrong_address_is_one_sentence(address: str, tmp_path: Path, mark: str) -> None:
    code, said = run([*MODELS, *SCORED, "--ray-address", address, "--out", tmp_path], mark)
    assert code == 2, said
    assert f"no Ray at {address}" in said or f"got {address!r}" in said
    assert "Traceback" not in said


def test_without_ray_the_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("raise ImportError('No module named ray')")
    environment = {**sweeps.environment("none"), "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-m", "tda.cli.main", "sweep", *MODELS, *SCORED, "--out", str(tmp_path / "out")],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "pip install 'tda-bench[cluster]'" in done.stderr


def test_a_folder_that_machines_do_not_share_is_told(tmp_path: Path, cluster: sweeps.Nodes) -> None:
    """A machine that sees another file there than the driver wrote; played by a folder that is missing on all."""

    out = tmp_path / "out"
    out.mkdir()
    problems = look(str(out / "mark"), [str(tmp_path / "model")], {"torch": "0"})
    assert "must lie on shared storage" in problems[0]
    assert problems[1].startswith(f"{tmp_path / 'model'} is not there")
    assert re.fullmatch(r"torch is .*, and 0 where the sweep was started", problems[2])


def test_an_unreadable_folder_is_told(tmp_path: Path, mark: str) -> None:
    (tmp_path / "file").write_text("")
    code, said = run([*MODELS, *SCORED, "--out", tmp_path / "file" / "out"], mark)
    assert code == 2
    assert "Traceback" not in said


def test_a_dry_run_starts_nothing(tmp_path: Path, mark: str) -> None:
    code, said = run([*MODELS, *TIMED, "--dry-run", "--json", "--out", tmp_path / "out"], mark)
    assert code == 0, said
    rows = json.loads(said[said.index("[\n") :])
    assert {row["group"] for row in rows} == {"ref:swiglu", "ref:relu"}
    assert all(row["hours"] > 0 and row["basis"] == "byte model" for row in rows)
    assert not (tmp_path / "out").exists()


def test_past_records_tell_hours(benched: Path, tmp_path: Path, mark: str) -> None:
    words = [*MODELS, *TIMED, "--dry-run", "--json", "--past", benched, "--out", tmp_path / "out"]
    code, said = run(words, mark)
    assert code == 0, said
    rows = json.loads(said[said.index("[\n") :])
    assert {row["basis"] for row in rows} <= {"past records", "byte model and past records"}


# What ships beside it.


@pytest.mark.alone  # Ray's script stops every Ray of the machine in the end
def test_the_script_for_slurm_runs_a_sweep(tmp_path: Path) -> None:
    """With Slurm played: its job has one node, this one, and `srun` runs what it is told."""
    root = Path(__file__).resolve().parent.parent
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, script in (("scontrol", "echo 127.0.0.1"), ("srun", 'exec "$@"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        **sweeps.environment("slurm"),
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "one", "SLURM_JOB_NUM_NODES": "1",
        "TDA_BIN": str(Path(sys.executable).parent), "TDA_RAY_PORT": str(port),
    }  # fmt: skip
    words = ["-m", "ref:swiglu", *SCORED, "--out", str(tmp_path / "out")]
    done = subprocess.run(
        ["bash", str(root / "docs" / "cluster" / "slurm.sh"), *words],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=sweeps.WAIT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    assert good(tmp_path / "out")
    assert not list(tmp_path.glob(".ray-token*"))


def test_the_manifest_for_kubernetes_has_what_a_sweep_needs() -> None:
    root = Path(__file__).resolve().parent.parent
    yaml = pytest.importorskip("yaml")
    told = yaml.safe_load((root / "docs" / "cluster" / "kuberay.yaml").read_text())
    pins = (root / "constraints.txt").read_text()
    assert f"ray=={told['spec']['rayVersion']}" in pins
    (group,) = told["spec"]["workerGroupSpecs"]
    assert json.loads(json.loads(group["rayStartParams"]["resources"])) == {"tda_host": 1}
    for part in (told["spec"]["headGroupSpec"], group):
        pod = part["template"]["spec"]
        assert [volume["name"] for volume in pod["volumes"]] == ["shared"]
        assert all(one["volumeMounts"][0]["mountPath"] == "/shared" for one in pod["containers"])
        assert all(one["resources"]["requests"] == one["resources"]["limits"] for one in pod["containers"])


@pytest.mark.alone
@pytest.mark.timeout(3600)
def test_fifty_random_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    soak = sweep_soak.Soak(tmp_path, seed=0)
    soak.run(50)
    assert soak.kills.total() == 50
    assert set(soak.kills) == set(sweep_soak.WHAT)
    assert (soak.lost.total(), soak.doubled.total(), soak.unlike, soak.unnamed) == (0, 0, 0, 0)
    assert soak.ended > 0
