"""A report with made-up times."""

from __future__ import annotations

from typing import Any

import pytest
from made_up import cell

from sparsecore.bench.kernels.layers import LAYERS
from sparsecore.bench.kernels.run import SCHEMA


@pytest.fixture
def report() -> dict[str, Any]:
    """Two layers at two sparsities; one loses to int8, and a library failed."""
    cells = [
        cell(90, 0.7),
        cell(125, 0.7, layer=LAYERS[-1]),
        cell(25, 0.9),
        cell(40, 0.9, layer=LAYERS[-1], failures=["openvino: killed by SIGKILL during load"]),
    ]
    return {
        "schema": SCHEMA,
        "machine": {"cpu": "Some CPU", "isa": "avx2", "threads": 2, "torch": "2.13.0", "commit": None, "date": "today"},
        "versions": {"torch": {"torch": "2.13.0"}, "openvino": None},
        "mask": "magnitude",
        "rounds": 7,
        "complete": True,
        "cells": cells,
    }
