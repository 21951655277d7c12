"""The models that a method is attached to."""

import weakref

from torch import nn

ATTACHED: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()
