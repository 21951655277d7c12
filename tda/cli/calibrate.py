"""``tda calibrate``: thresholds from text."""

from pathlib import Path
from typing import Annotated

import typer

from tda.cli import options as o


def calibrate(
    model: o.OneModel,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the artifact goes.")],
    method: o.OneMethod = "tda",
    sparsity: o.OneSparsity = None,
    text: o.CalibrationText = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a document: the longest prompt that is meant.")] = 512,
    documents: Annotated[int, typer.Option(min=1, help="Documents.")] = 64,
    dtype: o.DtypeName = "float32",
    device: o.DeviceName = "cpu",
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
    as_json: o.AsJson = False,
) -> None:
    """Find a method's thresholds on text that is not evaluated on."""
    from tda.calibration import calibrate as find
    from tda.models import load_model, needs_training
    from tda.models.digest import weights_digest
    from tda.quality import calibration_batches
    from tda.quality.documents import built_in_uses
    from tda.results import check_writable

    check_writable(out)
    needs_training(model, "thresholds")
    built = o.one_method(method, sparsity)
    loaded, tokenizer = load_model(
        model, dtype=dtype, device=device, revision=revision, trust_remote_code=trust_remote_code
    )
    thresholds = find(loaded, built, calibration_batches(tokenizer, tokens, documents, text=text))
    identity = thresholds.model.model_copy(update={"weights": weights_digest(loaded)})
    thresholds = thresholds.model_copy(update={"model": identity})
    thresholds.save(out)
    o.warn(built_in_uses(model, scored=False, calibrated=text is None, calibration_option="--text"))
    layers = range(thresholds.model.layers)
    columns = {
        "target": thresholds.targets,
        "achieved_sparsity": thresholds.achieved_sparsity,
        "cett": thresholds.cett,
        "threshold": [cuts[-1] for cuts in thresholds.cuts],
    }
    shown = {name: values for name, values in columns.items() if values}
    rows = [{"layer": layer, **{name: values[layer] for name, values in shown.items()}} for layer in layers]
    if not shown:  # a mean or a prior: a number of each neuron
        rows = [{"layer": layer, "neurons": thresholds.model.intermediate_size} for layer in layers]
    o.print_rows(rows, as_json=as_json, title=f"{method} on {model}, {documents} documents of {tokens} tokens")
    typer.echo(f"thresholds: {out}", err=True)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(calibrate)
