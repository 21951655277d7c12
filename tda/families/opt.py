"""OPT: plain FFN with biases, called by the layer itself; 350M has post-norm and projection layers around it."""

from tda.contracts import Family
from tda.families import FAMILIES

FAMILIES.register("opt")(
    Family(
        name="opt",
        model_types=("opt",),
        layers="model.decoder.layers",
        up="fc1",
        down="fc2",
        act="activation_fn",
    )
)
