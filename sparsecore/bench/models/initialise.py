"""Random weights that look like a trained model's: activations in range, BatchNorm that folding has to get right."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Give a model random weights, in place, from torch's random numbers.

    Weights of convolutions and linear layers keep the variance behind a ReLU; biases and LayerNorm are random too, so
    that no kernel can leave them out unseen.

    Args:
        model: Any module; layers of other types stay as they are.

    Reference:
        He et al., Delving Deep into Rectifiers, ICCV 2015, eq. 10.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()  # of one group
            module.weight.normal_(std=math.sqrt(2 / fan_in))
            if module.bias is not None:
                module.bias.normal_(std=0.05)
        elif isinstance(module, nn.LayerNorm):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.2)


@torch.no_grad()
def settle_batchnorm(model: nn.Module, *batch: Tensor, seed: int = 0) -> None:
    """Give BatchNorm the look of a trained model: varied scale and shift, statistics of real data.

    The affine parameters become random, the running statistics those of the batch, so that
    activations neither vanish nor explode, and an error in folding them shows. Ends in eval mode.

    Args:
        model: Changed in place.
        batch: Inputs of the model, at least two samples.
        seed: Of the random affine parameters.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.weight.uniform_(0.5, 1.5, generator=generator)
        norm.bias.normal_(0.0, 0.2, generator=generator)
        norm.momentum = None  # the running statistics become the average over all batches seen
        norm.reset_running_stats()
        norm.train()
    if norms:
        model(*batch)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
