"""Where the user's code was when an error came out of it."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from torch import nn

from sparsecore.cost import count_multiply_adds
from sparsecore.user_code import UserCodeError, code_of, described, is_ours, user_place


class Misfit(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.mm(x, x)


def raised(work: Callable[..., object], *arguments: object) -> Exception:
    try:
        work(*arguments)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_the_line_is_that_which_called_a_library() -> None:
    """torch's own frames, and those of the standard library, are left out."""
    line = Misfit.forward.__code__.co_firstlineno + 1
    assert user_place(raised(Misfit(), torch.ones(2, 3))) == f"test_user_code.py:{line} in forward"
    assert user_place(raised(json.loads, "{")).endswith("in raised")


def test_what_sparsecore_raises_has_no_place_of_the_users() -> None:
    error = raised(count_multiply_adds, "no model", None)
    assert is_ours(error)
    assert user_place(error) == ""
    assert described(error) == f"{type(error).__name__}: {error}"


def test_an_error_is_told_in_one_line_with_its_key_and_its_cause() -> None:
    def fail() -> None:
        with code_of("outer"), code_of("inner"):
            raise RuntimeError("a\nb")

    error = raised(fail)
    assert isinstance(error, UserCodeError)
    assert str(error) == f"RuntimeError: a b (test_user_code.py:{fail.__code__.co_firstlineno + 2} in fail)"
    assert error.key == "inner"
    assert isinstance(error.__cause__, RuntimeError)
    assert not is_ours(error.__cause__)
