"""What is found in a model: its sizes, the methods that are defined for it, and what runs them here."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from tda.bench.traffic import decode_traffic
from tda.contracts import EXECUTIONS, Method
from tda.engine.backends import backend_of
from tda.engine.backends.base import Backend
from tda.engine.selfcheck import check_family
from tda.families import check_model, family_of, find_ffns
from tda.kernels.activations import UndescribedError, activation_name
from tda.methods import METHODS
from tda.names import Execution
from tda.view import FFN


@dataclass(frozen=True)
class Offer:
    """What a method can do with a model.

    Attributes
    ----------
    method : str
        Its name.
    problem : str or None
        Why it is not defined for the model; None if it is.
    auto : str or None
        The execution that "auto" takes; None where there is only the model's own code.
    executions : dict of str to str
        What runs each of its executions, or why it is refused.
    """

    method: str
    problem: str | None
    auto: Execution | None
    executions: dict[Execution, str]


@dataclass(frozen=True)
class Inspection:
    """What was found in a model.

    Attributes
    ----------
    model_type, family : str
        Type of the model, and the family that declares it.
    layers, hidden_size : int
        Number of layers, and of a hidden state.
    neurons : tuple of int
        Neurons of each layer.
    ffn : {"gated", "plain"}
        Kind of its feed-forward network.
    activation : str
        What the kernels call it, else the class of its module.
    dtype, device : str
        Type and place of the weights.
    parameters : int
        Parameters, tied ones counted once.
    weight_bytes_per_token : int
        Weight bytes that a dense decode step must read.
    ffn_share : float
        Part of them that is feed-forward networks: what can be left out.
    kernels : str
        Kernels that run decode here, and why not ours, or not a whole step in one call.
    offers : tuple of Offer
        What each method can do.
    """

    model_type: str
    family: str
    layers: int
    hidden_size: int
    neurons: tuple[int, ...]
    ffn: str
    activation: str
    dtype: str
    device: str
    parameters: int
    weight_bytes_per_token: int
    ffn_share: float
    kernels: str
    offers: tuple[Offer, ...]


def inspect(model: nn.Module) -> Inspection:
    """Look at a model, and try that its feed-forward networks and its decode step are what its family says.

    Raises
    ------
    TypeError, ValueError
        If no method can be attached to it.
    """
    own: Any = model
    ffns = find_ffns(model)
    check_model(model, ffns)
    check_family(model, ffns)
    backend = backend_of(model, ffns)
    in_ffns = sum(ffn.reach(1) * linear.nbytes() for ffn in ffns for linear in ffn.linears)
    read = decode_traffic(model, ffns, METHODS["dense"](), [1.0] * len(ffns), 0, 1).weights
    return Inspection(
        model_type=own.config.model_type,
        family=family_of(model).name,
        layers=ffns[-1].layer + 1,
        hidden_size=ffns[0].D,
        neurons=tuple(ffn.F for ffn in ffns),
        ffn="plain" if ffns[0].gate is None else "gated",
        activation=_activation(ffns[0]),
        dtype=str(ffns[0].up.weight.dtype).removeprefix("torch."),
        device=str(ffns[0].up.weight.device),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weight_bytes_per_token=int(read),
        ffn_share=in_ffns / read,
        kernels=str(backend.best),
        offers=tuple(_offer(kind(), ffns[0], backend) for kind in METHODS.values()),
    )


def _activation(ffn: FFN) -> str:
    try:
        return activation_name(ffn.act)
    except UndescribedError:
        return type(ffn.act).__name__


def _offer(method: Method, ffn: FFN, backend: Backend) -> Offer:
    try:
        method.check(ffn)
    except ValueError as error:
        return Offer(method.name, str(error), None, {})
    if method.kind == "dense" and method.quantization is None:
        return Offer(method.name, None, None, {})
    runs = {name: backend.runs(method, name) for name in EXECUTIONS if name in method.executions}
    return Offer(method.name, None, backend.auto(method), runs)
