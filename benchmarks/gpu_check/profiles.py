"""Where the time of a request goes, and whether the profile accounts for all of it."""

from collections.abc import Iterator
from statistics import median

from benchmarks.gpu_check.command import run_tda
from benchmarks.gpu_check.figures import Figure, at_least, at_most
from benchmarks.gpu_check.setting import CheckSetting
from tda.cases import describe
from tda.profiler.records import Profile
from tda.profiler.store import read_profiles

ONCE = {"statistic": "statistic", "selection": "choice", "gather": "lists"}
"""Parts of a profile that a prompt brings, and what they are called."""
MISSED = 0.03
"""Share of the timed step by which the parts may miss it."""


def profile(setting: CheckSetting) -> Iterator[Figure]:
    """Profile dense, Griffin and TDA at 0.5."""
    out = setting.folder / "profile"
    words = ["--model", setting.model, "--method", "griffin", "--method", "tda", "--sparsity", 0.5, "--device"]
    words += [setting.device, "--prompt-tokens", setting.prompt_tokens, "--new-tokens", 16, "--out", out]
    ran = run_tda("profile", *words)
    if ran.code:
        raise RuntimeError(f"tda profile ended with exit code {ran.code}")
    for _, found in read_profiles(out):
        label = describe(found.case, model=False)
        if not found.case.is_baseline:
            yield from _once(found, label)
        yield _sum(found, label)


def _once(profile: Profile, label: str) -> Iterator[Figure]:
    """The rows of what happens once a prompt, in all phases before decode."""
    times = {part: sum(row.self_ms for row in profile.kernels if row.part == part) for part in ONCE}
    rows = {row.part for row in profile.kernels}
    told = [f"{name} {times[part]:.3g} ms" if part in rows else f"no {name}" for part, name in ONCE.items()]
    count = sum(part in rows for part in ONCE)
    title = f"{label}: rows of statistic, choice and lists"
    yield Figure(name=title, value=count, goal=at_least(len(ONCE)), note=", ".join(told))


def _sum(profile: Profile, label: str) -> Figure:
    """How far the parts of a decode step are from the timed step."""
    parts, timed = sum(row.self_ms for row in profile.rows("decode")), median(profile.timed.decode_ms)
    note = f"parts {parts:.4g} ms, timed {timed:.4g} ms"
    title = f"{label}: share of the timed step by which its parts miss it"
    return Figure(name=title, value=abs(parts / timed - 1), goal=at_most(MISSED), note=note)
