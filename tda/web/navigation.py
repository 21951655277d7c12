"""What readers go to, sections of the report and pages of the dashboard: one file, or one plug-in, adds one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tda.registry import Registry

Render = TypeVar("Render", bound=Callable[..., Any])


@dataclass(frozen=True)
class NavigationEntry(Generic[Render]):
    """A section or page.

    Attributes
    ----------
    name : str
        What links and files call it.
    order : int
        Its place among the others.
    title : str
        What readers call it.
    question : str
        What it answers: the tooltip of its link; may be empty.
    render : callable
        Its content.
    """

    name: str
    order: int
    title: str
    question: str
    render: Render


class Navigation(Registry[NavigationEntry[Render]]):
    """Sections or pages by name, those of plug-ins too."""

    def __init__(self, kind: str, package: str, group: str) -> None:
        super().__init__(kind, package, group, fits=lambda entry: isinstance(entry, NavigationEntry))

    def add(self, name: str, order: int, title: str, question: str = "") -> Callable[[Render], Render]:
        """Return a decorator that files a function as the content of an entry."""

        def file(render: Render) -> Render:
            self.register(name)(NavigationEntry(name, order, title, question, render))
            return render

        return file

    def entries(self, names: Sequence[str] = ()) -> list[NavigationEntry[Render]]:
        """Those with the names, in their order; without names all, in the order of their numbers."""
        return [self[name] for name in names] or sorted(self.values(), key=lambda entry: entry.order)
