"""The folder of the cache."""

import os
from pathlib import Path


def cache_home() -> Path:
    """Return the folder of converted models, traced backbones, bundles from the hub and TensorRT engines."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ptexport"
