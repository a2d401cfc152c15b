"""Shared by all tests; its being here puts this folder, with oracle.py, on the import path."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
