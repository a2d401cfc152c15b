"""Linear layers with a 2:4 weight, by PyTorch (cuSPARSELt or CUTLASS on a GPU)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsecore.errors import UnsupportedError

DTYPES = (torch.float16, torch.bfloat16)
# What PyTorch's kernels ask of a 16-bit weight [N, K].
MULTIPLE_OF_N, MULTIPLE_OF_K = 32, 64


def is_2_4(weight: Tensor) -> bool:
    """Whether each four neighbours in a row of a weight ``[N, K]`` have two zeros at least.

    Example:
        >>> is_2_4(torch.tensor([[1.0, 0, 2, 0, 0, 0, 0, 3]]))
        True
    """
    quads = (weight != 0).unflatten(1, (-1, 4)) if weight.shape[1] % 4 == 0 else None
    return quads is not None and bool((quads.sum(2) <= 2).all())


class SemiStructuredLinear(nn.Linear):
    """nn.Linear whose weight PyTorch holds as a semi-structured sparse tensor; made by ``from_dense()`` on a GPU.

    Reference:
        Mishra et al., Accelerating Sparse Deep Neural Networks, 2021 (arXiv 2104.08378).
    """

    nnz: int

    @classmethod
    def from_dense(cls, dense: nn.Linear) -> SemiStructuredLinear:
        """Make the layer from its dense form, which stays as it is.

        Raises:
            UnsupportedError: the weight is not 2:4, of another dtype or size, or PyTorch has no kernels for it here.
        """
        weight = dense.weight.detach()
        if weight.dtype not in DTYPES or weight.shape[0] % MULTIPLE_OF_N or weight.shape[1] % MULTIPLE_OF_K:
            raise UnsupportedError(
                f"expected a float16 or bfloat16 weight with N a multiple of {MULTIPLE_OF_N} and K of "
                f"{MULTIPLE_OF_K}, got {weight.dtype} {list(weight.shape)}"
            )
        if not is_2_4(weight):
            raise UnsupportedError("expected a weight with two zeros in each four neighbours; prune with pattern '2:4'")
        try:
            packed = torch.sparse.to_sparse_semi_structured(weight)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            raise UnsupportedError(f"PyTorch has no 2:4 kernels for this weight here: {error}") from error
        layer = cls(dense.in_features, dense.out_features, bias=False, device="meta")
        layer.weight = nn.Parameter(packed, requires_grad=False)
        layer.bias = dense.bias
        layer.nnz = int(weight.count_nonzero())
        return layer.train(dense.training)

    def to_stored(self) -> nn.Linear:
        """Return the dense layer that files hold."""
        dense = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        dense.weight = nn.Parameter(self.weight.detach().to_dense())
        dense.bias = self.bias
        return dense.train(self.training)
