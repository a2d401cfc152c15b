"""Writing files so that a reader sees the old file or the new one, and never half of one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield an empty file beside ``path`` that takes its place when the block is left without an error.

    Args:
        path: The file to write; one that exists is replaced. Its permissions become those of a new file.

    Raises:
        OSError: See :func:`require_place`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with replacing(path) as new:
        ...     _ = new.write_text("a")
        >>> path.read_text()
        'a'
    """
    require_place(path)
    temporary = _beside(path)
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors writes files that only their owner can read
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def require_place(path: Path) -> None:
    """Check that a file can be written, before much work is done for it; a file that exists stays as it is.

    Raises:
        FileNotFoundError: Its folder does not exist.
        IsADirectoryError: It is a folder itself.
        OSError: Nothing can be written there.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}; make it first")
    probe = _beside(path)
    try:
        probe.touch()
    except OSError as error:
        raise type(error)(f"{path}: nothing can be written in {path.parent} ({error.strerror})") from error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")
