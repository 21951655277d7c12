"""In which order what is compared runs: interleaved, each second round the mirror of the one before.

So what the machine does meanwhile, as far as it is linear in time, falls on all alike.
"""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def mirrored(items: Sequence[T], number: int) -> list[T]:
    """Round `number`, from 1: as given, then in reverse, and so on; neighbours stay neighbours."""
    return list(items) if number % 2 else list(reversed(items))


def balanced(items: Sequence[T], number: int, seed: object) -> list[T]:
    """Round `number`, from 1: an order drawn for two rounds at a time, the second the mirror of the first."""
    drawn = list(items)
    random.Random(f"{seed}/{(number - 1) // 2}").shuffle(drawn)
    return mirrored(drawn, number)
