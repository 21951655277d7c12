"""Measure what dynamic activation saves, and what it costs, in any Hugging Face decoder.

The public names are resolved on first use, so that ``import tda`` is instant and loads neither torch nor
transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tda._version import __version__ as __version__

if TYPE_CHECKING:
    from tda import kernels as kernels
    from tda.bench.profile import run_profile as run_profile
    from tda.bench.run import run_bench as run_bench
    from tda.calibration import calibrate as calibrate
    from tda.engine.attach import attach as attach
    from tda.engine.run import Run as Run
    from tda.engine.score import Scores as Scores
    from tda.engine.score import score as score
    from tda.methods import CATS as CATS
    from tda.methods import GLASS as GLASS
    from tda.methods import TDA as TDA
    from tda.methods import TEAL as TEAL
    from tda.methods import TT as TT
    from tda.methods import Dense as Dense
    from tda.methods import Griffin as Griffin
    from tda.methods import Int8 as Int8
    from tda.methods import Magnitude as Magnitude
    from tda.methods import Oracle as Oracle
    from tda.methods import Random as Random
    from tda.methods import StaticMean as StaticMean
    from tda.methods import load_method as load_method
    from tda.models import load_model as load_model
    from tda.thresholds import Thresholds as Thresholds

_HOME = {
    **dict.fromkeys(
        (
            "CATS",
            "TEAL",
            "GLASS",
            "TDA",
            "TT",
            "Dense",
            "Griffin",
            "Int8",
            "Magnitude",
            "Oracle",
            "Random",
            "StaticMean",
            "load_method",
        ),
        "tda.methods",
    ),
    "Run": "tda.engine",
    "Scores": "tda.engine.score",
    "Thresholds": "tda.thresholds",
    "attach": "tda.engine",
    "calibrate": "tda.calibration",
    "load_model": "tda.models",
    "run_bench": "tda.bench.run",
    "run_profile": "tda.bench.profile",
    "score": "tda.engine.score",
}
__all__ = ["kernels", *_HOME]


def __getattr__(name: str) -> Any:
    if name == "kernels":
        return importlib.import_module("tda.kernels")
    if name not in _HOME:
        raise AttributeError(f"module 'tda' has no attribute {name!r}; it offers {', '.join(sorted(__all__))}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
