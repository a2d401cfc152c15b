"""Environment variables: the whole list, and the ones Python reads."""

from __future__ import annotations

import os
import sys
from pathlib import Path

#: Every variable sparsecore obeys, and what it does.
VARIABLES: dict[str, str] = {
    "SPARSECORE_ISA": "instruction set that kernels use, e.g. scalar (read by the native library)",
    "SPARSECORE_SANITIZE": "1 builds with AddressSanitizer and UBSan (read by setup.py)",
    "SPARSECORE_CACHE_DIR": "folder for measured kernel choices (default: the user's cache folder)",
}


def cache_dir() -> Path:
    """Return the folder for measured choices; it may not exist yet.

    Example:
        >>> cache_dir().is_absolute()
        True
    """
    chosen = os.environ.get("SPARSECORE_CACHE_DIR")
    return Path(chosen).expanduser().absolute() if chosen else _platform_cache_dir() / "sparsecore"


def _platform_cache_dir() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    variable, fallback = (
        ("LOCALAPPDATA", Path.home() / "AppData" / "Local")
        if sys.platform == "win32"
        else ("XDG_CACHE_HOME", Path.home() / ".cache")
    )
    base = Path(os.environ.get(variable, ""))
    return base if base.is_absolute() else fallback  # XDG: relative paths are to be ignored
