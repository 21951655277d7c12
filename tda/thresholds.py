"""The artifact of calibration: cuts per layer (and prompt length), with what they were made from."""

import bisect
import hashlib
import json
import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, ValidationError

from tda.cases import Frozen, first_problem
from tda.results import write_whole

WINDOW = 64
"""Tokens per hashed window: a passage shared over 2·64 - 1 tokens is always found."""
SHORTEST_WINDOW = 8
"""A document shorter than `WINDOW` is a window of its own, down to this; shorter ones would match by chance."""

THRESHOLDS_FILE = "thresholds.json"
"""In the folder of a saved method."""


class ModelIdentity(Frozen):
    """Which model a set of thresholds belongs to."""

    id: str
    config_hash: str
    layers: int
    intermediate_size: int
    weights: str | None = Field(default=None, description="digest of weights and configuration, where it was taken")


class TextHashes(Frozen):
    """Hashes of the calibration text: one per document, and one per window of tokens, with the windows' sizes."""

    sizes: tuple[int, ...]
    documents: tuple[str, ...]
    windows: tuple[str, ...]


class Thresholds(Frozen):
    """Thresholds of one method for one model: JSON on disk.

    Attributes
    ----------
    method : dict
        Name and the options that the thresholds depend on, sparsity or CETT among them.
    lengths : tuple of int
        Prompt lengths (tokens) that have cuts of their own; empty for per-token methods.
    cuts : tuple of tuple of float
        [L][lengths], or [L][1] for per-token methods; empty where `scores` stands instead.
    scores : tuple of tuple of float
        [L][F]: means over calibration text, for a static method or as a ranking beside the prompt's.
    prior : tuple of tuple of float
        [L][F]: mean squares over calibration text, where `prior_tokens` are asked for.
    targets : tuple of float
        Share that each layer was to leave out.
    achieved_sparsity, cett : tuple of float
        What calibration text gave with these cuts, per layer, at the longest length.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    format: Literal[1] = 1
    method: dict[str, Any]
    model: ModelIdentity
    dtype: str
    lengths: tuple[int, ...] = ()
    cuts: tuple[tuple[float, ...], ...] = ()
    scores: tuple[tuple[float, ...], ...] = ()
    prior: tuple[tuple[float, ...], ...] = ()
    targets: tuple[float, ...] = ()
    achieved_sparsity: tuple[float, ...] = ()
    cett: tuple[float, ...] = ()
    text: TextHashes
    versions: dict[str, str] = Field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write the artifact as JSON, atomically."""
        write_whole(Path(path), self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Thresholds":
        """Read an artifact: its file, or the folder of a method that was saved with it.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is a folder, no artifact of this format, or holds a number that is not finite.
        """
        place = Path(path)
        saved = place / THRESHOLDS_FILE
        try:
            return cls.model_validate_json((saved if saved.is_file() else place).read_bytes())
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no {path}; `tda calibrate --out FILE` writes thresholds") from None
        except ValidationError as error:
            raise ValueError(f"{path} is no thresholds artifact: {first_problem(error)}") from None
        except IsADirectoryError:
            raise ValueError(f"{path} is a folder; thresholds are a file, as `tda calibrate` writes it") from None

    def foreign(self, name: str, weights: str | None) -> str | None:
        """A sentence where they were made on other weights than those of a model, told by digest; None where not."""
        if self.model.weights in (None, weights):
            return None
        return f"the given thresholds were made on other weights than those of {name}, or on another type of them"

    def cut(self, layer: int, tokens: float | None = None) -> float:
        """Threshold of a layer, interpolated over log2 of the prompt length where it depends on that.

        Parameters
        ----------
        layer : int
            Layer number.
        tokens : float, optional
            Prompt length; a length outside the calibrated ones takes the nearest, with a warning.
        """
        cuts = self.cuts[layer]
        if not self.lengths or tokens is None:
            return cuts[-1]
        if not self.lengths[0] <= tokens <= self.lengths[-1]:
            warnings.warn(
                f"prompt of {tokens:g} tokens: thresholds were calibrated for {self.lengths[0]} to "
                f"{self.lengths[-1]}; the achieved sparsity will differ from the asked one",
                stacklevel=2,
            )
        if len(self.lengths) == 1:
            return cuts[0]
        right = min(max(bisect.bisect_left(self.lengths, tokens), 1), len(self.lengths) - 1)
        low, high = math.log2(self.lengths[right - 1]), math.log2(self.lengths[right])
        share = min(max((math.log2(max(tokens, 1)) - low) / (high - low), 0.0), 1.0)
        return cuts[right - 1] + share * (cuts[right] - cuts[right - 1])

    def check_method(self, calibrated: dict[str, Any]) -> None:
        """Raise ValueError if these thresholds were made for another method or other options."""
        if self.method != calibrated:
            raise ValueError(
                f"these thresholds were calibrated for {_words(self.method)}, not for {_words(calibrated)}; "
                "run tda.calibrate (or `tda calibrate`) for it"
            )

    def check_model(self, model: ModelIdentity) -> None:
        """Raise ValueError if these thresholds were made for a model with another config."""
        if self.model.config_hash != model.config_hash:
            raise ValueError(
                f"these thresholds belong to {self.model.id!r} ({self.model.layers} layers of "
                f"{self.model.intermediate_size} neurons, config {self.model.config_hash}), not to {model.id!r} "
                f"({model.layers} layers of {model.intermediate_size}, config {model.config_hash})"
            )

    def check_text(self, rows: Iterable[NDArray[np.int64]]) -> None:
        """Raise ValueError if evaluation text shares a document or a window of tokens with calibration.

        Parameters
        ----------
        rows : iterable of int64 arrays
            Token ids of each evaluation document, padding left out.
        """
        documents, windows = set(self.text.documents), set(self.text.windows)
        for number, row in enumerate(rows):
            if hash_tokens(row) in documents:
                raise ValueError(f"evaluation document {number} is a calibration document; use other text")
            places = ((start, size) for size in self.text.sizes for start in range(len(row) - size + 1))
            for start, size in places:
                if hash_tokens(row[start : start + size]) in windows:
                    raise ValueError(
                        f"evaluation document {number} shares the {size} tokens from token {start} with the "
                        "calibration text; use other text"
                    )


def hash_tokens(tokens: NDArray[np.int64]) -> str:
    """Hash of a sequence of token ids."""
    return hashlib.blake2b(np.ascontiguousarray(tokens, dtype=np.int64).tobytes(), digest_size=8).hexdigest()


def hash_text(rows: Iterable[NDArray[np.int64]]) -> TextHashes:
    """Hashes of calibration documents, given as token ids without padding."""
    documents: dict[str, None] = {}
    windows: dict[str, None] = {}
    sizes: set[int] = set()
    for row in rows:
        documents[hash_tokens(row)] = None
        size = min(len(row), WINDOW)
        if size < SHORTEST_WINDOW:
            continue
        sizes.add(size)
        for start in range(0, len(row) - size + 1, size):
            windows[hash_tokens(row[start : start + size])] = None
    return TextHashes(sizes=tuple(sorted(sizes)), documents=tuple(documents), windows=tuple(windows))


def hash_config(config: dict[str, Any]) -> str:
    """Hash of a model config, without what differs between equal models."""
    output = {"use_cache", "output_attentions", "output_hidden_states", "return_dict"}
    volatile = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"} | output
    kept = {name: value for name, value in config.items() if name not in volatile}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _words(method: dict[str, Any]) -> str:
    options = ", ".join(f"{name}={value}" for name, value in method.items() if name != "name" and value is not None)
    return f"{method['name']}({options})"
