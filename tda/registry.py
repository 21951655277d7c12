"""Registries: a kind of thing is a package, and one thing is one file in it."""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """Things by name, found by importing every module of a package on first use.

    Parameters
    ----------
    kind : str
        What one entry is called in error messages, e.g. ``"method"``.
    package : str
        Dotted name of the package whose modules register entries.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, T] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files an entry under `name`.

        Raises
        ------
        ValueError
            If the name is taken.
        """

        def file(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return file

    def _discover(self) -> dict[str, T]:
        if not self._discovered:
            home = importlib.import_module(self.package)
            for module in sorted(pkgutil.iter_modules(home.__path__), key=lambda found: found.name):
                importlib.import_module(f"{self.package}.{module.name}")
            self._discovered = True
        return self._entries

    def __getitem__(self, name: str) -> T:
        entries = self._discover()
        if name not in entries:
            raise ValueError(f"unknown {self.kind} {name!r}; known: {', '.join(sorted(entries))}")
        return entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._discover())

    def __len__(self) -> int:
        return len(self._discover())

    def __contains__(self, name: object) -> bool:
        return name in self._discover()
