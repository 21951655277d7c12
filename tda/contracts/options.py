"""Checks of options, alike for all methods."""

from tda.quantizers import QUANTIZERS


def check_sparsity(sparsity: object) -> float:
    """Return a valid sparsity as float.

    Raises
    ------
    TypeError, ValueError
        If it is no number, or not in 0 <= sparsity < 1.
    """
    number = check_number("sparsity", sparsity)
    if not 0 <= number < 1:
        raise ValueError(f"sparsity is the fraction of neurons left out, 0 <= sparsity < 1; got {sparsity}")
    return float(number)


def check_number(name: str, value: object) -> int | float:
    """Return an option's value; TypeError if it is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return value


def check_quantization(name: object) -> None:
    """Raise ValueError if a name is that of no quantizer of weights; None is none."""
    if name is not None:
        check_choice("quantization", name, tuple(QUANTIZERS))


def check_choice(name: str, value: object, accepted: tuple[str, ...]) -> None:
    """Raise ValueError unless value is one of the accepted ones."""
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(accepted)}; got {value!r}")
