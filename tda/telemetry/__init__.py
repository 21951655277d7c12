"""What the machine does while work runs: sampled by a thread beside it, or read before and after it."""

from tda.telemetry.conditions import ConditionChange as ConditionChange
from tda.telemetry.conditions import ConditionMonitor as ConditionMonitor
from tda.telemetry.flags import flags_of as flags_of
from tda.telemetry.sampler import Sampler as Sampler
from tda.telemetry.sampler import Series as Series
from tda.telemetry.sampler import Telemetry as Telemetry
