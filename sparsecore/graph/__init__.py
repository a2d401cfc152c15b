"""What happens between layers: a model as a graph (prepare, program, compiled), or one run of it observed."""

from sparsecore.graph.copy import copy_model
from sparsecore.graph.fold import fold_batchnorm
from sparsecore.graph.observe import Call, Observation, observe

__all__ = ["Call", "Observation", "copy_model", "fold_batchnorm", "observe"]
