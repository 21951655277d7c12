"""A whole decode step in one call: what framework and operators cost between the weights is left out."""

import ctypes
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tda.contracts import Decoder, DecoderLayer
from tda.kernels.native import describe
from tda.kernels.native import library as c
from tda.kernels.native.key_values import KeyValues

NORMS = tuple(field[0] for field in c.Layer._fields_ if field[1] is c.Norm)
LINEARS = ("query", "key", "value", "output")


class Step:
    """A decoder's step of one token, over feed-forward networks that may change from step to step.

    Parameters
    ----------
    decoder : Decoder
        The model; its weights are read where they lie.
    ffns : sequence of ctypes FFN
        Feed-forward network of each layer.

    Raises
    ------
    UndescribedError
        If the kernels do not know something that the model computes.
    """

    def __init__(self, decoder: Decoder, ffns: Sequence[c.FFN]) -> None:
        self.decoder = decoder
        self.dtype = decoder.head.weight.dtype
        describe.check_types(_modules(decoder), self.dtype)
        self._layers = (c.Layer * len(decoder.layers))(*map(_layer, decoder.layers))
        self.load(ffns)
        self._windows = [layer.window for layer in decoder.layers]
        self._model = c.Model(
            layers=self._layers,
            count=len(decoder.layers),
            hidden=decoder.layers[0].query.in_features,
            heads=decoder.heads,
            kv_heads=decoder.kv_heads,
            head_dim=decoder.head_dim,
            last=describe.norm(decoder.last),
            project=describe.matrix(decoder.project),
            head=describe.matrix(decoder.head),
            softcap=decoder.softcap,
            kind=c.KINDS[self.dtype],
        )
        self._caches: weakref.WeakKeyDictionary[Any, KeyValues] = weakref.WeakKeyDictionary()
        self._scratch = torch.empty(0)

    @property
    def stages(self) -> int:
        """Stages of a step: the token's embedding, attention and feed-forward network of each layer, the head."""
        return 2 * len(self._layers) + 2

    def load(self, ffns: Sequence[c.FFN]) -> None:
        """Take other descriptions of the feed-forward networks."""
        for layer, ffn in zip(self._layers, ffns, strict=True):
            layer.ffn = ffn

    def problem(self, cache: Any) -> str | None:
        """Why a step on a cache cannot run; None if it can."""
        return KeyValues.problem(cache, self.dtype, len(self._layers))

    @torch.no_grad()
    def __call__(self, token: Tensor, position: Tensor, cache: Any) -> Tensor:
        """Logits [1, 1, V] after one more token; the cache grows by it.

        Parameters
        ----------
        token, position : Tensor
            int64 [1, 1] each.
        cache : object
            A cache that `problem` has nothing against.
        """
        decoder = self.decoder
        hidden = decoder.embed(token, position).to(self.dtype).contiguous()
        rotary = None if decoder.rotary is None else decoder.rotary(hidden, position)
        held = self._caches.get(cache)
        if held is None:
            held = self._caches[cache] = KeyValues(len(self._layers))
        held.reserve(cache, self._layers, self._windows)
        logits = torch.empty(1, 1, self._model.head.rows, dtype=self.dtype)
        self._run(hidden, rotary, logits)
        held.advance(cache)
        return logits

    def _run(self, hidden: Tensor, rotary: tuple[Tensor, Tensor] | None, logits: Tensor) -> None:
        library, threads, model = c.library(), torch.get_num_threads(), ctypes.byref(self._model)
        cosine = sine = None
        if rotary is not None:
            cosine, sine = (part.float().contiguous() for part in rotary)
            self._model.rotary_dim = cosine.shape[-1]
        floats = library.tda_step_floats(model, threads)
        if len(self._scratch) < floats:
            with torch.inference_mode(False):
                self._scratch = torch.empty(floats + floats // 8)
        library.tda_step(
            model,
            0,
            self.stages,
            hidden.data_ptr(),
            None if cosine is None else cosine.data_ptr(),
            None if sine is None else sine.data_ptr(),
            logits.data_ptr(),
            self._scratch.data_ptr(),
            threads,
        )


def _modules(decoder: Decoder) -> Iterator[Any]:
    """Every module of a decoder that the kernels read parameters of, save its feed-forward networks."""
    yield from (decoder.last, decoder.project, decoder.head)
    for layer in decoder.layers:
        yield from (getattr(layer, name) for name in (*NORMS, *LINEARS))


def _layer(layer: DecoderLayer) -> c.Layer:
    norms = {name: describe.norm(getattr(layer, name)) for name in NORMS}
    linears = {name: describe.matrix(getattr(layer, name)) for name in LINEARS}
    return c.Layer(**norms, **linears, scale=layer.scale, softcap=layer.softcap)
