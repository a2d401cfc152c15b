"""Errors of the user's own code: which function raised, and in which line, in one sentence."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_OWN = str(Path(__file__).resolve().parent)
_LIBRARIES = (
    "<frozen",
    str(Path(torch.__file__).resolve().parent),
    *(str(Path(sysconfig.get_path(name)).resolve()) for name in ("purelib", "platlib", "stdlib")),
)


class UserCodeError(ValueError):
    """The user's code raised.

    Attributes:
        key: The recipe's name for what it is, such as ``"metric"``.
    """

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


@contextmanager
def code_of(key: str) -> Iterator[None]:
    """Raise UserCodeError for whatever is raised within the block."""
    try:
        yield
    except UserCodeError:
        raise
    except Exception as error:
        raise UserCodeError(described(error), key) from error


def described(error: BaseException) -> str:
    """Return what an error says, in one line, and where the user's code was then."""
    place = user_place(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}" + (f" ({place})" if place else "")


def is_ours(error: BaseException) -> bool:
    """Whether sparsecore itself raised an error, and no library that it called."""
    return traceback.extract_tb(error.__traceback__)[-1].filename.startswith(_OWN)


def user_place(error: BaseException) -> str:
    """Return ``file:line in function`` of the user's code that raised or called a library that did; else ``""``."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = str(Path(frame.filename).resolve()) if Path(frame.filename).exists() else frame.filename
        if file.startswith(_OWN):
            return ""
        if not file.startswith(_LIBRARIES):
            return f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"
    return ""
