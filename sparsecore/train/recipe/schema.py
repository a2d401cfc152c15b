"""What a recipe may hold. Needs pydantic, so it is imported when a recipe is read."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Call(BaseModel):
    """A function or class by name, with its keyword arguments."""

    model_config = ConfigDict(extra="allow", strict=True)

    name: str = Field(description='`"module:function"`, or the name of one of PyTorch\'s.')

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments."""
        return dict(self.model_extra or {})


def _from_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Named = Annotated[Call, BeforeValidator(_from_name)]


class StrategyEntry(BaseModel):
    """A method of `sparsecore methods` at work in a run; its options stand beside these keys."""

    model_config = ConfigDict(extra="allow", strict=True)

    name: str = Field(description="The method.")
    start: int | None = Field(
        None,
        ge=0,
        description="The epoch before which it begins, counted from 0. Left out: 0, or the last one for methods that "
        "work when all training is over.",
    )
    end: int | None = Field(
        None,
        ge=0,
        description="The epoch before which it ends. Left out: the last one for methods that work while the model "
        "trains, `start` for those that work at once.",
    )

    @property
    def options(self) -> dict[str, Any]:
        """What is left: options of the method."""
        return dict(self.model_extra or {})


class Recipe(BaseModel):
    """A recipe as it stands in its file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: Named | None = Field(
        None, description="Function that builds the model, with weights if it is a trained one; random ones are seeded."
    )
    data: Named | None = Field(
        None,
        description="Function that returns the training data: a `torch.utils.data.Dataset` with a length, a list of "
        "samples, or a tuple or dict of tensors of one length. The last part of a sample is its label, or what a dict "
        "calls `labels`; several parts before it are several arguments of the model, those of a dict its keyword "
        "arguments.",
    )
    metric: Named | None = Field(
        None, description="Function `(model) -> float` that says what the model is worth, higher is better."
    )
    loss: Named | None = Field(
        None, description="Function `(output, labels) -> loss`, a mean over samples. Left out: cross entropy."
    )
    training_step: Named | None = Field(
        None,
        description="Function `(model, batch, loss) -> loss` instead of the usual step; it calls "
        "`loss(output, labels, inputs)`, which a distillation replaces.",
    )
    optimizer: Named = Field(
        Call(name="AdamW"), description="A class of `torch.optim` by name, or a function of the parameters."
    )
    scheduler: Named | None = Field(
        None,
        description="A class of `torch.optim.lr_scheduler` by name, or a function of the optimizer; it steps after "
        "every optimizer step. `T_max`, `total_steps` and `total_iters` are the whole run's steps if left out.",
    )
    seed: int = Field(0, ge=0, description="Of weights, order of the data and all other randomness.")
    epochs: int = Field(ge=0, description="How long to train, all in all.")
    batch: int = Field(64, ge=1, description="Samples per step, of all processes together.")
    example_batch: int = Field(
        1, ge=1, description="Samples in the example on which models are cut, compiled and their latency measured."
    )
    calibration_batches: int = Field(
        8, ge=1, description="Batches, the first of the training data, for methods that need some."
    )
    output: str | None = Field(
        None, description="New folder for the compressed model, the report and checkpoints, from the current folder."
    )
    checkpoint_every: int | None = Field(
        None, ge=1, description="Steps between checkpoints. Left out: one per epoch. There is one after every change."
    )
    compile: dict[str, Any] | bool = Field(
        True, description="Whether to compile the result for this machine, or options of `sparsecore.compile()`."
    )
    strategies: list[StrategyEntry] = Field([], description="What is done to the model, see below.")
