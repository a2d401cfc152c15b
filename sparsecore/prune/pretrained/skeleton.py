"""A model without values: its modules get them from the files when they are needed."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from sparsecore.errors import ModelError, UnsupportedError, require_extra
from sparsecore.prune.pretrained.checkpoint import Checkpoint


@dataclass(frozen=True)
class Skeleton:
    """A causal language model whose parameters are on the meta device, and the files with their values.

    Attributes:
        model: In evaluation mode. Its buffers are real, for many are in no file.
        checkpoint: The files.
    """

    model: Any
    checkpoint: Checkpoint

    @classmethod
    def build(cls, config: Any, checkpoint: Checkpoint, dtype: torch.dtype) -> Skeleton:
        """Build the model that a configuration describes.

        Raises:
            UnsupportedError: It is no causal language model.
        """
        transformers = require_extra("transformers", "zoo")
        hook = register_module_parameter_registration_hook(cast(Any, _to_meta))
        try:
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        except ValueError as error:
            raise UnsupportedError(
                f"expected a causal language model, got {config.model_type} ({str(error).splitlines()[0]})"
            ) from error
        finally:
            hook.remove()
        return cls(model.eval(), checkpoint)

    def stored_name(self, name: str) -> str | None:
        """What the files call a tensor of the model; None if they lack it."""
        return self.checkpoint.find(name, self.model.base_model_prefix)

    def filled(self, name: str) -> nn.Module:
        """Return a copy of a module, with all that is inside, and with values."""
        module = copy.deepcopy(self.model.get_submodule(name))
        for path, inner in module.named_modules():
            self.fill(inner, _join(name, path))
        return module

    def fill(self, module: nn.Module, name: str) -> None:
        """Give a module's own parameters and buffers their values.

        Raises:
            UnsupportedError: The files lack a parameter.
            ModelError: It has another shape there.
        """
        for leaf, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                value = self._value(_join(name, leaf), parameter)
                if value is None:
                    raise UnsupportedError(
                        f"{self.checkpoint.folder} has no tensor {_join(name, leaf)}; {self.model.config.model_type} "
                        "models are stored in another form than they run in"
                    )
                module._parameters[leaf] = nn.Parameter(value, requires_grad=False)
        for leaf, buffer in module._buffers.items():
            if buffer is not None and leaf not in module._non_persistent_buffers_set:
                value = self._value(_join(name, leaf), buffer)
                module._buffers[leaf] = buffer if value is None else value

    def _value(self, name: str, like: Tensor) -> Tensor | None:
        stored = self.stored_name(name)
        if stored is None:
            return None
        value = self.checkpoint.read(stored, like.dtype)
        if value.shape != like.shape:
            raise ModelError(
                f"expected {stored} of shape {list(like.shape)} as config.json describes it, got {list(value.shape)}"
            )
        return value


def _to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    """Take the values of a parameter that is registered; None leaves it, for tied ones are one object."""
    if parameter is None or parameter.is_meta:
        return None
    return nn.Parameter(parameter.to("meta"), requires_grad=False)


def _join(module: str, leaf: str) -> str:
    return ".".join(filter(None, (module, leaf)))
