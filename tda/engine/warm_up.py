"""The request that attaching serves on CUDA: what is loaded or captured at first use is there for the first user."""

import warnings

import torch

from tda.engine.attachment import Attachment
from tda.engine.context import context_length
from tda.engine.plain import plain
from tda.engine.run import Run
from tda.engine.selfcheck import PROBE_TOKENS, probe
from tda.engine.session import Session
from tda.engine.transformers_api import text_config
from tda.finite import NotFiniteError

PROMPT_TOKENS = 512
STEPS = 2


@torch.no_grad()
def warm_up(run: Attachment) -> None:
    """Serve a short request of one row where kernels in Triton run decode, once for each decoding; then forget it.

    Its prompt is the probe that the family was checked with, again and again, up to the model's context. Other numbers
    of rows are captured when they first come.
    """
    decoding = run.decoding
    if decoding.warm or decoding.backend.name != "triton":
        return
    positions = context_length(text_config(run.model)) or PROMPT_TOKENS + STEPS
    count = min(PROMPT_TOKENS, positions - STEPS)
    if count > 0:
        tokens = probe(run.model).repeat(1, -(-(count + STEPS + 1) // PROBE_TOKENS))
        try:
            with plain(run.model):
                Session(Run(run), tokens[:, :count], tokens[:, count : count + STEPS + 1]).serve(STEPS)
        except NotFiniteError:
            raise
        except Exception as error:  # what a user asks for may run all the same
            warnings.warn(f"the warm-up request failed ({type(error).__name__}: {error})", stacklevel=4)
        run.forget()
        if tokens.is_cuda:
            torch.cuda.synchronize(tokens.device)
    decoding.warm = True
