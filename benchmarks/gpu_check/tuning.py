"""What the kernels of weights reach once they are tuned for the shapes of the model."""

import json
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu_check.command import run_tda
from benchmarks.gpu_check.figures import Figure
from benchmarks.gpu_check.setting import CheckSetting
from tda.results import write_whole

BUDGET = "45s"
CHOSEN = "tune.json"


def tune(setting: CheckSetting) -> Iterator[Figure]:
    """Tune as a user does, and tell what each kernel reaches at each shape."""
    ran = run_tda("tune", "--model", setting.model, "--device", setting.device, "--budget", BUDGET, "--json")
    if ran.code:
        raise RuntimeError(f"tda tune ended with exit code {ran.code}")
    write_whole(setting.folder / CHOSEN, ran.printed)
    yield Figure(name="tda tune", value=ran.seconds, unit="s", note=f"with a budget of {BUDGET}")
    for row in json.loads(ran.printed):
        yield from _figures(row)


def _figures(row: dict[str, Any]) -> Iterator[Figure]:
    """A kernel at a shape, at each fraction of neurons that it was measured at; what a row lacks is not told."""
    reached, untuned, fractions = (
        _several(row.get(name)) for name in ("gb_per_s", "default_gb_per_s", "kept_fractions")
    )
    shape = "×".join(map(str, _several(row.get("shape"))))
    chosen = f"chosen: {row.get('chosen')}, of {len(row.get('candidates', ()))} candidates"
    for place, value in enumerate(reached):
        kept = f", {fractions[place]:g} kept" if len(fractions) == len(reached) else ""
        default = f"; untuned: {untuned[place]:.4g} GB/s" if len(untuned) == len(reached) else ""
        yield Figure(name=f"{row.get('kernel')} {shape}{kept}", value=value, unit="GB/s", note=chosen + default)


def _several(value: Any) -> list[Any]:
    """One alone, several, or none."""
    return [] if value is None else value if isinstance(value, list) else [value]
