"""What of a model a method, a kernel and the engine see: its feed-forward networks, and its decoder around them."""

from tda.view.decoder import Decoder, DecoderLayer, Family
from tda.view.linear import Linear, Site
from tda.view.places import FFN, Experts, Handle, LinearInput, Place, Projection, See, Source, by_row
from tda.view.statistic import SquaresSum, Statistic

__all__ = [
    "FFN",
    "Decoder",
    "DecoderLayer",
    "Experts",
    "Family",
    "Handle",
    "Linear",
    "LinearInput",
    "Place",
    "Projection",
    "See",
    "Site",
    "Source",
    "SquaresSum",
    "Statistic",
    "by_row",
]
