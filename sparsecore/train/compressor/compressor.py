"""The Compressor: leads a model through the epochs of a recipe."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sparsecore.bench.progress import Progress, silent, stage
from sparsecore.errors import CheckpointError, RecipeError, SparsecoreError
from sparsecore.prune.structured.edits import architecture_of
from sparsecore.train.compressor import names
from sparsecore.train.compressor.checkpoint import checkpoints, read_checkpoint, write_checkpoint
from sparsecore.train.compressor.data import TrainingData
from sparsecore.train.compressor.optimizer import make_optimizer, make_scheduler
from sparsecore.train.compressor.ranks import Ranks
from sparsecore.train.compressor.report import CompressionReport, Row, counts
from sparsecore.train.compressor.result import MODEL, REPORT, compiled_and_saved, load_result, measured
from sparsecore.train.compressor.run import Loss, Run
from sparsecore.train.compressor.schedule import Event, events_before
from sparsecore.train.compressor.state import active, random_state, restore, seed_everything, set_random_state, state_of
from sparsecore.train.recipe import CheckedRecipe, read_recipe
from sparsecore.train.strategies import Strategy
from sparsecore.user_code import UserCodeError, described, user_place

__all__ = ["Compressed", "Compressor", "load_result"]

CHECKPOINTS = "checkpoints"
Recipe = str | os.PathLike[str] | Mapping[str, Any] | CheckedRecipe


@dataclass(frozen=True)
class Compressed:
    """What a run leaves.

    Attributes:
        model: The compressed model, in plain PyTorch layers as far as it is not int8.
        fast: The same compiled for this machine; the model itself if the recipe does not compile, and in all
            processes but the first one.
        report: Rows after each strategy.
        path: The saved model.
    """

    model: nn.Module
    fast: nn.Module
    report: CompressionReport
    path: Path


class Compressor:
    """Trains and compresses a model as a recipe says: prunes, distils, quantizes, compiles, measures and saves it.

    Everything that can be known before is checked before: the recipe as such when this is created, and all its
    strategies on a copy of the model when the run starts. A run leaves checkpoints, from which it goes on to the same
    weights to the last bit, and in its folder ``model.safetensors``, ``report.json``, ``report.md`` and, with
    matplotlib, ``report.svg``.

    Under torch.distributed every process gives the same arguments; each sees its part of every batch, and all end with
    the same weights. Only the first one writes.

    Args:
        model: The model, which is changed in place; None: the recipe's.
        recipe: A YAML file, or its content as a dict; docs/recipes.md says what it may hold.
        train_data: A dataset with a length, a list of samples ``(x, label)``, or a tuple of tensors whose last part
            are the labels, or dicts with ``"labels"`` and the model's keyword arguments; None: the recipe's.
        metric: ``(model) -> float``, higher is better; None: the recipe's.
        loss: ``(output, labels) -> loss``; None: the recipe's, or cross entropy.
        training_step: ``(model, batch, loss) -> loss``; None: the recipe's, or the usual one.
        output: New folder for what the run leaves; None: the recipe's.
        progress: Told about every step.

    Raises:
        RecipeError: The recipe is wrong or lacks something; the message begins with file, line and column.
        MissingExtraError: pydantic or PyYAML is not installed.

    Example:
        >>> import tempfile
        >>> x = torch.randn(64, 8)
        >>> recipe = {"epochs": 2, "batch": 16, "strategies": [{"name": "gradual", "sparsity": 0.5, "frequency": 2}]}
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> metric = lambda model: -float(model(x).abs().mean())
        >>> compressor = Compressor(model, recipe, train_data=(x, (x.sum(1) > 0).long()), metric=metric,
        ...                         output=tempfile.mkdtemp() + "/run")
        >>> compressed = compressor.run()
        >>> [row.after for row in compressed.report.rows], compressed.report.rows[1].nonzeros
        (['start', 'training with gradual', 'compiled'], 98)

    Reference:
        Strategies with start and end epochs: PaddleSlim's Compressor.
    """

    def __init__(
        self,
        model: nn.Module | None,
        recipe: Recipe,
        *,
        train_data: Any = None,
        metric: Callable[[nn.Module], float] | None = None,
        loss: Callable[[Any, Any], torch.Tensor] | None = None,
        training_step: Callable[[nn.Module, Any, Loss], torch.Tensor] | None = None,
        output: str | os.PathLike[str] | None = None,
        progress: Progress = silent,
    ) -> None:
        self.checked = recipe if isinstance(recipe, CheckedRecipe) else read_recipe(recipe)
        self.recipe = self.checked.recipe
        self._ranks = Ranks()
        self._progress = progress if self._ranks.is_first else silent
        given = names.Given(model, train_data, metric, loss, training_step)
        self.model, source, self._functions = names.resolve(self.checked, given)
        self._data = self._training_data(source)
        folder = output if output is not None else self.recipe.output
        if folder is None:
            raise self.checked.document.error((), "expected output: FOLDER, or --output, or the argument output")
        self.folder = Path(folder)
        self._belongs_to = {
            "recipe": self.checked.digest(),
            "model": architecture_of(self.model),
            "number of samples": str(len(self._data)),
            "number of processes": str(self._ranks.count),
        }
        self._rows: list[Row] = []

    def dry_run(self) -> list[dict[str, Any]]:
        """Try everything on a copy of the model, without training, and write nothing.

        Returns:
            What happens, in order: ``event``, ``epoch``, and the ``parameters`` and ``nonzeros`` that the model would
            have then.

        Raises:
            RecipeError: A strategy does not fit the model, or cannot reach its target; or model, data and loss do not
                fit.
        """
        return self._ranks.from_first(self._rehearse)

    def run(self, *, resume: bool = False) -> Compressed:
        """Train, compress, compile and save.

        Args:
            resume: Go on from the newest checkpoint in the output folder.

        Returns:
            The models, the report and the saved file.

        Raises:
            RecipeError: As :meth:`dry_run`; or one of the caller's functions raised, which is the cause then; or the
                metric gives no finite number, a batch does not fit, or the loss is not finite.
            CheckpointError: The folder holds another run's checkpoints, none that is whole, or without ``resume`` any.
        """
        before = random_state()
        dense = copy.deepcopy(self.model)
        try:
            state = self._ranks.from_first(lambda: self._prepare_folder(resume))
            if state is None:
                self.dry_run()
            with self._made_folder():
                return self._run(state, dense)
        finally:
            set_random_state(before)

    def newest_checkpoint(self) -> Path | None:
        """Return the checkpoint from which :meth:`run` would go on, if there is one."""
        return next(reversed(checkpoints(self.folder / CHECKPOINTS)), None)

    # --- the parts of a run ---

    def _run(self, state: dict[str, Any] | None, dense: nn.Module) -> Compressed:
        strategies = self.checked.make_strategies()
        run = self._start(self.model, self._ranks, self.folder)
        if state is None:
            self._train(run, strategies, 0, None)
        else:
            with self._blamed(()):
                restore(run, strategies, state)
            self._rows = [Row(**row) for row in state["rows"]]
            self._train(run, strategies, state["epoch"], state["position"])
        return self._finished(run, dense)

    @contextmanager
    def _made_folder(self) -> Iterator[None]:
        """Make the output folder; a run that ends before it left anything there takes it away again."""
        new: list[Path] = []
        if self._ranks.is_first:
            new = [each for each in (self.folder / CHECKPOINTS, self.folder, *self.folder.parents) if not each.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            yield
        except BaseException:
            with suppress(OSError):  # where something is in a folder
                for folder in new:
                    if folder.exists():
                        folder.rmdir()
            raise

    def _prepare_folder(self, resume: bool) -> dict[str, Any] | None:
        """Check the output folder, and return the state to go on from."""
        if resume:
            return read_checkpoint(self.folder / CHECKPOINTS, self._belongs_to)
        taken = [name for name in (MODEL, REPORT) if (self.folder / name).exists()]
        if taken or checkpoints(self.folder / CHECKPOINTS):
            raise CheckpointError(
                f"{self.folder} holds {taken[0] if taken else 'checkpoints'} of another run; go on with it by "
                "resuming, or choose another output folder"
            )
        return None

    def _start(self, model: nn.Module, ranks: Ranks, folder: Path | None) -> Run:
        """Return a run before its first epoch."""
        recipe = self.recipe
        with self._blamed(("data",)):
            ranks.broadcast_([*model.parameters(), *model.buffers()])
            seed_everything(recipe.seed, ranks.rank)
            return Run(
                model.train(),
                self._data,
                self._functions,
                self._make_optimizer,
                self._make_scheduler,
                ranks=ranks,
                seed=recipe.seed,
                example_batch=recipe.example_batch,
                calibration_batches=recipe.calibration_batches,
                folder=folder,
            )

    def _make_optimizer(self, parameters: Mapping[str, nn.Parameter]) -> Optimizer:
        with self._blamed(("optimizer",)):
            return make_optimizer(self.recipe.optimizer.name, self.recipe.optimizer.arguments, parameters)

    def _make_scheduler(self, optimizer: Optimizer) -> Any:
        recipe = self.recipe
        if recipe.scheduler is None:
            return None
        with self._blamed(("scheduler",)):
            steps = recipe.epochs * self._data.steps_per_epoch
            return make_scheduler(recipe.scheduler.name, recipe.scheduler.arguments, optimizer, steps)

    def _training_data(self, source: Any) -> TrainingData:
        with self._blamed(("data",)):
            return TrainingData(source, self.recipe.batch, self.recipe.seed, self._ranks.rank, self._ranks.count)

    def _rehearse(self) -> list[dict[str, Any]]:
        """Go through all strategies on a copy of the model, without training."""
        before = random_state()
        rows = []
        try:
            strategies = self.checked.make_strategies()
            run = self._start(copy.deepcopy(self.model), Ranks(alone=True), None)
            if self.recipe.epochs:
                with self._blamed(()):
                    run.try_step()
            for epoch in range(self.recipe.epochs + 1):
                for event in events_before(epoch, strategies, self.recipe.epochs):
                    self._do(run, strategies, event)
                    name = strategies[event.strategy].method.name
                    rows.append({"event": f"{event.name} {name}", "epoch": epoch, **counts(run.model)})
        finally:
            set_random_state(before)
        return rows

    def _train(self, run: Run, strategies: list[Strategy], first_epoch: int, position: int | None) -> None:
        """Go through the epochs; position is None at the start of a run, else that in an epoch that had begun."""
        if position is None:
            self._measure(run, "start", 0)
        for epoch in range(first_epoch, self.recipe.epochs + 1):
            if position is None:
                self._change(run, strategies, epoch)
            if epoch < self.recipe.epochs:
                self._train_epoch(run, strategies, epoch, position or 0)
            position = None

    def _train_epoch(self, run: Run, strategies: list[Strategy], epoch: int, position: int) -> None:
        working = [strategies[index] for index in active(run, strategies)]
        shares = run.data.epoch(epoch)
        with stage(self._progress, f"epoch {epoch + 1} of {self.recipe.epochs}") as done, self._blamed(()):
            for number, share in enumerate(shares[position:], start=position + 1):
                for strategy in working:
                    strategy.before_step(run)
                run.train_batch(share.rows, share.weight)
                for strategy in working:
                    strategy.after_step(run)
                run.step += 1
                if self._is_due(run.step, number == len(shares)):
                    self._checkpoint(run, strategies, epoch, number)
                done(number / len(shares))
            for strategy in working:
                strategy.end_epoch(run)
            run.require_same_model()

    def _change(self, run: Run, strategies: list[Strategy], epoch: int) -> None:
        """Let strategies end and begin before an epoch."""
        events = events_before(epoch, strategies, self.recipe.epochs)
        if self._rows[-1].epoch < epoch and (events or epoch == self.recipe.epochs):
            working = [strategies[index].method.name for index in active(run, strategies)]
            self._measure(run, " with ".join(filter(None, ["training", ", ".join(working)])), epoch)
        for event in events:
            strategy = strategies[event.strategy]
            with stage(self._progress, f"{event.name} {strategy.method.name}"):
                self._do(run, strategies, event)
            if event.name == "conclude" or not strategy.spans or run.events[-1]["changes"]:
                self._measure(run, strategy.method.name, epoch)
        if events and epoch < self.recipe.epochs:
            self._checkpoint(run, strategies, epoch, 0)

    def _do(self, run: Run, strategies: list[Strategy], event: Event) -> None:
        strategy = strategies[event.strategy]
        with self._blamed(("strategies", event.strategy), strategy), run.event(event.strategy, event.name):
            getattr(strategy, event.name)(run)

    def _measure(self, run: Run, after: str, epoch: int) -> None:
        with self._blamed(("metric",)):
            metric = run.evaluate(run.model)
        self._rows.append(run.ranks.from_first(lambda: measured(run, after, epoch, metric)))

    def _is_due(self, step: int, is_last_of_epoch: bool) -> bool:
        every = self.recipe.checkpoint_every
        return is_last_of_epoch if every is None else step % every == 0

    def _checkpoint(self, run: Run, strategies: list[Strategy], epoch: int, position: int) -> None:
        state = state_of(run, strategies)
        state |= {"epoch": epoch, "position": position, "rows": [vars(row) for row in self._rows]}
        if run.ranks.is_first:
            write_checkpoint(self.folder / CHECKPOINTS, run.step, state, self._belongs_to)

    def _finished(self, run: Run, dense: nn.Module) -> Compressed:
        model = run.model.eval()
        changes = [change for event in run.events for change in event["changes"]]
        fast = model

        def finish() -> CompressionReport:
            nonlocal fast
            with stage(self._progress, "compile, measure and save"):
                fast, report = compiled_and_saved(run, dense, self.recipe.compile, self._rows, changes, self.folder)
            return report

        with self._blamed(("compile",)):
            report = run.ranks.from_first(finish)
        return Compressed(model, fast, report, self.folder / MODEL)

    @contextmanager
    def _blamed(self, path: tuple[str | int, ...], strategy: Strategy | None = None) -> Iterator[None]:
        """Let errors of a block name the place in the recipe that led to them."""
        try:
            yield
        except (RecipeError, CheckpointError):
            raise
        except UserCodeError as error:
            where = (error.key,) if error.key else path
            raise self.checked.document.error(where, str(error)) from error.__cause__
        except Exception as error:
            is_expected = isinstance(error, SparsecoreError | ValueError) or (strategy and isinstance(error, TypeError))
            if user_place(error):
                message = described(error)
            elif is_expected:
                message = _one_line(str(error))
            else:
                raise
            options = [name for name in strategy.options if name in str(error)] if strategy else []
            where = (*path, options[0]) if options else path
            raise self.checked.document.error(where, message) from error


def _one_line(text: str) -> str:
    """Return the lines of a message as parts of one."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return "; ".join(lines).replace(":; ", ": ").replace(".; ", ". ")
