"""Where this user's files are that can be made again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return ``tda`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``; safe to delete."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (home if home.is_absolute() else Path.home() / ".cache") / "tda"
