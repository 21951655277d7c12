"""Score continuations teacher-forced, under a protocol that says which tokens are computed sparsely."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor, nn

from tda.contracts import Method, check_choice
from tda.engine.attach import attach
from tda.engine.context import check_context
from tda.engine.phases import decode, prefill
from tda.engine.plain import plain
from tda.engine.run import Run
from tda.engine.transformers_api import new_cache
from tda.finite import check_logits
from tda.names import Execution, Protocol
from tda.selection import Selection
from tda.thresholds import Thresholds


@dataclass(frozen=True)
class Scores:
    """Scores of continuations.

    Attributes
    ----------
    nll : Tensor
        Negative log likelihood of each continuation token in nats: float32 [B, G]; 0 where it is padding.
    sparse : Tensor
        Which tokens were predicted by a sparse pass: bool [B, G].
    valid : Tensor
        Which tokens are no padding: bool [B, G].
    logits : Tensor
        What predicted each token: [B, G, V], in the model's dtype.
    achieved_sparsity : tuple of float
        Share left out per layer; empty if no token was sparse.
    selection : Selection
        What the prompts keep; empty for methods that choose per token.
    """

    nll: Tensor
    sparse: Tensor
    valid: Tensor
    logits: Tensor
    achieved_sparsity: tuple[float, ...] = ()
    selection: Selection = field(default_factory=Selection)

    @classmethod
    def joined(cls, parts: Sequence["Scores"]) -> "Scores":
        """Scores of several batches of equal lengths as one."""
        tensors = {
            name: torch.cat([getattr(part, name) for part in parts]) for name in ("nll", "sparse", "valid", "logits")
        }
        shares = [part.achieved_sparsity for part in parts]
        achieved = tuple(sum(layer) / len(layer) for layer in zip(*shares, strict=True))
        selection = Selection.together(part.selection for part in parts)
        return cls(**tensors, achieved_sparsity=achieved, selection=selection)

    @property
    def sparse_share(self) -> float:
        """Share of the continuation tokens that were computed sparsely."""
        return float(self.sparse.sum() / self.valid.sum())


# long: its parameters are explained
@torch.no_grad()
def score(
    model: nn.Module,
    method: Method,
    prompt_ids: Tensor,
    continuation_ids: Tensor,
    thresholds: Thresholds | None = None,
    *,
    prompt_mask: Tensor | None = None,
    continuation_mask: Tensor | None = None,
    protocol: Protocol = "decode",
    execution: Execution = "masked",
    selection_ids: Tensor | None = None,
) -> Scores:
    """Negative log likelihood of continuations after prompts, in one teacher-forced pass.

    Parameters
    ----------
    model : nn.Module
        A supported decoder.
    method : Method
        The method; it selects on the prompt alone.
    prompt_ids, continuation_ids : Tensor
        int64 [B, P] and [B, G]; prompts may be padded on either side, continuations on the right.
    thresholds : Thresholds, optional
        The method's artifact. Text that it was calibrated on is refused.
    prompt_mask, continuation_mask : Tensor, optional
        True where a token is no padding: [B, P] and [B, G].
    protocol : {"decode", "all_sparse", "griffin"}
        "decode": as generation runs; the first continuation token comes from the dense prefill. "all_sparse": the
        last prompt token's pass is repeated sparse, so every continuation token is sparse. "griffin": compatible
        with GRIFFIN's public code; all positions but the last are dense and join the statistic, so only the last
        continuation token is sparse.
    execution : str
        As for `tda.attach`; "masked" is the reference.
    selection_ids : Tensor, optional
        Other prompts, int64 [B, S], whose selections are used instead of the prompts' own: a control.

    Raises
    ------
    ValueError
        If shapes or masks do not fit, the model has fewer positions than the text, or the text shares a document or
        window with the calibration text. NotFiniteError if logits or a prompt's statistic are not finite.
    """
    if thresholds is not None and method.needs_fit:
        method = method.with_thresholds(thresholds)
    check_choice("protocol", protocol, get_args(Protocol))
    with plain(model), attach(model, method, execution=execution) as run:
        return score_attached(
            run,
            prompt_ids,
            continuation_ids,
            prompt_mask=prompt_mask,
            continuation_mask=continuation_mask,
            protocol=protocol,
            selection_ids=selection_ids,
        )


@torch.no_grad()
def score_attached(
    run: Run,
    prompt_ids: Tensor,
    continuation_ids: Tensor,
    *,
    prompt_mask: Tensor | None = None,
    continuation_mask: Tensor | None = None,
    protocol: Protocol = "decode",
    selection_ids: Tensor | None = None,
) -> Scores:
    """As `score`, under what is attached already: attached once, inside `plain`, for many batches.

    Nothing of earlier forwards enters, and none is left behind.
    """
    model, method = run.attachment.model, run.attachment.method
    check_choice("protocol", protocol, get_args(Protocol))
    prompt_mask = _check_mask("prompt", prompt_ids, prompt_mask)
    continuation_mask = _check_mask("continuation", continuation_ids, continuation_mask)
    if len(prompt_ids) != len(continuation_ids):
        raise ValueError(f"{len(prompt_ids)} prompts for {len(continuation_ids)} continuations")
    if bool((continuation_mask[:, 1:] & ~continuation_mask[:, :-1]).any()) or not bool(prompt_mask.any(1).all()):
        raise ValueError("a continuation is padded on the right only, and a prompt has at least one token")
    longest = int((prompt_mask.sum(1) + continuation_mask.sum(1)).argmax())
    check_context(model, int(prompt_mask[longest].sum()), int(continuation_mask[longest].sum()))
    if selection_ids is not None:
        check_context(model, selection_ids.shape[1], 1)
    if method.thresholds is not None:
        both = zip(prompt_ids, prompt_mask, continuation_ids, continuation_mask, strict=True)
        method.thresholds.check_text([torch.cat([p[m], c[n]]).cpu().numpy() for p, m, c, n in both])
    tokens, mask = _left_align(prompt_ids, prompt_mask)
    run.attachment.forget()
    if selection_ids is not None:
        prefill(model, selection_ids)
        run.attachment.policy.set_selection(run.selection())
    if protocol == "griffin":
        logits, sparse = _griffin(run, tokens, mask, continuation_ids, continuation_mask)
    else:
        logits, sparse = _continue(run, tokens, mask, continuation_ids, continuation_mask, protocol)
    achieved = tuple(run.achieved_sparsity()) if bool(sparse.any()) else ()
    selection = run.selection() if method.kind == "prompt" else Selection()
    check_logits(model, logits, continuation_mask)
    nll = token_nll(logits, continuation_ids).masked_fill(~continuation_mask, 0)
    if selection_ids is not None:
        run.attachment.policy.set_selection(None)
    run.attachment.forget()
    return Scores(nll, sparse & continuation_mask, continuation_mask, logits, achieved, selection)


def token_nll(logits: Tensor, tokens: Tensor) -> Tensor:
    """Negative log likelihood in nats of tokens [B, G] under what predicted them [B, G, V]: float32 [B, G]."""
    flat = nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none")
    return flat.view_as(tokens)


def _check_mask(what: str, tokens: Tensor, mask: Tensor | None) -> Tensor:
    if tokens.dim() != 2 or tokens.shape[1] == 0:
        raise ValueError(f"{what}_ids must have shape [batch, tokens], at least one token; got {list(tokens.shape)}")
    if mask is None:
        return torch.ones_like(tokens, dtype=torch.bool)
    if mask.shape != tokens.shape:
        raise ValueError(f"{what}_mask has shape {list(mask.shape)}, its ids {list(tokens.shape)}")
    return mask.bool()


def _left_align(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move padding to the left, keeping the order of the tokens."""
    order = torch.argsort(mask.int(), dim=1, stable=True)
    return tokens.gather(1, order), mask.gather(1, order)


def _continue(
    run: Run,
    tokens: Tensor,
    mask: Tensor,
    continuation: Tensor,
    continuation_mask: Tensor,
    protocol: Protocol,
) -> tuple[Tensor, Tensor]:
    """Prefill, then the continuation in one pass: logits [B, G, V] and which were sparse [B, G]."""
    first, cache = prefill(run.attachment.model, tokens, mask, cache=new_cache() if protocol == "all_sparse" else None)
    sparse = torch.ones_like(continuation, dtype=torch.bool)
    predicting = _drop_last(continuation_mask, continuation_mask.sum(1))[:, :-1]
    seen = torch.cat([mask, predicting], 1)
    if protocol == "all_sparse":
        run.select()
        cache.crop(-1)
        fed = torch.cat([tokens[:, -1:], continuation[:, :-1]], 1)
        with run.decode():
            return decode(run.attachment.model, fed, cache, seen), sparse
    sparse[:, 0] = False
    if continuation.shape[1] == 1:
        return first, sparse
    with run.decode():
        rest = decode(run.attachment.model, continuation[:, :-1], cache, seen)
    return torch.cat([first, rest], 1), sparse


def _griffin(
    run: Run, tokens: Tensor, mask: Tensor, continuation: Tensor, continuation_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """All positions but each row's last dense and in the statistic: logits [B, G, V] and which were sparse [B, G]."""
    lengths = continuation_mask.sum(1)
    if bool((mask.sum(1) + lengths < 3).any()):
        raise ValueError("protocol 'griffin' needs at least two tokens before the last continuation token")
    fed_mask = torch.cat([mask, _drop_last(continuation_mask, lengths)], 1)
    fed, fed_mask = _left_align(torch.cat([tokens, continuation], 1), fed_mask)
    dense, cache = prefill(run.attachment.model, fed[:, :-1], fed_mask[:, :-1], all_logits=True)
    with run.decode():
        last = decode(run.attachment.model, fed[:, -1:], cache, fed_mask)
    everything = torch.cat([dense, last], 1)  # [B, P + G - 1 or wider, V], right-aligned
    width = everything.shape[1]
    place = width - lengths.unsqueeze(1) + torch.arange(continuation.shape[1], device=fed.device)
    place = place.clamp(max=width - 1)
    logits = everything.gather(1, place.unsqueeze(-1).expand(-1, -1, everything.shape[-1]))
    sparse = torch.arange(continuation.shape[1], device=fed.device) == (lengths - 1).unsqueeze(1)
    return logits, sparse


def _drop_last(mask: Tensor, lengths: Tensor) -> Tensor:
    """The mask of all but each row's last token."""
    return mask & (torch.arange(mask.shape[1], device=mask.device) < (lengths - 1).unsqueeze(1))
