"""Our dense and Griffin beside what users have: Hugging Face compiled with graphs, and vLLM where it is installed."""

from collections.abc import Iterator
from statistics import median

from benchmarks.gpu_check.figures import Figure, at_least
from benchmarks.gpu_check.setting import CheckSetting
from experiments.peers.blocks import run
from experiments.peers.contestants import SYSTEMS, PeerSystem, on_device
from experiments.peers.job import Job, PeerPlan, PeerRow
from tda.device import commit, machine
from tda.models.shapes import shape_config
from tda.quality import random_documents

OURS, GRIFFIN, YARDSTICK = "tda dense", "tda griffin .5", "hf compiled"
TAKING_PART, DRY = (OURS, YARDSTICK, "vllm", GRIFFIN), ("hf eager", OURS, GRIFFIN)
"""In order of worth. Compiling on a CPU takes longer than a dry run."""
LEAST_S = 15.0
"""With less time left none is begun: a process loads the model first."""
SPARE_S = 5.0
"""Before the end of the part, so that a process which takes too long is told of."""


def peer(setting: CheckSetting) -> Iterator[Figure]:
    """Each serves the same request from the same weights, in a process of its own."""
    here, left_out = on_device(SYSTEMS, setting.device)
    job = _job(setting)
    medians: dict[str, float] = {}
    for name in DRY if setting.dry else TAKING_PART:
        if name not in here:
            continue
        title = f"{name}: decode step"
        if setting.left_s < LEAST_S:
            yield Figure(name=title, value=None, note=f"not begun: {setting.left_s:.0f} s were left")
            continue
        row = _serve(setting, job, name, here[name])
        if row.report is None:
            yield Figure(name=title, value=None, note=f"{row.status}: {row.reason}")
            continue
        medians[name] = median(served.decode_ms for served in row.report.served)
        first = median(served.prefill_ms for served in row.report.served)
        note = f"first token after {first:.4g} ms; warm-up, compilation included, {row.report.warm_up_s:.0f} s"
        yield Figure(name=title, value=medians[name], unit="ms", note=note)
    yield from (Figure(name=sentence.split(" is ")[0], value=None, note=sentence) for sentence in left_out)
    yardstick = () if setting.dry else (YARDSTICK,)
    for other in (*yardstick, *(name for name in medians if name not in (YARDSTICK, OURS, GRIFFIN))):
        goal = at_least(1) if other == YARDSTICK else None
        ratio = medians[other] / medians[OURS] if {OURS, other} <= medians.keys() else None
        yield Figure(name=f"{OURS} over {other}", value=ratio, goal=goal, note="one process of each")


def _job(setting: CheckSetting) -> Job:
    vocabulary = shape_config(setting.model.removeprefix("shape:")).vocab_size
    prompt = random_documents(vocabulary, setting.prompt_tokens, 0, 1, seed=0)[0].prompt
    return Job(
        model=setting.model,
        prompt=tuple(prompt.tolist()),
        new_tokens=8 if setting.dry else 32,
        requests=2,
        threads=machine(setting.device).threads,
        device=setting.device,
    )


def _serve(setting: CheckSetting, job: Job, name: str, contestant: PeerSystem) -> PeerRow:
    plan = PeerPlan(job=job, contestants=(name,), machine=machine(setting.device), commit=commit())
    out = setting.folder / name.replace(" ", "-")
    timeout_s = max(setting.left_s - SPARE_S, 1.0)
    return run(out, plan, {name: contestant}, 1, timeout_s=timeout_s)[-1]
