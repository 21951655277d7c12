"""Templates of all pages: what they are given is escaped, and a name that is missing is an error."""

from collections.abc import Callable

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def environment(package: str, **filters: Callable[..., str]) -> Environment:
    """Templates of a package of pages, then those that all pages share; `filters` by name."""
    made = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("tda.web.theme")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= filters
    return made
