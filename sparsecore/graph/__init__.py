"""What happens between layers: observing one run of a model, folding BatchNorm."""

from sparsecore.graph.copy import copy_model
from sparsecore.graph.fold import fold_batchnorm
from sparsecore.graph.observe import Call, Observation, observe

__all__ = ["Call", "Observation", "copy_model", "fold_batchnorm", "observe"]
