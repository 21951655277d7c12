"""What the suite measures, and how a number is taken.

Methods come from the registry: a new one is measured without an edit here. Whatever lies behind tda's public names is
looked up by `part`, so that a commit without it skips the benchmarks that need it, and says so.
"""

import copy
import functools
import importlib
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import tda
from tda.cases import Case
from tda.methods import METHODS, method

MODEL, DTYPE = "shape:25m", "bfloat16"
PROMPT_TOKENS, NEW_TOKENS = 64, 32
CALIBRATION_DOCUMENTS = 4
SPARSITIES = (0.25, 0.5, 0.75)
LIKE_GRIFFIN = ("random", "magnitude", "static_mean", "glass")
"""Controls, which cost what Griffin costs."""


def part(module: str, name: str) -> Any:
    """A name from behind the façade; the benchmark is skipped where the measured commit lacks it."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        pytest.skip(f"this commit has no {module}.{name}")


def methods(scope: str | None = None) -> list[Any]:
    """Every method that skips the neurons it leaves out, at each sparsity; without a scope, dense too."""
    names = [name for name, kind in METHODS.items() if kind.fast and name not in (*LIKE_GRIFFIN, "dense", "int8")]
    built = [method(name, sparsity) for name in names for sparsity in SPARSITIES]
    return [one for one in built if one.scope == scope] if scope else [tda.Dense(), *built]


def each(cells: Iterable[Any]) -> pytest.MarkDecorator:
    """Run a benchmark for each method, or each pair of a method and an execution."""
    cells = list(cells)
    names = "method" if not isinstance(cells[0], tuple) else "method, execution"
    return pytest.mark.parametrize(names, cells, ids=_name)


def _name(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "dense" if value.name == "dense" else f"{value.name}-{value.sparsity}"


@dataclass
class MicroModel:
    """The measured model with one prompt, and what layer 0 saw of it.

    Attributes
    ----------
    model : nn.Module
        As `tda.load_model` gives it.
    prompt : Tensor
        int64 [1, T]
    """

    model: Any
    prompt: Tensor
    _fitted: dict[Any, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.prompt.device

    @functools.cached_property
    def ffns(self) -> list[Any]:
        """Its FFNs, as their family declares them."""
        return cast(list[Any], part("tda.families", "find_ffns")(self.model))

    @functools.cached_property
    def z(self) -> Tensor:
        """Layer 0's neuron activation over the prompt: [1, T, F]."""
        return self._seen[1]

    @functools.cached_property
    def x(self) -> Tensor:
        """Layer 0's FFN input of the prompt's last token: [1, 1, D]."""
        return self._seen[0][:, -1:]

    @functools.cached_property
    def exact_logits(self) -> Tensor:
        """What the prompt's last token gives in float32, without the engine: [1, 1, V]."""
        exact = copy.deepcopy(self.model).float()(self.prompt, use_cache=False)
        return cast(Tensor, exact.logits[:, -1:])

    @functools.cached_property
    def _seen(self) -> tuple[Tensor, Tensor]:
        ffn, seen = self.ffns[0], []
        hooks = [
            module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
            for module in (ffn.up.module, ffn.down.module)
        ]
        self.model(self.prompt)
        for hook in hooks:
            hook.remove()
        return seen[0], seen[1]

    def text(self, rows: int) -> Tensor:
        """Random tokens, the same each time: int64 [rows, T]."""
        generator = torch.Generator().manual_seed(rows)
        vocabulary = self.model.config.vocab_size
        return torch.randint(1, vocabulary, (rows, PROMPT_TOKENS), generator=generator).to(self.device)

    def fitted(self, chosen: Any) -> Any:
        """A method, fitted once where it needs that.

        Every layer leaves out the same share: random weights make an error level meaningless.
        """
        if not chosen.needs_fit:
            return chosen
        if chosen not in self._fitted:
            batches = [{"input_ids": self.text(CALIBRATION_DOCUMENTS)}]
            shares = [chosen.sparsity] * len(self.ffns)
            made = tda.calibrate(self.model, chosen, batches, layer_sparsity=shares, progress=False)
            self._fitted[chosen] = chosen.with_thresholds(made)
        return self._fitted[chosen]

    def attach(self, chosen: Any, execution: Any = "auto") -> AbstractContextManager[Any]:
        """The model with a method attached."""
        return tda.attach(self.model, self.fitted(chosen), execution=execution)

    def case(self, chosen: Any, execution: str = "auto") -> Case:
        """What a record of this would be filed under."""
        return Case(
            model=MODEL,
            method=chosen.name,
            options=chosen.options,
            sparsity=chosen.sparsity,
            execution=execution,
            device=self.device.type,
            dtype=DTYPE,
            prompt_tokens=PROMPT_TOKENS,
            new_tokens=NEW_TOKENS,
        )


@dataclass
class Clock:
    """Times a verb in rounds of pytest-benchmark, each of which ends when the device is done.

    A pilot, which has `pieces`, times the second of two calls instead: the real run has a first call and the rounds.
    """

    benchmark: Any
    device: torch.device
    pieces: list[tuple[float, int]] | None = None

    def __call__(self, verb: Callable[[], Any], *, rounds: int) -> Any:
        """Result of the last round."""

        def timed() -> Any:
            result = verb()
            self._wait()
            return result

        self._wait()
        if self.pieces is None:
            return self.benchmark.pedantic(timed, rounds=rounds, warmup_rounds=1)
        timed()
        begin = time.perf_counter()
        result = self.benchmark.pedantic(timed)
        self.pieces.append((time.perf_counter() - begin, rounds))
        return result

    def note(self, metric: str, case: Case | None = None, *, bytes_moved: float | None = None, **facts: Any) -> None:
        """Say what was timed: its metric and case, what really ran, and bytes a round, which give GB/s."""
        found = facts | {"metric": metric, "case": None if case is None else case.model_dump(mode="json")}
        if bytes_moved is not None:
            found["bytes_moved"] = round(bytes_moved)
            if self.benchmark.stats is not None:  # there are none under --benchmark-disable
                found["gb_per_s"] = bytes_moved / self.benchmark.stats.stats.median / 1e9
        self.benchmark.extra_info.update(found)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def reference(ffn: Any, x: Tensor, kept: Tensor) -> Tensor:
    """FFN output over kept neurons, in float64 and without the engine: [1, 1, D]."""
    gate, up, down = (linear.weight.double() for linear in ffn.linears)
    z = ffn.act(x.double() @ gate.T) * (x.double() @ up.T)
    return cast(Tensor, (z * kept) @ down.T)


def check_close(found: Tensor, expected: Tensor) -> None:
    """Equal within 3% of the largest value: bfloat16 loses up to 1%; a layer without 1% of its neurons is 6% off."""
    assert found.shape == expected.shape
    error = (found.double() - expected).abs().max() / expected.abs().max()
    assert error < 3e-2, f"{float(error):.1%} off"


def ffn_bytes(ffn: Any, reads: Iterable[bool], share: float) -> float:
    """Weight bytes of a layer, of which the named projections are read for a share of the neurons only."""
    pairs = zip(ffn.linears, reads, strict=True)
    return sum(float(linear.weight.nbytes) * (share if sparse else 1.0) for linear, sparse in pairs)
