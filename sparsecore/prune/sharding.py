"""Weights that are spread over processes (DTensor, as fully_shard makes them): read whole, zeroed shard by shard."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """Whether the tensor is a DTensor; nothing is imported to find out."""
    distributed = sys.modules.get("torch.distributed.tensor")
    return distributed is not None and isinstance(tensor, distributed.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """Return the tensor with all its entries; a sharded one is gathered, which every rank has to take part in."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def reshard(model: nn.Module) -> None:
    """Free the whole weights that fully_shard keeps in a model after a forward pass, so that the parts are its weights.

    Changes made to the whole ones would be lost, and changes made to the parts would not be seen.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    for module in model.modules() if fsdp else ():
        if isinstance(module, fsdp.FSDPModule):  # type: ignore[union-attr]
            module.reshard()


@torch.no_grad()
def zero_where(tensor: Tensor, pruned: Tensor) -> None:
    """Zero a tensor in place where ``pruned``, a whole bool mask on its device, is True.

    Not by a product, for NaN * 0 is NaN. Of a sharded tensor each rank zeros its own part, without communication.
    """
    if is_sharded(tensor):
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
        part = distribute_tensor(pruned, mesh, placements, src_data_rank=None).to_local()
        tensor.to_local().masked_fill_(part, 0)  # type: ignore[attr-defined]
    else:
        tensor.masked_fill_(pruned, 0)
