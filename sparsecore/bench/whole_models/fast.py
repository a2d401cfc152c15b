"""Our fast model of a model with zeros."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

import sparsecore


def make_fast(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    *,
    max_error: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> nn.Module:
    """Compile a model for this machine; measured anew, so that a report shows what was measured in its run.

    Args:
        model: In eval mode; it stays as it is.
        inputs: Its positional arguments.
        max_error: See `sparsecore.convert`: with it int8 competes too.
        progress: Called with the share done.

    Returns:
        The fast model, called like the model; ``sparsecore.explain`` shows the choices.
    """
    # convert works layer by layer; compile, where this release has it, captures the whole model.
    make: Callable[..., nn.Module] = getattr(sparsecore, "compile", sparsecore.convert)
    return make(model, inputs, max_error=max_error, cache=False, progress=progress)
