"""A whole decode step in one call: what framework and operators cost between the weights is left out."""

import ctypes
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tda.kernels.native import describe, ops
from tda.kernels.native import library as c
from tda.kernels.native.ffn import ffn_cost, weights_cost
from tda.kernels.native.key_values import KeyValues
from tda.kernels.weights import AS_BUILT, Weights
from tda.spans import span
from tda.view import Decoder, DecoderLayer

NORMS = tuple(field[0] for field in c.Layer._fields_ if field[1] is c.Norm)
LINEARS = ("query", "key", "value", "output")


class StepRange(NamedTuple):
    """A piece of a step that a profile shows by itself: stages [first, last) of the C source, and its range's name."""

    first: int
    last: int
    name: str


class Step:
    """A decoder's step of one token, over feed-forward networks that may change from step to step.

    Parameters
    ----------
    decoder : Decoder
        The model; its weights are read where they lie.
    ffns : sequence of ctypes FFN
        Feed-forward network of each layer.
    weights : Weights
        Where the weights are.
    kept : Tensor, optional
        Where the networks of a per-token method leave which neurons they kept: uint8 [L, F].

    Raises
    ------
    UndescribedError
        If the kernels do not know something that the model computes.
    """

    def __init__(
        self,
        decoder: Decoder,
        ffns: Sequence[c.FFNStruct],
        weights: Weights = AS_BUILT,
        kept: Tensor | None = None,
    ) -> None:
        self.decoder = decoder
        self._kept = None if kept is None else kept.unsqueeze(1)  # [L, 1, F]
        describe.check_linear(decoder.head)
        self.dtype = decoder.head.weight.dtype
        describe.check_types(_modules(decoder), self.dtype)
        self._layers = (c.Layer * len(decoder.layers))(*(_layer(layer, weights) for layer in decoder.layers))
        self.load(ffns)
        self._windows = [layer.window for layer in decoder.layers]
        self._model = c.ModelStruct(
            layers=self._layers,
            count=len(decoder.layers),
            hidden=decoder.layers[0].query.in_features,
            heads=decoder.heads,
            kv_heads=decoder.kv_heads,
            head_dim=decoder.head_dim,
            last=describe.norm(decoder.last),
            project=describe.matrix(decoder.project, weights),
            head=describe.matrix(decoder.head, weights),
            softcap=decoder.softcap,
            kind=c.KINDS[self.dtype],
        )
        self._caches: weakref.WeakKeyDictionary[Any, KeyValues] = weakref.WeakKeyDictionary()
        self._scratch = torch.empty(0, dtype=torch.float32, device="cpu")
        self._tensors: tuple[Tensor | None, ...] = ()  # hidden, cosine, sine, logits of the step in progress
        self._handle = ops.register(self)

    def load(self, ffns: Sequence[c.FFNStruct]) -> None:
        """Take other descriptions of the feed-forward networks."""
        for layer, ffn in zip(self._layers, ffns, strict=True):
            layer.ffn = ffn

    def problem(
        self, cache: Any, rows: int, position: Tensor | None = None, mask: Tensor | None = None, tokens: int = 0
    ) -> str | None:
        """Why a step cannot run; None if it can. See `tda.engine.backends.decoding.DecodeStep`."""
        if rows != 1:
            return "more than one row"
        found = KeyValues.problem(cache, self.dtype, len(self._layers))
        if found is None and mask is not None and (mask.shape[-1] < tokens or not bool(mask.all())):
            return "some tokens are padding"
        return found

    @torch.no_grad()
    def __call__(
        self, token: Tensor, position: Tensor, cache: Any, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits [1, 1, V] after one more token, and what was kept (uint8 [L, 1, F]); the cache grows by it.

        Parameters
        ----------
        token, position : Tensor
            int64 [1, 1] each.
        cache : object
            A cache that `problem` has nothing against.
        mask : Tensor, optional
            All true: no row is padded.
        """
        decoder = self.decoder
        hidden = decoder.embed(token, position).to(self.dtype).contiguous()
        cosine = sine = None
        if decoder.rotary is not None:
            cosine, sine = (part.float().contiguous() for part in decoder.rotary(hidden, position))
            self._model.rotary_dim = cosine.shape[-1]
        held = self._caches.get(cache)
        if held is None:
            held = self._caches[cache] = KeyValues(len(self._layers))
        held.reserve(cache, self._layers, self._windows)
        logits = torch.empty(1, 1, self._model.head.rows, dtype=self.dtype)
        self._tensors = (hidden, cosine, sine, logits)
        floats = c.library().tda_step_floats(ctypes.byref(self._model), torch.get_num_threads())
        self._scratch = c.ensure_scratch(self._scratch, floats)
        if ops.needs_operators():
            for stage in self.stages():
                with span(stage.name):
                    torch.ops.tda.decode_stage(self._scratch, self._handle, stage.first, stage.last)
        else:
            self.run_stages(0, 4 * len(self._layers) + 2)
        self._tensors = ()
        held.advance(cache)
        return logits, self._kept

    def run_stages(self, first: int, last: int) -> None:
        """Run stages [first, last) of the step in progress."""
        hidden, cosine, sine, logits = map(c.data_pointer, self._tensors)
        scratch, threads = self._scratch.data_ptr(), torch.get_num_threads()
        c.library().tda_step(ctypes.byref(self._model), first, last, hidden, cosine, sine, logits, scratch, threads)

    def stages(self) -> Iterator[StepRange]:
        """The pieces of a step, in order; the embedded token goes in with the first."""
        for number, layer in enumerate(self.decoder.layers):
            first = 1 + 4 * number
            yield StepRange(first - (number == 0), first + 1, f"projection: {layer.name}")
            yield StepRange(first + 1, first + 2, f"attention: {layer.name}")
            yield StepRange(first + 2, first + 3, f"projection: {layer.name}")
            yield StepRange(first + 3, first + 4, f"gate_up_down: {layer.ffn_name}")
        yield StepRange(4 * len(self._layers) + 1, 4 * len(self._layers) + 2, "head: lm_head")

    def cost(self, first: int, last: int) -> ops.Cost:
        """Bytes and FLOPs of stages [first, last), as they last ran."""
        costs = [self._stage_cost(stage) for stage in range(max(first, 1), last)]
        return ops.Cost(sum(cost.bytes for cost in costs), sum(cost.flops for cost in costs))

    def _stage_cost(self, stage: int) -> ops.Cost:
        size = self.dtype.itemsize
        if stage > 4 * len(self._layers):
            return weights_cost([self._model.project, self._model.head])
        layer, piece = self._layers[(stage - 1) // 4], (stage - 1) % 4
        if piece == 1:
            seen = layer.cached + 1
            width = self._model.head_dim
            moved = 2 * self._model.kv_heads * seen * width * size
            return ops.Cost(moved, 4 * self._model.heads * seen * width)
        if piece == 3:
            return ffn_cost(layer.ffn)
        return weights_cost([layer.query, layer.key, layer.value] if piece == 0 else [layer.output])


class EmptyStage:
    """A stage of nothing, called as a step's stages are: what it takes is what running stages apart adds to each."""

    def __init__(self) -> None:
        self._model = c.ModelStruct()
        self._scratch = torch.empty(1, dtype=torch.float32, device="cpu")
        self._handle = ops.register(self)

    def __call__(self) -> None:
        """Run it."""
        torch.ops.tda.decode_stage(self._scratch, self._handle, 1, 1)

    def run_stages(self, first: int, last: int) -> None:
        """As `Step.run_stages`."""
        scratch, threads = self._scratch.data_ptr(), torch.get_num_threads()
        c.library().tda_step(ctypes.byref(self._model), first, last, None, None, None, None, scratch, threads)


def _modules(decoder: Decoder) -> Iterator[Any]:
    """Every module of a decoder that the kernels read parameters of, save its feed-forward networks."""
    yield from (decoder.last, decoder.project, decoder.head)
    for layer in decoder.layers:
        yield from (getattr(layer, name) for name in (*NORMS, *LINEARS))


def _layer(layer: DecoderLayer, weights: Weights) -> c.Layer:
    norms = {name: describe.norm(getattr(layer, name)) for name in NORMS}
    linears = {name: describe.matrix(getattr(layer, name), weights) for name in LINEARS}
    return c.Layer(**norms, **linears, scale=layer.scale, softcap=layer.softcap)
