"""sc.convert: every layer in the format that runs fastest here, dense included, so that nothing gets slower."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from torch import nn

from sparsecore.calls import ExampleInputs, cloned
from sparsecore.graph import copy_model, observe
from sparsecore.graph.fold import fold_batchnorm_, foldable_layers
from sparsecore.graph.observe import unchanged_buffers
from sparsecore.prune import fold_torch_pruning
from sparsecore.quantize.sensitivity import ReferenceOutputs
from sparsecore.tune.choice import ATTRIBUTE
from sparsecore.tune.chooser import AllowedError, Chooser, choosable_layers
from sparsecore.tune.settings import Policy, check_settings


def convert(
    model: nn.Module,
    example_inputs: ExampleInputs | None = None,
    *,
    max_error: float | None = None,
    policy: Policy | None = None,
    exclude: Iterable[str] = (),
    cache: bool | str | os.PathLike[str] = True,
    progress: Callable[[float], None] | None = None,
) -> nn.Module:
    """Return a copy of a model whose layers run in the format that is fastest on this machine.

    Works layer by layer on any module: linear layers and 2-D convolutions with zeros become sparse where that is
    faster, BatchNorm is folded where one run shows that it can be. Dense is always a candidate. int8 layers, from
    ``quantize()``, choose among dense int8, int8 without zeros, and float32. Float layers become int8, or
    on a GPU int4, only within a max_error; activations are scaled as they come or stay as they are.

    Args:
        model: any module; it stays as it is. Zeros made by torch.nn.utils.prune are read too.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments of the model, of the shapes
            that matter. None folds nothing and decides by the cost model.
        max_error: largest relative error of the model's output on the example, such as 0.01:
            ``||y_fast - y|| / ||y||``, of the worst if there are several outputs. Layers get the numeric type in which
            they are fastest; while the measured error exceeds the budget, those go on to a more exact one that add
            most error to the output, each measured by itself, for the time they save. A type that exceeds the budget
            with one layer alone is not timed for it. The result is float if none fits. None, the default, keeps every
            float layer float.
        policy: ``"measure"`` times every layer, interleaved, on the shapes it has in the example; ``"model"``
            predicts from non-zeros and shapes without timing; a dict of layer names to formats or kernels fixes these
            layers. None measures if there is an example.
        exclude: names of layers to leave dense.
        cache: look measured times up on disk and keep them: in SPARSECORE_CACHE_DIR, or in a file of this path.
        progress: called with the share done, from 0 to 1.

    Returns:
        The converted copy in eval mode, for inference; ``explain()`` shows the choices.

    Raises:
        ValueError: the policy is unknown, it or max_error needs an example that is not given, max_error is not a
            finite number above 0, the model's output is NaN, or exclude or policy names no layer or no form of it.

    Example:
        >>> linear = nn.Linear(256, 256)
        >>> _ = linear.weight.data.mul_(torch.rand(256, 256) > 0.95)
        >>> from sparsecore.nn import CompressedModule
        >>> isinstance(convert(nn.Sequential(linear))[0], CompressedModule)
        True
    """
    settings = check_settings(model, example_inputs, max_error, policy, exclude, cache)
    # In a container, so that a model that is one layer can be replaced like any other.
    root = nn.Sequential(copy_model(model)).eval()
    fold_torch_pruning(root)
    seen, error = None, None
    with unchanged_buffers(root):
        if example_inputs is not None:
            example_inputs = cloned(example_inputs)
            watched = foldable_layers(root[0]) | choosable_layers(root[0])
            seen = observe(root[0], example_inputs, watched)
            if settings.max_error is not None:
                reference = ReferenceOutputs(root[0], choosable_layers(root[0]), [example_inputs])
                error = AllowedError(settings.max_error, reference)
            fold_batchnorm_(root, seen)
        explanation = Chooser(root, seen, settings, error).run(progress or (lambda share: None))
    setattr(root[0], ATTRIBUTE, explanation)
    return root[0]
