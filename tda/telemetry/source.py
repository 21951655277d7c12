"""Devices as sources of readings: a field has a value, or the reason why it has none."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tda.telemetry.fields import Field


class NotReadableError(Exception):
    """A field that has no value on this machine; the text says why."""


SourceValues = Mapping[str, float | NotReadableError]


class Reader(NamedTuple):
    """Reads some fields together.

    Attributes
    ----------
    names : tuple of str
        The fields.
    read : callable
        Their values; empty where there is nothing to tell yet, as between the first two samples of a rate.
    slow : bool
        Whether it blocks for tens of milliseconds: such a one is left out where a timed block waits.
    """

    names: tuple[str, ...]
    read: Callable[[], SourceValues]
    slow: bool = False


def one(name: str, read: Callable[[], float], *, slow: bool = False) -> Reader:
    """A reader of a single field."""
    return Reader((name,), lambda: {name: read()}, slow)


class TelemetrySource:
    """The fields of one device, each read until it fails and given up then.

    Parameters
    ----------
    device : str
        "cpu", or "gpu" with the number that CUDA counts.
    fields : mapping
        What it may tell.
    readers : sequence of Reader
        Together they know every field, or `missing` has the others.
    gpu : str, optional
        Name of the model of a GPU.

    Attributes
    ----------
    missing : dict
        Why a field has no value, or no more values.
    """

    def __init__(
        self, device: str, fields: Mapping[str, Field], readers: Sequence[Reader], gpu: str | None = None
    ) -> None:
        self.device = device
        self.fields = fields
        self.gpu = gpu
        self.missing: dict[str, str] = {}
        self._readers = readers

    @classmethod
    def absent(cls, device: str, fields: Mapping[str, Field], reason: str) -> "TelemetrySource":
        """A device that tells nothing, and why."""
        source = cls(device, fields, ())
        source.missing = dict.fromkeys(fields, reason)
        return source

    def read(self, *, slow: bool = False) -> Iterator[tuple[str, float]]:
        """Names and values as they come: of the quick readers, or of the slow ones."""
        for reader in self._readers:
            if reader.slow == slow and any(name not in self.missing for name in reader.names):
                yield from self._values(reader)

    def _values(self, reader: Reader) -> list[tuple[str, float]]:
        try:
            values = reader.read()
        except NotReadableError as error:
            self.missing |= dict.fromkeys(reader.names, str(error))
            return []
        except Exception as error:  # systems and drivers fail in ways of their own, and no measurement may end by it
            self.missing |= dict.fromkeys(reader.names, f"{type(error).__name__}: {error}")
            return []
        self.missing |= {name: str(value) for name, value in values.items() if isinstance(value, NotReadableError)}
        return [(name, value) for name, value in values.items() if not isinstance(value, NotReadableError)]
