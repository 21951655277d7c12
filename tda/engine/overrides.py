"""Replace forwards and methods of single objects, and put everything back."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from tda.interrupts import held_back

_ABSENT = object()


class Overrides:
    """Instance attributes set for a while; `undo` restores what was there before, in reverse order."""

    def __init__(self) -> None:
        self._undo = ExitStack()

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set an instance attribute until `undo`."""
        before = vars(owner).get(name, _ABSENT)

        def restore() -> None:
            if before is _ABSENT:
                vars(owner).pop(name, None)
            else:
                vars(owner)[name] = before

        self._undo.callback(restore)
        vars(owner)[name] = value

    def later(self, undo: Callable[[], None]) -> None:
        """Have something else undone too, e.g. a hook removed."""
        self._undo.callback(undo)

    def undo(self) -> None:
        """Put everything back; if one step of it fails or is interrupted, the others are still taken."""
        try:
            with held_back():
                self._undo.close()
        finally:
            self._undo.close()  # nothing is left, unless an interrupt came before it could be held back
