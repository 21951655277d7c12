"""``tda models`` and ``tda methods``: what is known by name."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tda.cli import options as o

if TYPE_CHECKING:
    from tda.bench.inspect import Inspection, Offer


WHOLE = {"c": "whole decode steps of one row in one call", "triton": "whole decode steps in one graph"}
"""What kernels do of which no reason is told why they do less."""


def models(
    check: Annotated[
        str | None,
        typer.Option(metavar="NAME_OR_PATH", help="Load a model; say what is found in it and what runs it here."),
    ] = None,
    dtype: o.DtypeName = "float32",
    device: o.DeviceName = "cpu",
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
    as_json: o.AsJson = False,
) -> None:
    """List the models that need no download and the families of models that are supported, or check one model."""
    from tda.bench.inspect import inspect
    from tda.families import describe_families
    from tda.models import describe_models, load_model

    if check is not None:
        loaded = load_model(check, dtype=dtype, device=device, revision=revision, trust_remote_code=trust_remote_code)
        found = inspect(loaded.model)
        if as_json:
            o.print_json({"model": check, **asdict(found)})
        else:
            _print_found(check, found)
    elif as_json:
        o.print_json({"models": describe_models(), "families": describe_families()})
    else:
        o.print_rows(describe_models(), as_json=False, title="Models")
        o.print_rows(describe_families(), as_json=False, title="Families, by the model_type of a folder or hub id")
        typer.echo("On CUDA kernels in Triton run all of them. What a model needs beyond its family, --check tells.")


def _print_found(name: str, found: "Inspection") -> None:
    least, most = min(found.neurons), max(found.neurons)
    facts = {
        "model type": found.model_type,
        "family": found.family,
        "layers": found.layers,
        "hidden size": found.hidden_size,
        "neurons per layer": least if least == most else f"{least} to {most}",
        "feed-forward network": f"{found.ffn}, {found.activation}",
        "weights": f"{found.dtype} on {found.device}",
        "parameters": f"{found.parameters:,}",
        "weights per token, dense": f"{found.weight_bytes_per_token / 1e6:,.1f} MB, {found.ffn_share:.0%} of them FFN",
        "kernels": f"{found.kernels}, {WHOLE[found.kernels]}" if found.kernels in WHOLE else found.kernels,
    }
    o.print_rows([{"": what, "found": str(value)} for what, value in facts.items()], as_json=False, title=name)
    o.print_rows(
        [_row(offer) for offer in found.offers], as_json=False, title="Methods, and what runs their executions"
    )


def _row(offer: "Offer") -> dict[str, str | None]:
    runs = "; ".join(f"{execution}: {kernels}" for execution, kernels in offer.executions.items())
    told = offer.problem or runs or "the model's own code, or dense_kernel=own on the kernels"
    return {"method": offer.method, "auto": offer.auto, "executions": told}


def methods(as_json: o.AsJson = False) -> None:
    """List the methods, what they choose from and how they run."""
    from tda.methods import METHODS, option_names

    rows = []
    for name, kind in METHODS.items():
        method = kind()
        rows.append(
            {
                "name": name,
                "from": METHODS.plug_in(kind) or "tda",
                "chosen": {"model": "once", "prompt": "per prompt", "token": "per token"}[method.scope],
                "needs_thresholds": "yes" if method.needs_fit else "no",
                "executions": "dense" if name == "dense" else ", ".join(method.executions),
                "options": ", ".join(option_names(kind)) or None,
                "what": (kind.__doc__ or "").splitlines()[0],
            }
        )
    o.print_rows(rows, as_json=as_json)


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(models)
    app.command()(methods)
