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
    from tda.contracts import Method as Method
    from tda.contracts import PriorMethod as PriorMethod
    from tda.contracts import Prompt as Prompt
    from tda.contracts import PromptMethod as PromptMethod
    from tda.contracts import ThresholdMethod as ThresholdMethod
    from tda.contracts import TokenMethod as TokenMethod
    from tda.contracts import keep_top as keep_top
    from tda.engine.attach import attach as attach
    from tda.engine.run import Run as Run
    from tda.engine.score import Scores as Scores
    from tda.engine.score import score as score
    from tda.families import FAMILIES as FAMILIES
    from tda.methods import CATS as CATS
    from tda.methods import GLASS as GLASS
    from tda.methods import METHODS as METHODS
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
    from tda.metrics import METRICS as METRICS
    from tda.metrics import document_mean as document_mean
    from tda.metrics import metric as metric
    from tda.models import load_model as load_model
    from tda.quantizers import QUANTIZERS as QUANTIZERS
    from tda.quantizers import Quantized as Quantized
    from tda.quantizers import Quantizer as Quantizer
    from tda.records import MeasurementKind as MeasurementKind
    from tda.thresholds import Thresholds as Thresholds
    from tda.view import FFN as FFN
    from tda.view import Family as Family
    from tda.view import Statistic as Statistic
    from tda.web.report.samples import load_results as load_results

_NAMES = {
    "tda.bench.profile": ("run_profile",),
    "tda.bench.run": ("run_bench",),
    "tda.calibration": ("calibrate",),
    "tda.contracts": ("Method", "PriorMethod", "Prompt", "PromptMethod", "ThresholdMethod", "TokenMethod", "keep_top"),
    "tda.engine": ("Run", "attach"),
    "tda.engine.score": ("Scores", "score"),
    "tda.families": ("FAMILIES",),
    "tda.methods": (
        *("METHODS", "CATS", "GLASS", "TDA", "TEAL", "TT", "Dense", "Griffin", "Int8", "Magnitude", "Oracle", "Random"),
        *("StaticMean", "load_method"),
    ),
    "tda.metrics": ("METRICS", "document_mean", "metric"),
    "tda.models": ("load_model",),
    "tda.quantizers": ("QUANTIZERS", "Quantized", "Quantizer"),
    "tda.records": ("MeasurementKind",),
    "tda.web.report.samples": ("load_results",),
    "tda.thresholds": ("Thresholds",),
    "tda.view": ("FFN", "Family", "Statistic"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = ["kernels", *_HOME]


def __getattr__(name: str) -> Any:
    if name == "kernels":
        return importlib.import_module("tda.kernels")
    if name not in _HOME:
        raise AttributeError(f"module 'tda' has no attribute {name!r}; it offers {', '.join(sorted(__all__))}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
