"""What happens between layers: observing one run of a model, folding BatchNorm."""

from sparsecore.graph.fold import fold_batchnorm
from sparsecore.graph.observe import Call, Observation, observe

__all__ = ["Call", "Observation", "fold_batchnorm", "observe"]
