"""Models to measure on, as plain modules.

``zoo`` has the networks of the papers by name, built from ``blocks``; ``initialise`` gives them random weights that
keep activations in range. ``load`` finds a model by name, from the zoo or from elsewhere. ``digits`` is a small net
with real data.
"""

from sparsecore.bench.models.digits import Digits, digits_data, digits_net
from sparsecore.bench.models.initialise import initialise, settle_batchnorm
from sparsecore.bench.models.load import ModelSource, find_model, load_model
from sparsecore.bench.models.zoo import ZOO, create

__all__ = [
    "ZOO",
    "Digits",
    "ModelSource",
    "create",
    "digits_data",
    "digits_net",
    "find_model",
    "initialise",
    "load_model",
    "settle_batchnorm",
]
