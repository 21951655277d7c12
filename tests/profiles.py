"""Played profiles: what `tda.run_profile` gives for a small decoder, with every number chosen and no model run."""

import gzip
import io
import json
import random
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from tda.cases import Case
from tda.history.nights import Unit
from tda.history.profiles import ACCOUNT
from tda.profiler.records import GAPS, PYTHON, KernelRow, ModuleRow, Peak, PhaseTime, Profile, Timed
from tda.profiler.store import TRACE, write_profile
from tda.records import Commit, Machine
from tda.results import write_whole
from tda.telemetry import Series, Telemetry

CPU = Machine(
    cpu="Desk CPU", cores=2, threads=2, memory_bytes=24_000_000_000, cache_bytes=32 << 20, python="3.12", torch="2.13",
    transformers="5.24", tda="0.1.0", system="Linux",
)  # fmt: skip
GPU = CPU.model_copy(update={"cpu": "Server CPU", "cores": 16, "gpu": "Server GPU", "driver": "600.1"})
D, F, LAYERS, VOCABULARY, TOKENS, BYTES = 512, 1536, 8, 4096, 64, 2
"""Sizes of shape:25m, tokens of its prompt, and bytes of a weight in bfloat16."""
COST_MS = 0.0012
"""What recording one event costs."""
STARTED = "2026-01-15T01:00:00+00:00"


class Work(NamedTuple):
    """What one step of decode does over and over: calls and ms of all of them, weights that they read."""

    part: str
    op: str
    kernel: str
    calls: int
    ms: float
    weights: int = 0


def _product(part: str, calls: int, ms: float, weights: int) -> list[Work]:
    """A linear as the profiler sees it: the product, the layers of torch above it, and Python."""
    return [
        Work(part, "aten::mm", "aten::mm", calls, ms, weights),
        Work(part, "", "aten::linear", calls, 0.004 * calls),
        Work(part, "", "aten::matmul", calls, 0.003 * calls),
        Work(part, "", PYTHON, calls, 0.006 * calls),
    ]


def _operator(part: str, name: str, calls: int, ms: float) -> Work:
    return Work(part, f"aten::{name}", f"aten::{name}", calls, ms)


STEP: tuple[Work, ...] = (
    *(work for name in ("gate", "up", "down") for work in _product(name, LAYERS, 0.78, LAYERS * D * F)),
    _operator("ffn", "silu", LAYERS, 0.06),
    _operator("ffn", "mul", LAYERS, 0.05),
    Work("ffn", "", PYTHON, LAYERS, 0.09),
    *_product("projection", 4 * LAYERS, 0.97, LAYERS * 3 * D * D),
    _operator("attention", "_scaled_dot_product_flash_attention_for_cpu", LAYERS, 0.31),
    _operator("attention", "cat", 2 * LAYERS, 0.13),
    _operator("attention", "mul", 4 * LAYERS, 0.11),
    Work("attention", "", PYTHON, LAYERS, 0.36),
    _operator("norm", "mean", 2 * LAYERS + 1, 0.10),
    _operator("norm", "pow", 2 * LAYERS + 1, 0.06),
    _operator("norm", "mul", 4 * LAYERS + 2, 0.13),
    Work("norm", "", PYTHON, 2 * LAYERS + 1, 0.15),
    _operator("layer", "add", 2 * LAYERS, 0.05),
    Work("layer", "", PYTHON, LAYERS, 0.21),
    _operator("embedding", "embedding", 1, 0.01),
    *_product("head", 1, 0.27, VOCABULARY * D),
    Work("model", "", PYTHON, 1, 0.44),
    Work("decode", "", PYTHON, 1, 0.10),
)
"""A dense decode step."""
STATISTIC: tuple[Work, ...] = (
    _operator("statistic", "linalg_vector_norm", LAYERS, 0.42),
    _operator("statistic", "div", LAYERS, 0.38),
    Work("statistic", "", PYTHON, LAYERS, 0.12),
)
SELECTION: tuple[Work, ...] = (
    _operator("selection", "topk", LAYERS, 0.36),
    _operator("selection", "scatter", LAYERS, 0.05),
    Work("selection", "", PYTHON, 1, 0.24),
)
GATHER: tuple[Work, ...] = (
    Work("gather", "aten::index_select", "aten::index_select", 2 * LAYERS, 1.9, LAYERS * 2 * D * F),
    Work("gather", "aten::gather", "aten::gather", LAYERS, 3.1, LAYERS * D * F),
    Work("gather", "", PYTHON, 1, 0.31),
)
PRODUCTS = ("gate", "up", "down")


def profile(
    method: str = "dense",
    *,
    sparsity: float = 0.5,
    model: str = "shape:25m",
    commit: str | None = "0" * 40,
    dirty: bool = False,
    machine: Machine = CPU,
    slower: Mapping[str, float] | None = None,
    extra: Iterable[KernelRow] = (),
    without: Iterable[tuple[str, str, str, str]] = (),
    noise: float = 0.0,
    seed: int = 0,
    started: str = STARTED,
    **case: Any,
) -> Profile:
    """A profile of one case.

    Parameters
    ----------
    slower : mapping, optional
        Factors of self times by part, e.g. ``{"attention": 1.2}``.
    extra : iterable of KernelRow
        More rows, as `row` makes them.
    without : iterable
        Rows that are not there: phase, part, operator and kernel.
    noise, seed
        Relative spread of every row, as between processes; equal seeds give equal profiles.
    **case
        Other fields of the case.
    """
    on_gpu = machine.gpu is not None
    density = 1.0 if method == "dense" else 1 - sparsity
    draw = random.Random(f"{seed} {method} {commit}")
    factors, gone = dict(slower or {}), set(without)
    works = {
        "prefill": [work for work in STEP if work.part != "decode"],
        "statistic": [] if method == "dense" else list(STATISTIC),
        "selection": [Work("selection", "", PYTHON, 1, 0.01)] if method == "dense" else list(SELECTION),
        "gather": [] if method == "dense" else list(GATHER),
        "decode": list(STEP),
    }
    phases: dict[str, list[KernelRow]] = {}
    for phase, listed in works.items():
        made = [_row(phase, work, density if phase in ("decode", "gather") else 1.0, on_gpu) for work in listed]
        made += [one for one in extra if one.phase == phase]
        made = [one for one in made if (one.phase, one.part, one.op, one.kernel) not in gone]
        phases[phase] = _shared(_noisy(one, factors.get(one.part, 1.0), noise, draw) for one in made)
    kernels = tuple(one for made in phases.values() for one in sorted(made, key=lambda one: -one.self_ms))
    totals = {phase: sum(one.self_ms for one in made) for phase, made in phases.items()}
    weights = BYTES * (LAYERS * D * (3 * F * density + 3 * D) + VOCABULARY * D)
    told: dict[str, Any] = {
        "model": model, "method": method, "sparsity": 0.0 if method == "dense" else sparsity, "dtype": "bfloat16",
        "device": "cuda" if on_gpu else "cpu", "prompt_tokens": TOKENS, "new_tokens": 16, **case,
    }  # fmt: skip
    return Profile(
        case=Case(**told),
        commit=Commit(hash=commit, dirty=dirty if commit else None),
        machine=machine,
        started=started,
        execution="dense" if method == "dense" else "compact",
        achieved_sparsity=() if method == "dense" else (sparsity,) * LAYERS,
        weight_bytes=weights,
        step_bytes=weights + 1.1e6,
        matmul_tflop_per_s=0.35,
        event_us={"operator": 1e3 * COST_MS, "range": 2e3 * COST_MS},
        timed=Timed(
            prefill_ms=_rounds(totals["prefill"] + totals["statistic"], draw),
            selection_ms=_rounds(totals["selection"] + totals["gather"], draw),
            decode_ms=_rounds(totals["decode"], draw),
            stream_gb_per_s=_rounds(21.0, draw),
        ),
        phases=_phases(phases),
        kernels=kernels,
        modules=tuple(_modules(phases)),
        memory=_memory(on_gpu),
        telemetry=_telemetry(on_gpu),
        trace=TRACE,
    )


def row(phase: str, part: str, op: str, kernel: str, ms: float, calls: float = LAYERS) -> KernelRow:
    """A row to be added to a profile."""
    cost = COST_MS * calls
    return KernelRow(
        phase=phase, part=part, op=op, kernel=kernel, calls=calls, recorded_ms=ms + cost, self_ms=ms,
        se_ms=0.01 * ms, share=0.0,
    )  # fmt: skip


def _row(phase: str, work: Work, density: float, on_gpu: bool) -> KernelRow:
    """One row in a phase: a prompt costs a product four times what a token does, and other operators ten times."""
    tokens = TOKENS if phase in ("prefill", "statistic") else 1
    reads = work.part in PRODUCTS or phase == "gather"
    share = density if reads and work.weights else 1.0
    scale = (4.0 if work.weights else 10.0 if work.op else 1.0) if phase == "prefill" else 1.0
    made = row(phase, work.part, work.op, _on_gpu(work) if on_gpu else work.kernel, work.ms * share * scale, work.calls)
    moved = BYTES * (work.weights * share + tokens * work.calls * D)
    flops = 2.0 * work.weights * share * tokens if work.weights and phase != "gather" else None
    return made.model_copy(update={"bytes": moved if work.op else None, "flops": flops})


def _on_gpu(work: Work) -> str:
    """What runs on a device in an operator's place; no Python runs there."""
    if work.kernel == PYTHON:
        return GAPS
    return "gemvx::kernel<bf16>" if work.weights else f"vectorized_elementwise_kernel<{work.kernel.split('::')[1]}>"


def _noisy(one: KernelRow, factor: float, noise: float, draw: random.Random) -> KernelRow:
    scale = factor * max(1 + noise * draw.gauss(0, 1), 0.01)
    cost = one.recorded_ms - one.self_ms
    return one.model_copy(update={"self_ms": one.self_ms * scale, "recorded_ms": one.self_ms * scale + cost})


def _shared(made: Iterable[KernelRow]) -> list[KernelRow]:
    held = list(made)
    whole = sum(one.self_ms for one in held)
    return [one.model_copy(update={"share": one.self_ms / whole}) for one in held]


def _rounds(level: float, draw: random.Random, rounds: int = 5) -> tuple[float, ...]:
    return tuple(level * (1.02 + 0.01 * draw.gauss(0, 1)) for _ in range(rounds))


def _phases(rows: Mapping[str, Sequence[KernelRow]]) -> dict[str, PhaseTime]:
    steps = {"prefill": 3, "statistic": 3, "selection": 3, "gather": 3, "decode": 12}
    inside = {"prefill": ("prefill", "statistic"), "selection": ("selection", "gather"), "decode": ("decode",)}
    recorded = {phase: sum(one.recorded_ms for one in made) for phase, made in rows.items()}
    found = {}
    for phase, made in rows.items():
        if not made:
            continue
        parts = sum(recorded[name] for name in inside[phase]) if phase in inside else None
        cost = sum(one.recorded_ms - one.self_ms for one in made)
        found[phase] = PhaseTime(
            steps=steps[phase], typical=(steps[phase] + 1) // 2, recorded_ms=recorded[phase], cost_ms=cost,
            whole_ms=parts, parts_ms=parts,
        )  # fmt: skip
    return found


MODULES = {
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "ffn": "mlp",
    "attention": "self_attn",
}


def _modules(rows: Mapping[str, Sequence[KernelRow]]) -> Iterable[ModuleRow]:
    for phase, made in rows.items():
        for part in dict.fromkeys(one.part for one in made):
            whole = sum(one.self_ms for one in made if one.part == part)
            if part in MODULES:
                for layer in range(LAYERS):
                    name = f"model.layers.{layer}.{MODULES[part]}"
                    yield ModuleRow(phase=phase, part=part, module=name, self_ms=whole / LAYERS)
            else:
                yield ModuleRow(phase=phase, part=part, module="lm_head" if part == "head" else "model", self_ms=whole)


def _memory(on_gpu: bool) -> dict[str, Peak]:
    if not on_gpu:
        return {
            "prefill": Peak(bytes=312_000_000),
            "selection": Peak(bytes=318_000_000),
            "decode": Peak(bytes=305_000_000),
        }
    unknown = Peak(missing="another process holds the device")
    return {"prefill": Peak(bytes=512_000_000), "selection": unknown, "decode": Peak(bytes=498_000_000)}


def _telemetry(on_gpu: bool) -> Telemetry:
    stamps = tuple(0.1 * number for number in range(11))
    series = {
        "cpu/utilization_percent": Series(
            device="cpu", unit="%", samples=tuple(96.0 + number % 3 for number in range(11)), stamps=stamps
        ),
        "cpu/power_w": Series(device="cpu", unit="W", missing="no such counter here"),
    }
    if on_gpu:
        series["gpu0/power_w"] = Series(device="gpu0", unit="W", samples=(212.0,) * 11, stamps=stamps)
    gpus = {"gpu0": "Server GPU"} if on_gpu else {}
    return Telemetry(seconds=1.0, rate_hz=10.0, gpus=gpus, series=series)


# Profiles on disk.


def write(folder: Path, made: Profile, *, traced: bool = True) -> Path:
    """Write a profile into a folder as `tda.run_profile` does, with a small trace; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if traced:
        write_trace(folder / TRACE)
    write_profile(folder, made)
    return folder


def shelve(
    store: Path, commit: str, made: Iterable[Profile], *, session: str = "cases-00000000", block: int = 1,
    traced: bool = True, started: str = STARTED,
) -> Path:  # fmt: skip
    """Put profiles on a store as one process of a session; the process's folder."""
    place = store / commit / f"{session}-{block}"
    for one in made:
        write(place / f"{one.case.model.replace(':', '-')}-{one.case.method}", one, traced=traced)
    unit = Unit(
        night=session, commit=commit, grid="cases", block=block, order=0, status="ok", started=started, seconds=9
    )
    write_whole(place / ACCOUNT, unit.model_dump_json())
    return place


def session(store: Path, sides: Mapping[str, Mapping[str, Any]], *, name: str = "cases-00000000", processes: int = 2,
            methods: Sequence[str] = ("dense", "griffin", "tda"), **told: Any) -> None:  # fmt: skip
    """Put several commits on a store that ran in turn: by commit, what its profiles differ by for each method.

    ``{a: {}, b: {"griffin": {"slower": {"ffn": 2.0}}}}`` has Griffin's FFN slower at b.
    """
    for block in range(1, processes + 1):
        for commit, changes in sides.items():
            made = [profile(method, commit=commit, seed=block, noise=0.004, **told, **changes.get(method, {}))
                    for method in methods]  # fmt: skip
            shelve(store, commit, made, session=name, block=block)


def write_trace(path: Path, *, steps: int = 3, on_gpu: bool = False) -> None:
    """Write a trace of a few requests as the profiler would: ranges, operators, and what else is in such a file."""
    events: list[dict[str, Any]] = [
        {"name": "process_name", "ph": "M", "ts": 0, "pid": 4711, "tid": 0, "args": {"name": "python"}},
        {"name": "PyTorch Profiler (0)", "ph": "X", "cat": "Trace", "ts": 0, "dur": 9000, "pid": "Spans", "tid": "x"},
        {"name": "Record Window End", "ph": "i", "s": "g", "ts": 9000, "pid": "", "tid": ""},
    ]  # fmt: skip
    now = 100.0
    for phase in ("prefill", "selection", *["decode"] * steps):
        now = _phase_events(events, phase, now, on_gpu) + 5
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as file:
        json.dump({"schemaVersion": 1, "displayTimeUnit": "ms", "traceEvents": events}, file)


def _phase_events(events: list[dict[str, Any]], phase: str, start: float, on_gpu: bool) -> float:
    """Add a range with two linears in it; the moment of its end. The last child outlasts its parent by a rounding."""
    host = {"ph": "X", "pid": 4711, "tid": 4711}
    for number, module in enumerate(("mlp.gate_proj", "mlp.down_proj")):
        begin = start + 10 + 40 * number
        name = f"{module.split('.')[1].removesuffix('_proj')}: model.layers.0.{module}"
        events.append({**host, "cat": "user_annotation", "name": name, "ts": begin, "dur": 35})
        events.append({**host, "cat": "cpu_op", "name": "aten::linear", "ts": begin + 2, "dur": 31,
                       "args": {"External id": number}})  # fmt: skip
        events.append({**host, "cat": "cpu_op", "name": "aten::mm", "ts": begin + 4, "dur": 29.001,
                       "args": {"External id": number, "correlation": number}})  # fmt: skip
        if on_gpu:
            events.append({"ph": "X", "pid": 0, "tid": 7, "cat": "kernel", "name": "gemvx::kernel<bf16>",
                           "ts": begin + 20, "dur": 30, "args": {"correlation": number, "device": 0}})  # fmt: skip
    events.append({**host, "cat": "user_annotation", "name": phase, "ts": start, "dur": 100})
    return start + 100


class Ran(NamedTuple):
    """A kernel of a step on CUDA: where it is launched from, the operator that launches it (Triton's have none), µs."""

    part: str
    module: str
    op: str
    kernel: str
    us: float


CUDA_STEP = (
    Ran("embedding", "model.embed_tokens", "aten::embedding", "indexSelectSmallIndex", 2.0),
    Ran("norm", "model.layers.0.input_layernorm", "aten::mean", "reduce_kernel<Mean>", 2.5),
    Ran("norm", "model.layers.0.input_layernorm", "aten::mul", "elementwise_kernel<Mul>", 1.5),
    Ran("projection", "model.layers.0.self_attn.q_proj", "", "_rows", 9.0),
    Ran("attention", "model.layers.0.self_attn", "aten::mul", "elementwise_kernel<Mul>", 1.25),
    Ran("attention", "model.layers.0.self_attn", "aten::index_copy_", "index_copy_kernel", 2.25),
    Ran("attention", "model.layers.0.self_attn", "aten::_scaled_dot_product_efficient_attention", "fmha_cutlassF", 6.0),
    Ran("projection", "model.layers.0.self_attn.o_proj", "", "_rows", 9.5),
    Ran("gate_up", "model.layers.0.mlp", "", "_rows", 21.0),
    Ran("selection", "model", "", "_list", 3.0),
    Ran("down", "model.layers.0.mlp", "", "_down", 8.0),
    Ran("down", "model.layers.0.mlp", "", "_finish", 1.75),
    Ran("norm", "model.norm", "aten::mul", "elementwise_kernel<Mul>", 1.5),
    Ran("head", "lm_head", "", "_rows", 30.0),
)
"""The captured work of a decode step of one layer, in order: several kernels have one name in several parts."""
COPY, CLONE = "Memcpy DtoD (Device -> Device)", "elementwise_kernel<Copy>"
"""What a step launches besides: of the token before the graph, of the logits after it."""


class CudaTrace:
    """A trace as CUDA writes it: ranges, operators and launches of a thread, and the kernels of a stream.

    Opening and closing a range or an operator takes half a µs each, a launch `LAUNCH_US`. A kernel starts `LATENCY_US`
    after its launch began, or `GAP_US` after the kernel before it has ended.
    """

    LAUNCH_US, LATENCY_US, GAP_US = 2.0, 3.0, 0.75

    def __init__(self) -> None:
        self.now, self.free, self._launches = 1000.0, 0.0, 0
        self.events: list[dict[str, Any]] = [
            {"name": "process_name", "ph": "M", "ts": 0, "pid": 4711, "tid": 0, "args": {"name": "python"}},
            {"name": "PyTorch Profiler (0)", "ph": "X", "cat": "Trace", "ts": 0, "dur": 90000, "pid": "Spans",
             "tid": "PyTorch Profiler"},
        ]  # fmt: skip

    @contextmanager
    def around(self, name: str, category: str = "user_annotation") -> Iterator[None]:
        """A range, or an operator."""
        start = self.now
        self.now += 0.5
        yield
        self.now += 0.5
        self._host(name, category, start)

    def launch(self, kernel: str, us: float, op: str = "") -> None:
        """A kernel launched by an operator, or as Triton does."""
        copies = kernel.startswith("Memcpy")
        with self.around(op, "cpu_op") if op else nullcontext():
            if op:
                self._call("cudaMemcpyAsync" if copies else "cudaLaunchKernel", "cuda_runtime")
            else:
                self._call("cuLaunchKernelEx", "cuda_driver")
        self._run(kernel, us, "gpu_memcpy" if copies else "kernel")

    def replay(self, kernels: Iterable[tuple[str, float]]) -> None:
        """A graph's kernels, by name and µs: one launch."""
        self._call("cudaGraphLaunch", "cuda_runtime")
        for name, us in kernels:
            self._run(name, us, "gpu_memset" if name.startswith("Memset") else "kernel")

    def wait(self) -> None:
        """Until the device is done."""
        start, self.now = self.now, max(self.now, self.free) + 1.0
        self._host("cudaDeviceSynchronize", "cuda_runtime", start, correlation=10**6)

    def work(self, step: Iterable[Ran]) -> None:
        """Kernels launched one by one from their modules."""
        for ran in step:
            with self.around(f"{ran.part}: {ran.module}" if ran.part != "selection" else ran.part):
                self.launch(ran.kernel, ran.us, ran.op)

    @contextmanager
    def decode(self) -> Iterator[None]:
        """A decode step around its graph."""
        with self.around("decode"):
            with self.around("model: model"):
                self.launch(COPY, 1.0, "aten::copy_")
                self.now += 5.0  # of Python, in which the device has nothing to run
                with self.around("graph"):
                    yield
                self.launch(CLONE, 1.0, "aten::clone")
            self.wait()

    def write(self, path: Path) -> Path:
        """Gzipped; the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt") as file:
            json.dump({"schemaVersion": 1, "displayTimeUnit": "ms", "traceEvents": self.events}, file)
        return path

    def _call(self, name: str, category: str) -> None:
        start = self.now
        self.now += self.LAUNCH_US
        self._launches += 1
        self.free = max(self.free + self.GAP_US, start + self.LATENCY_US) - self.GAP_US
        self._host(name, category, start, correlation=self._launches)
        self.events.append({"ph": "s", "id": self._launches, "pid": 4711, "tid": 4711, "ts": start, "cat": "ac2g",
                            "name": "ac2g"})  # fmt: skip

    def _run(self, name: str, us: float, category: str) -> None:
        start = self.free + self.GAP_US
        self.free = start + us
        self.events.append({"ph": "X", "cat": category, "name": name, "pid": 0, "tid": 7, "ts": start, "dur": us,
                            "args": {"correlation": self._launches, "device": 0, "stream": 7}})  # fmt: skip

    def _host(self, name: str, category: str, start: float, **more: Any) -> None:
        self.events.append({"ph": "X", "cat": category, "name": name, "pid": 4711, "tid": 4711, "ts": start,
                            "dur": self.now - start, "args": more})  # fmt: skip
        if category == "user_annotation":  # the profiler repeats ranges on the device
            self.events.append({**self.events[-1], "cat": "gpu_user_annotation", "pid": 0, "tid": 7})


def write_order(path: Path, step: Iterable[Ran] = CUDA_STEP) -> Path:
    """Write the trace of a step whose captured work is run anew."""
    trace = CudaTrace()
    with trace.decode():
        trace.work(step)
    return trace.write(path)


def write_replays(path: Path, kernels: Sequence[tuple[str, float]] | None = None, steps: int = 3) -> Path:
    """Write the trace of a request whose decode steps are replayed: of `CUDA_STEP`, or of kernels by name and µs."""
    trace = CudaTrace()
    with trace.around("prefill"):
        with trace.around("down: model.layers.0.mlp.down_proj"):
            trace.launch("gemm", 40.0, "aten::mm")
        with trace.around("statistic"):
            trace.launch("_factors", 5.0)
            trace.launch("_sum", 7.0)
        trace.wait()
    with trace.around("selection"):
        with trace.around("selection"):
            trace.launch("radixSort", 6.0, "aten::topk")
        with trace.around("gather"):
            trace.launch("_list", 4.0)
        trace.wait()
    for _ in range(steps):
        with trace.decode():
            trace.replay([(ran.kernel, ran.us) for ran in CUDA_STEP] if kernels is None else kernels)
    return trace.write(path)


def viewer_package(folder: Path) -> Path:
    """A package that looks as speedscope's does, with what must not leave its place."""
    files = {
        "LICENSE": b"MIT -- of somebody>",
        "dist/release/index.html": b'<link rel="stylesheet" href="a.css"><script src="a.js"></script>',
        "dist/release/a.css": b'@font-face{src:url("./f.woff2")}\n/*# sourceMappingURL=a.css.map */',
        "dist/release/a.js": b'var end = "</script><!--";\n//# sourceMappingURL=a.js.map\n',
        "dist/release/f.woff2": b"font",
    }
    path = folder / "speedscope.tgz"
    with tarfile.open(path, "w:gz") as made:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    return path
