"""Registries: a kind of thing is a package, and one thing is one file in it, or a plug-in from another distribution.

A plug-in is an installed distribution with an entry point in the group of a registry, which names a module::

    [project.entry-points."tda.methods"]
    sine = "tda_sine"

That module registers entries as a built-in one does, with the public names of `tda`::

    @tda.METHODS.register("sine")
    @dataclass(frozen=True, kw_only=True)
    class Sine(tda.PromptMethod): ...

Groups are ``tda.methods``, ``tda.metrics``, ``tda.families``, ``tda.quantizers``, ``tda.sections`` (of the report) and
``tda.pages`` (of the dashboard). Whatever is installed there is imported, in worker processes too.
"""

import importlib
import pkgutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, distributions, entry_points
from typing import TypeVar

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """Things by name, found on first use by importing every module of a package, and then every plug-in.

    A plug-in that cannot be imported, takes a name that is in use, or registers something else than an entry is left
    out with a warning.

    Parameters
    ----------
    kind : str
        What one entry is called in error messages, e.g. ``"method"``.
    package : str
        Dotted name of the package whose modules register entries.
    group : str, optional
        Group of the plug-ins' entry points; the name of the package unless given.
    fits : callable, optional
        Whether something can be an entry; anything can unless given.
    """

    def __init__(
        self, kind: str, package: str, group: str | None = None, fits: Callable[[object], bool] = lambda entry: True
    ) -> None:
        self.kind = kind
        self.package = package
        self.group = group or package
        self.fits = fits
        self._entries: dict[str, T] = {}
        self._plug_ins: list[EntryPoint] = []
        self._discovered = False

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files an entry under `name`.

        Raises
        ------
        ValueError
            If the name is taken.
        TypeError
            If the entry is none: of another type, or a class that lacks a method.
        """

        def file(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            if not self.fits(entry):
                raise TypeError(f"{entry!r} is no {self.kind}")
            self._entries[name] = entry
            return entry

        return file

    def plug_in(self, entry: object) -> str | None:
        """The distribution of the plug-in that an entry's module belongs to, as ``"NAME VERSION"``; else None."""
        self._discover()
        root = str(getattr(entry, "__module__", "")).partition(".")[0]
        return next((_distribution(one) for one in self._plug_ins if one.module.partition(".")[0] == root), None)

    def _discover(self) -> dict[str, T]:
        if not self._discovered:
            home = importlib.import_module(self.package)
            for module in sorted(pkgutil.iter_modules(home.__path__), key=lambda found: found.name):
                importlib.import_module(f"{self.package}.{module.name}")
            self._discovered = True  # a plug-in may look up what is built in
            found = sorted(entry_points(group=self.group), key=lambda one: (_distribution(one), one.name))
            self._plug_ins = [plug_in for plug_in in found if self._load(plug_in)]
        return self._entries

    def _load(self, plug_in: EntryPoint) -> bool:
        before = dict(self._entries)
        try:
            plug_in.load()
        except (Exception, SystemExit) as error:
            self._entries = before
            reason = f"{type(error).__name__}: {error}"
            warnings.warn(f"plug-in {_distribution(plug_in)} is skipped: {reason}", stacklevel=5)
            return False
        return True

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


def plug_ins() -> list[str]:
    """Distributions of all plug-ins that are installed here, as ``"NAME VERSION"``."""
    found = (one for one in distributions() if any(point.group.startswith("tda.") for point in one.entry_points))
    return sorted({f"{one.name} {one.version}" for one in found})


def _distribution(plug_in: EntryPoint) -> str:
    return f"{plug_in.dist.name} {plug_in.dist.version}" if plug_in.dist else plug_in.value
