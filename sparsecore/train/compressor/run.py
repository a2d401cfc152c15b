"""A run in progress: the model, its optimizer and data, as strategies see them."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from sparsecore.calibration import call_model, evaluation_mode
from sparsecore.errors import SparsecoreError
from sparsecore.methods import Method
from sparsecore.prune import Masks
from sparsecore.prune.known_scores import digest
from sparsecore.prune.structured import Edits
from sparsecore.train.compressor.data import TrainingData, split_batch
from sparsecore.train.compressor.optimizer import add_group, carry_over
from sparsecore.train.compressor.ranks import Ranks
from sparsecore.train.compressor.structure import Change, fold_batchnorm_in_place
from sparsecore.train.terms import logits_of
from sparsecore.user_code import UserCodeError, code_of, described, is_ours

#: ``(output, labels, inputs) -> loss``.
Loss = Callable[[Any, Any, Any], Tensor]
TEACHER = "teacher."


class Removable(Protocol):
    """What can be undone."""

    def remove(self) -> None:
        """Undo it."""


@dataclass(frozen=True)
class Functions:
    """What the user gives besides the model and its data.

    Attributes:
        metric: ``(model) -> float``, higher is better.
        loss: ``(output, labels) -> loss``; None is cross entropy.
        training_step: ``(model, batch, loss) -> loss``; None is the usual one.
    """

    metric: Callable[[nn.Module], float]
    loss: Callable[[Any, Any], Tensor] | None = None
    training_step: Callable[[nn.Module, Any, Loss], Tensor] | None = None


class Run:
    """The model that is compressed, and what strategies need of the training around it.

    Args:
        model: The model, in place.
        data: The training data.
        functions: Metric, loss and training step.
        make_optimizer: Builds the optimizer from parameters by name.
        make_scheduler: Builds the scheduler from it, or None.
        ranks: The processes.
        seed: Of what is drawn alike in all processes.
        example_batch: Samples of the example.
        calibration_batches: Batches for methods that need some.
        folder: Where files go; None for a rehearsal, which writes none and judges nothing by the metric.

    Attributes:
        model: The model.
        optimizer: The optimizer, always the same object.
        masks: The masks in force, if there are any.
        generator: In the same state in all processes.
        example_inputs: The first samples of the data.
        step: Optimizer steps taken.
        events: What was done so far: ``{"strategy", "event", "changes"}``.
    """

    def __init__(
        self,
        model: nn.Module,
        data: TrainingData,
        functions: Functions,
        make_optimizer: Callable[[Mapping[str, nn.Parameter]], Optimizer],
        make_scheduler: Callable[[Optimizer], Any],
        *,
        ranks: Ranks,
        seed: int,
        example_batch: int,
        calibration_batches: int,
        folder: Path | None,
    ) -> None:
        self.model, self.data, self.ranks = model, data, ranks
        self._functions, self._folder = functions, folder
        self.device = next(model.parameters()).device
        self.generator = torch.Generator().manual_seed(seed)
        self.calibration = [self.to_device(batch) for batch in data.first(calibration_batches)]
        example = data.read(list(range(min(example_batch, len(data)))))
        self.example_inputs = self.inputs_of_batch(self.to_device(example))
        self.masks: Masks | None = None
        self._holder: Removable | None = None
        self._teaching: Loss | None = None
        self._taught: nn.Module | None = None
        self.optimizer = make_optimizer(self.named_parameters())
        self.scheduler = make_scheduler(self.optimizer)
        self.step = 0
        self.events: list[dict[str, Any]] = []

    # --- what strategies ask for ---

    @property
    def is_rehearsal(self) -> bool:
        """Whether this only tries out what can be done."""
        return self._folder is None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return self.data.steps_per_epoch

    @property
    def calibration_inputs(self) -> list[Any]:
        """The inputs of the calibration batches."""
        return [self.inputs_of_batch(batch) for batch in self.calibration]

    def inputs_of_batch(self, batch: Any) -> Any:
        """Return a batch without its labels; a training step of one's own may have batches without any."""
        try:
            return split_batch(batch)[0]
        except ValueError:
            if self._functions.training_step is None:
                raise
            return batch

    def inputs_of(self, method: Method) -> dict[str, Any]:
        """Return the inputs that a method has, by name."""
        inputs = {"model": self.model, "example_inputs": self.example_inputs}
        if "batches" in method.inputs:
            inputs |= self.judged_on_data("taylor" if "loss" in method.inputs else "activation")
        return inputs

    def judged_on_data(self, criterion: str) -> dict[str, Any]:
        """Return the batches, and for ``"taylor"`` the loss, that a criterion needs."""
        if criterion == "taylor":
            return {"batches": self.calibration, "loss": lambda model, batch: self._forward(model, batch, self.plain)}
        return {"batches": self.calibration_inputs}

    def evaluate(self, model: nn.Module) -> float:
        """Return what a model is worth by the metric; the first process asks it.

        Raises:
            ValueError: It is no finite number, or the metric raised.
        """
        return self.ranks.from_first(lambda: self.evaluate_here(model))

    def evaluate_here(self, model: nn.Module) -> float:
        """Return what a model is worth, asked in this process alone; for work that the first process does."""
        with evaluation_mode(model), torch.no_grad(), code_of("metric"):
            value: Any = self._functions.metric(model)
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"expected a finite number from the metric, got {value!r}")
        return float(value)

    def file(self, name: str) -> Path | None:
        """Return a path in the output folder, for the first process."""
        return self._folder / name if self._folder and self.ranks.is_first else None

    def backward_passes(self) -> Iterator[None]:
        """Fill the gradients anew with those of each calibration batch; the same in all processes."""
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            for batch in self.calibration:
                self.optimizer.zero_grad()
                self._forward(self.model, batch, self.plain).backward()
                yield
        finally:
            for module, training in modes:
                module.training = training

    # --- training ---

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return what is trained, by name."""
        own = dict(self.model.named_parameters())
        taught = self._taught.named_parameters() if self._taught else ()
        return own | {f"{TEACHER}{name}": parameter for name, parameter in taught}

    def plain(self, output: Any, labels: Any, inputs: Any) -> Tensor:
        """The loss without a teacher."""
        if self._functions.loss is None:
            return cross_entropy(logits_of("model", output), labels)
        with code_of("loss"):
            loss = self._functions.loss(output, labels)
        return _one_number(loss, "loss")

    def try_step(self) -> None:
        """Compute a loss and its gradients on the first batch by the usual step, on a copy of the model.

        Raises:
            ValueError: Model, data and loss do not fit.
        """
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise ValueError("no parameter of the model requires gradients; call model.requires_grad_(), or epochs: 0")
        if self._functions.training_step is not None:
            return  # It may count its calls.
        batch = self.to_device(self.data.first(1)[0])
        with self._fitting(batch, "on the first batch"):
            self._forward(copy.deepcopy(self.model), batch, self.plain).backward()

    def train_batch(self, rows: list[int], weight: float) -> Tensor:
        """Take an optimizer step on samples; returns the loss of this process.

        Args:
            rows: Numbers of this process's samples.
            weight: Their share of the samples of all processes.

        Raises:
            ValueError: The loss is not finite, or the model, the training step or the loss raised.
        """
        batch = self.to_device(self.data.read(rows))
        self.optimizer.zero_grad()
        with self._fitting(batch, f"in step {self.step + 1}"):
            loss = self._forward(self.model, batch, self._teaching or self.plain)
            if bool(loss.isfinite()):
                (loss * weight if self.ranks.count > 1 else loss).backward()
        if not bool(loss.isfinite()):
            raise ValueError(f"the loss is {loss.item()} in step {self.step + 1}; {self._way_to_finite_loss()}")
        self._sum_over_ranks()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        return loss.detach()

    def _way_to_finite_loss(self) -> str:
        if self.step == 0:
            return "nothing has been trained yet: look for NaN and infinity in data, weights and loss"
        if any(parameter.dtype == torch.float16 for parameter in self.model.parameters()):
            return "float16 has too few exponents for most optimizers: train in float32 or bfloat16"
        return "lower the learning rate"

    def to_device(self, batch: Any) -> Any:
        """Return a batch on the model's device."""
        return pytree.tree_map(lambda leaf: leaf.to(self.device) if isinstance(leaf, Tensor) else leaf, batch)

    @contextmanager
    def _fitting(self, batch: Any, when: str) -> Iterator[None]:
        """Let errors of a step say what they are about; ours and those of the user's functions do already."""
        try:
            yield
        except (SparsecoreError, UserCodeError):
            raise
        except Exception as error:
            if isinstance(error, ValueError) and is_ours(error):
                raise
            shapes = pytree.tree_map(lambda leaf: list(leaf.shape) if isinstance(leaf, Tensor) else leaf, batch)
            raise ValueError(
                f"model, data and loss do not fit {when}, with a batch of {shapes}: {described(error)}"
            ) from error

    def _forward(self, model: nn.Module, batch: Any, loss: Loss) -> Tensor:
        if self._functions.training_step is not None:
            with code_of("training_step"):
                found = self._functions.training_step(model, batch, loss)
            found = _one_number(found, "training_step")
        else:
            inputs, labels = split_batch(batch)
            found = loss(call_model(model, inputs), labels, inputs)
        if not found.requires_grad:
            raise ValueError("the loss has no gradient; compute it without no_grad(), detach() and item()")
        return found

    def _sum_over_ranks(self) -> None:
        """Gradients become those of the whole batch, and running statistics the mean."""
        if self.ranks.count == 1:
            return
        trained = [parameter for parameter in self.named_parameters().values() if parameter.requires_grad]
        # An optimizer leaves out what has no gradient anywhere; what some process has one for, all have to add up.
        has_gradient = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.int32)
        self.ranks.sum_([has_gradient])
        gradients = []
        for parameter, count in zip(trained, has_gradient.tolist(), strict=True):
            if count and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                gradients.append(parameter.grad)
        modules = [self.model, *([self._taught] if self._taught else ())]
        statistics = [buffer for module in modules for buffer in module.buffers() if buffer.is_floating_point()]
        for buffer in statistics:
            buffer.div_(self.ranks.count)
        self.ranks.sum_([*gradients, *statistics])

    # --- changes ---

    def teach(self, loss: Loss | None) -> None:
        """Train by another loss from now on; None is the plain one."""
        self._teaching = loss

    def train_too(self, module: nn.Module | None) -> None:
        """Train another module beside the model; None: no more."""
        before = self.named_parameters()
        self._taught = module
        carry_over(self.optimizer, before, self.named_parameters(), None)

    def hold(self, masks: Masks, holder: Removable | None = None) -> None:
        """Keep the zeros of masks from now on.

        Args:
            masks: They hold the earlier ones too.
            holder: Who keeps them under the optimizer already, if somebody does.
        """
        self.release_masks()
        self.masks = masks
        if self.ranks.count > 1:
            masks.require_same_on_all_ranks()
        if holder is None:
            masks.apply(self.optimizer)
        self._holder = masks.attach(self.optimizer) if holder is None else holder

    def release_masks(self) -> None:
        """Let another object hold the zeros."""
        if self._holder is not None:
            self._holder.remove()
            self._holder = None

    def cut(self, find: Callable[[], Edits]) -> None:
        """Cut the model.

        Args:
            find: Finds out what goes, and changes nothing; the first process asks it.
        """
        edits = Edits.from_dict(self.ranks.from_first(lambda: find().to_dict()))
        with self.changing() as changes:
            edits.apply(self.model)
            changes.cut(edits)

    @contextmanager
    def changing(self) -> Iterator[Changes]:
        """Let layers or shapes of the model change within the block; the optimizer follows at its end."""
        before = self.named_parameters()
        changes = Changes(self)
        yield changes
        carry_over(self.optimizer, before, self.named_parameters(), changes.edits)
        for parameters, options in changes.groups:
            add_group(self.optimizer, self.scheduler, parameters, **options)

    @contextmanager
    def event(self, strategy: int, name: str) -> Iterator[None]:
        """Note that a strategy begins or finishes, with what it changes within the block."""
        self.events.append({"strategy": strategy, "event": name, "changes": []})
        yield
        self.require_same_model()

    def record(self, change: Change) -> None:
        """Note a change that has been made."""
        self.events[-1]["changes"].append(dict(change))

    def require_same_model(self) -> None:
        """Raise SparsecoreError in every process if their models differ in a bit."""
        if self.ranks.count > 1:
            tensors = ((name, value) for name, value in self.model.state_dict().items() if isinstance(value, Tensor))
            masks = self.masks.hash() if self.masks else ""
            found = hashlib.sha256(f"{digest(tensors)} {masks}".encode()).hexdigest()
            self.ranks.require_same(found, "weights and masks")


class Changes:
    """What happens to a model within a block of :meth:`Run.changing`."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.edits: Edits | None = None
        self.groups: list[tuple[list[nn.Parameter], dict[str, Any]]] = []

    def cut(self, edits: Edits) -> None:
        """Note a cut that has been made."""
        self.edits = edits
        if edits:
            self.record({"kind": "cut", "edits": edits.to_dict()})

    def record(self, change: Change) -> None:
        """Note another change that has been made."""
        self._run.record(change)

    def fold_batchnorm(self) -> None:
        """Fold BatchNorm into the layers before it."""
        if fold_batchnorm_in_place(self._run.model, self._run.example_inputs):
            self.record({"kind": "fold_batchnorm"})

    def add_group(self, parameters: list[nn.Parameter], **options: Any) -> None:
        """Train parameters with options of their own."""
        self.groups.append((parameters, options))


def _one_number(loss: Any, key: str) -> Tensor:
    """Return what a function of the user's gave, checked."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        came = f"one of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UserCodeError(f"expected the loss as a tensor of one number, got {came}", key)
    return loss
