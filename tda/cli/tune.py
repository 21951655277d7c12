"""``tda tune``: the blocks of the kernels in Triton, chosen for a model's shapes on this card."""

from typing import Annotated

import typer

from tda.cli import options as o


def tune(
    model: o.OneModel,
    dtype: o.DtypeName = "bfloat16",
    device: o.DeviceName = "cuda",
    budget: Annotated[str, typer.Option(metavar="TIME", help="Time to measure in, as 60s or 5m, or none.")] = "60s",
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
    as_json: o.AsJson = False,
) -> None:
    """Measure the kernels in Triton for a model's shapes on this GPU, and keep the best for later runs.

    Every candidate is timed at the fractions that methods keep, with the weights not in the L2 cache.
    What was measured is kept beside the choice.
    """
    from tda.bench.budget import parse_seconds
    from tda.bench.tune import tune as measure
    from tda.device import torch_device
    from tda.models import load_model

    seconds = parse_seconds(budget)
    if torch_device(device).type != "cuda":
        raise ValueError(f"tune measures kernels of a GPU; got the device {device!r}. The kernels in C need no tuning")
    loaded = load_model(model, dtype=dtype, device=device, revision=revision, trust_remote_code=trust_remote_code)
    rows = measure(loaded.model, float("inf") if seconds is None else seconds)
    if as_json:
        o.print_json(rows)
        return
    shown = ("kernel", "shape", "kept_fractions", "chosen", "gb_per_s", "default_gb_per_s")
    o.print_rows([{name: _words(row[name]) for name in shown} for row in rows], as_json=False, title=model)


def _words(value: object) -> str:
    """A cell: numbers of several fractions one after the other."""
    return " / ".join(f"{one:.4g}" for one in value) if isinstance(value, tuple) else str(value)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(tune)
