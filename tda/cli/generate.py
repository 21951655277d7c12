"""``tda generate``: text with a method attached, as it comes."""

from typing import Annotated, Any

import typer

from tda.cli import options as o


# long: every option of the command is a parameter
def generate(
    model: o.OneModel,
    prompt: Annotated[
        str,
        typer.Option(
            help="The prompt. The tokenizer's control words, as <|im_start|>, count as such in it; BOS comes in front "
            "once, typed or not."
        ),
    ],
    method: o.OneMethod = "dense",
    sparsity: o.OneSparsity = None,
    thresholds: o.ThresholdsFile = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    seed: o.Seed = None,
    dtype: o.DtypeName = "float32",
    device: o.DeviceName = "cpu",
    execution: o.ExecutionName = "auto",
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Write text with a method attached; print at the end what it left out."""
    import torch
    from transformers import TextStreamer

    from tda import kernels
    from tda.engine import attach
    from tda.engine.context import check_context
    from tda.engine.plain import notice, plain
    from tda.models import load_model, needs_training
    from tda.models.digest import weights_digest
    from tda.quality.documents import encode
    from tda.thresholds import Thresholds

    needs_training(model, "text")
    o.warn(kernels.notice(device))
    built = o.one_method(method, sparsity)
    if built.needs_fit and not built.keeps_all and thresholds is None:
        raise ValueError(
            f"method {built.name!r} needs thresholds: `tda calibrate -m {model} --method {built.spec} --out FILE` "
            "makes them, --thresholds FILE takes them"
        )
    artifact = None if thresholds is None else Thresholds.load(thresholds)
    loaded: Any
    loaded, tokenizer = load_model(
        model, dtype=dtype, device=device, revision=revision, trust_remote_code=trust_remote_code
    )
    tokens = encode(tokenizer, prompt, control_words=True).unsqueeze(0).to(loaded.device)
    if not tokens.numel():
        raise ValueError(f"the prompt is empty, and the tokenizer of {model} has no BOS to begin with; expected text")
    check_context(loaded, tokens.shape[1], new_tokens)
    if told := notice(loaded):
        o.warn(f"{model}: {told}")
    o.warn(None if artifact is None else artifact.foreign(model, weights_digest(loaded)))
    ends = loaded.generation_config.eos_token_id
    torch.manual_seed(seed or 0)
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    with plain(loaded), attach(loaded, built, artifact, execution=execution) as run:
        loaded.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=new_tokens,
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
            streamer=TextStreamer(tokenizer, skip_special_tokens=True),
            **sampling,
        )
        if run.attachment.counter.started:
            layers = ", ".join(f"{share:.2f}" for share in run.achieved_sparsity())
            typer.echo(f"{method}, {run.execution}: left out per layer {layers}", err=True)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(generate)
