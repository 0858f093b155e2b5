"""Where the cache is."""

import os
from pathlib import Path


def cache_home() -> Path:
    """Where converted models and traced backbones are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ptexport"
