"""A trained model that teaches: it runs, and nothing of it changes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sparsecore.calibration import call_model, evaluation_mode, every_layer_called
from sparsecore.train.features import Features, LayerOutputs
from sparsecore.train.terms import logits_of


class Teacher:
    """A model that is held still: without gradients, in evaluation mode whenever it runs.

    Its parameters, running statistics and training flags are what they were after every call. It is no module, so a
    student that holds it does not train, move or save it.

    Args:
        model: Any module.
        layers: Names of layers whose outputs are wanted too, as ``model.named_modules()`` has them.

    Attributes:
        model: The module.
        features: Outputs of these layers in the latest call, by name.

    Raises:
        ValueError: The model has no layer of that name.

    Example:
        >>> teacher = Teacher(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)), layers=["0"])
        >>> logits = teacher(torch.ones(2, 4))
        >>> logits.requires_grad, teacher.features["0"].shape
        (False, torch.Size([2, 8]))
    """

    def __init__(self, model: nn.Module, layers: Iterable[str] = ()) -> None:
        self.model = model
        self.features: Features = {}
        self._outputs = LayerOutputs("teacher", model, layers)

    @torch.no_grad()
    def __call__(self, inputs: Any) -> Tensor:
        """Return the logits.

        Args:
            inputs: A tensor, a tuple or list of positional or a dict of keyword arguments.

        Raises:
            ValueError: The model gives no logits.
        """
        with evaluation_mode(self.model), every_layer_called():
            logits = logits_of("teacher", call_model(self.model, inputs))
        self.features = self._outputs.take()
        return logits

    def remove(self) -> None:
        """Take the hooks off the model."""
        self._outputs.remove()
