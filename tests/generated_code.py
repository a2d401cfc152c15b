"""Whether this machine runs generated code."""

from __future__ import annotations

import torch

from sparsecore import CsrWeight
from sparsecore.formats import JitProgram

HAS_GENERATOR = JitProgram(CsrWeight.from_dense(torch.eye(2))).number != 0
