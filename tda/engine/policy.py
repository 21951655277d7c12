"""What a decode step runs as and leaves out, for each kind of method; which execution "auto" takes where it pays."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tda.contracts import Kind, Method, PromptMethod, TokenMethod
from tda.engine.backends.decoding import Decoding
from tda.engine.counter import SparsityCounter
from tda.engine.request import Call, Request
from tda.finite import check_statistics
from tda.names import Execution, Ran
from tda.selection import Selection
from tda.spans import span
from tda.view import FFN, LinearInput, Place

WORTHWHILE_ROWS = 1.2
"""Gathered rows pay while batch rows times density stays below this; beyond, "auto" runs dense arithmetic."""


@dataclass
class Policy:
    """Decode of a method that leaves nothing out.

    Attributes
    ----------
    model : nn.Module
        The Hugging Face model.
    method : Method
        The attached method.
    ffns : sequence of Place
        Where the method leaves something out.
    requested : str
        The execution asked for.
    decoding : Decoding
        What runs decode where it can be fast.
    counter : SparsityCounter
        Counts what is left out.
    """

    model: nn.Module
    method: Method
    ffns: Sequence[Place]
    requested: Execution
    decoding: Decoding
    counter: SparsityCounter

    def select(self, request: Request) -> None:
        """Make the selection of a request, where that is fixed before decode."""

    def selection(self, request: Request) -> Selection:
        """What is kept: bool [B, F] per layer."""
        shapes = ((request.rows, ffn.F) for ffn in self.ffns)
        return Selection(torch.ones(shape, dtype=torch.bool, device=request.device) for shape in shapes)

    def set_selection(self, kept: Sequence[Tensor] | None) -> None:
        """Use given sets for all prompts from now on."""
        raise ValueError(f"{self.method.name!r} has no selection per prompt that could be replaced")

    def forget(self) -> None:
        """Know of no request any more."""

    def begin(self, call: Call) -> Ran | None:
        """What a decode step runs as; it is counted as far as that is known before it runs."""
        # tests/planted.py: dense decode
        self.counter.whole(call)
        return "dense"

    def mask(self, call: Call, number: int, z: Tensor, a: Tensor, tokens: Tensor | None) -> Tensor:
        """z with left-out activations zeroed; see `Attachment.mask`."""
        return z


@dataclass
class PromptPolicy(Policy):
    """Decode of a method whose sets are fixed before it."""

    method: PromptMethod
    ffns: Sequence[FFN]
    _imposed: Selection | None = None
    _loaded: dict[Ran, Request] = field(default_factory=dict)

    def select(self, request: Request) -> None:
        """Make the selection of a request, and let what runs decode take it."""
        with span("selection"):
            kept = self._imposed
            if kept is None:
                check_statistics(self.model, request.statistics)
                kept = request.choose(self.method, self.ffns)
            elif len(kept[0]) != request.rows:
                raise ValueError(f"the imposed sets are of {len(kept[0])} rows, and the batch has {request.rows}")
            request.kept = kept
            request.execution = self._execution(request.rows, kept, kept.left_out)
        self._load(request, kept)
        # tests/planted.py: selection

    def selection(self, request: Request) -> Selection:
        """What the prompt keeps: bool [B, F] per layer."""
        assert request.kept is not None
        return request.kept

    def set_selection(self, kept: Sequence[Tensor] | None) -> None:
        """Use given sets for all prompts from now on."""
        if kept is not None:
            shapes = [(layer.dtype, layer.dim(), layer.shape[-1]) for layer in kept if isinstance(layer, Tensor)]
            if shapes != [(torch.bool, 2, ffn.F) for ffn in self.ffns]:
                sizes = ", ".join(str(ffn.F) for ffn in self.ffns)
                raise ValueError(f"expected a bool tensor [B, F] for each layer, F {sizes}; got {shapes}")
        self._imposed = None if kept is None else Selection(kept)

    def forget(self) -> None:
        """Know of no request any more."""
        self._loaded.clear()

    def begin(self, call: Call) -> Ran | None:
        """What a decode step runs as."""
        # tests/planted.py: sparse decode
        request, execution = call.request, call.request.execution
        kept = self.selection(request)
        if execution == "indexed" and call.tokens > 1 and self.requested == "auto":
            execution = "indexed" if _pays(call.rows * call.tokens, _density(kept.left_out)) else "masked"
        if execution in ("compact", "indexed") and self._loaded.get(execution) is not request:
            self._load(request, kept)
        self.counter.prompt(call, kept)
        return execution

    def mask(self, call: Call, number: int, z: Tensor, a: Tensor, tokens: Tensor | None) -> Tensor:
        """z with left-out activations zeroed; those of an expert are counted."""
        kept = self.selection(call.request)[number]
        if tokens is not None:
            kept = kept[tokens // call.tokens]
            self.counter.count(number, kept, tokens)
            return z.masked_fill(~kept, 0)
        left_out = ~kept.unsqueeze(1)  # [B, 1, F]
        return z.view(call.rows, call.tokens, -1).masked_fill(left_out, 0).view_as(z)

    def _execution(self, rows: int, kept: Selection, left_out: Tensor) -> Ran:
        """What decode of a prompt's sets runs as: reading each row's weights pays while rows are few."""
        if self.method.quantization is not None and rows > 1:
            return "masked"  # kernels run single tokens of quantized weights
        if self.requested != "auto" or self.decoding.execution == "masked" or rows == 1:
            return self.decoding.execution
        if kept.rows_alike:
            return "compact"
        return self.decoding.execution if _pays(rows, _density(left_out)) else "masked"

    def _load(self, request: Request, kept: Selection) -> None:
        if request.execution in ("compact", "indexed"):
            with span("gather"):
                self.decoding.load(request.execution, kept)
            self._loaded[request.execution] = request


@dataclass
class TokenPolicy(Policy):
    """Decode of a method that chooses for every token."""

    method: TokenMethod

    def selection(self, request: Request) -> Selection:
        """What the last decode step kept of each row's last token."""
        kept = self.counter.last
        if kept is None:
            raise ValueError(f"{self.method.name!r} selects per token, and no decode step ran yet")
        return kept

    def begin(self, call: Call) -> Ran | None:
        """What a decode step runs as."""
        self.counter.begin(call)
        density = 1 - (self.method.sparsity or 0)
        fast = self.requested == "indexed" or _pays(call.rows * call.tokens, density)
        return self.decoding.execution if fast else "masked"

    def mask(self, call: Call, number: int, z: Tensor, a: Tensor, tokens: Tensor | None) -> Tensor:
        """z with left-out activations zeroed; what is kept is counted."""
        place, passing = self.ffns[number], z.shape[:-1].numel()
        if tokens is None and passing != call.rows * call.tokens:
            assert isinstance(place, LinearInput)
            raise ValueError(
                f"layer {place.layer}: {passing} tokens pass {place.name} where {call.rows * call.tokens} are decoded, "
                f"the cached ones among them; {self.method.name!r} cannot leave out inputs there, so not in this model"
            )
        with span("selection"):
            kept = self.method.select(place, a)
            self.counter.layer(number, kept.reshape(-1, kept.shape[-1]), tokens)
        return z.masked_fill(~kept, 0)


POLICIES: dict[Kind, type[Policy]] = {
    "dense": Policy,
    "prompt": PromptPolicy,
    "token": TokenPolicy,
    "threshold": TokenPolicy,
}


def _density(left_out: Tensor) -> float:
    return 1 - float(left_out.mean())


def _pays(rows: int, density: float) -> bool:
    """Whether reading what each of some rows keeps is less work than dense arithmetic for all of them."""
    return rows == 1 or rows * density < WORTHWHILE_ROWS
