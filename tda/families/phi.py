"""Phi (1, 1.5 and 2) and nanochat: plain FFN of fc1 and fc2 in a module of its own."""

from tda.families import FAMILIES
from tda.view import Family

FAMILIES.register("phi")(
    Family(
        name="phi",
        model_types=("phi", "nanochat"),
        layers="model.layers",
        up="mlp.fc1",
        down="mlp.fc2",
        act="mlp.activation_fn",
        block="mlp",
    )
)
