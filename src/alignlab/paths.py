"""Where AlignLab keeps what is derived from data and can be made again: one cache folder. Knows nothing about runs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder of derived files: `$ALIGNLAB_CACHE`, else `$XDG_CACHE_HOME/alignlab`, else `~/.cache/alignlab`."""
    if own := os.environ.get("ALIGNLAB_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "alignlab"
