"""What a repository shows on its dashboard: ``reports/dashboard.toml``."""

from pathlib import Path

from pydantic import Field, field_validator

from tda.cases import Frozen
from tda.nightly.config import read_settings
from tda.web.dashboard.pages import PAGES

SETTINGS = Path("reports/dashboard.toml")


class DashboardConfig(Frozen):
    """The title of every page, and the pages of the navigation in their order; without names all."""

    title: str = "tda"
    pages: tuple[str, ...] = Field(default_factory=lambda: tuple(entry.name for entry in PAGES.entries()), min_length=1)

    @field_validator("pages")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError(f"a page is named twice: {', '.join(names)}")
        return tuple(entry.name for entry in PAGES.entries(names))


def load_dashboard(root: Path) -> DashboardConfig:
    """Read the settings of a checkout; no file shows all pages.

    Raises as `read_settings`, also if a page is not known.
    """
    path = root / SETTINGS
    return read_settings(path, DashboardConfig) if path.is_file() else DashboardConfig()
