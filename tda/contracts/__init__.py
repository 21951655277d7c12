"""What methods, kernels and the engine agree on.

Shapes: B rows, T tokens, F neurons (intermediate size), D hidden size, L layers. z is the neuron activation, the
input of the down projection.
"""

from tda.contracts.executors import Executor, Observer, PromptExecutor
from tda.contracts.kinds import (
    ErrorControlled,
    PriorMethod,
    Prompt,
    PromptMethod,
    Rows,
    ThresholdMethod,
    TokenMethod,
    keep_top,
    kept_count,
)
from tda.contracts.method import (
    EXECUTIONS,
    METHOD_FILE,
    Kind,
    Method,
    Scope,
    Window,
)
from tda.contracts.options import check_choice, check_number

__all__ = [
    "EXECUTIONS",
    "METHOD_FILE",
    "ErrorControlled",
    "Executor",
    "Kind",
    "Method",
    "Observer",
    "PriorMethod",
    "Prompt",
    "PromptExecutor",
    "PromptMethod",
    "Rows",
    "Scope",
    "ThresholdMethod",
    "TokenMethod",
    "Window",
    "check_choice",
    "check_number",
    "keep_top",
    "kept_count",
]
