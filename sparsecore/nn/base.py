"""What all compressed layers share: weights as buffers, validated loading, configuration.

A layer is a geometry (linear.py, conv.py) times one of the three storages below. The storage names its buffers, makes
them from a dense weight, and multiplies rows of activations with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from sparsecore import ops
from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.formats import CsrWeight, Int8Weight
from sparsecore.formats.check import FLOAT_DTYPES, check_tensor
from sparsecore.quantize.affine import INPUT_MAX, INPUT_MIN, is_valid_scale

WeightFormat: TypeAlias = CsrWeight | Int8Weight
Self = TypeVar("Self", bound="CompressedModule")


class CompressedModule(nn.Module):
    """A layer that holds its weight in a stored format and nothing else.

    The format's tensors are buffers under their own names and ``bias`` is a parameter or None, so that ``state_dict()``
    round-trips; loading validates them, and takes any number of non-zeros.

    Args:
        weight: the weight, whose tensors are kept and not copied.
        bias: ``[N]`` float, or None.
        activation: one of ``sparsecore.ops.ACTIVATIONS``, applied to the output.
        kernel: name of the kernel to run; empty takes the first that fits this machine.

    Raises:
        FormatError: bias does not fit the weight.
        ValueError: there is no such activation.
    """

    buffer_names: ClassVar[tuple[str, ...]]
    keywords: ClassVar[tuple[str, ...]] = ("activation", "kernel")
    dense_type: ClassVar[type[nn.Module]]

    def __init__(
        self,
        weight: WeightFormat,
        bias: Tensor | None = None,
        *,
        activation: str = "none",
        kernel: str = "",
    ) -> None:
        super().__init__()
        if activation not in ops.ACTIVATIONS:
            raise ValueError(
                f"expected an activation of {', '.join(ops.ACTIVATIONS)}, got {activation!r}"
            )
        if bias is not None:
            check_tensor("bias", bias, FLOAT_DTYPES, (weight.shape[0],))
        self.weight_shape = weight.shape
        self.activation = activation
        self.kernel = kernel
        for name in self.buffer_names:
            self.register_buffer(name, getattr(weight, name))
        parameter = (
            bias
            if bias is None or isinstance(bias, nn.Parameter)
            else nn.Parameter(bias, requires_grad=False)
        )
        self.register_parameter("bias", parameter)

    # --- the storage and the geometry fill these in ---

    @classmethod
    def _compress(cls, weight: Tensor) -> WeightFormat:
        """Pack a dense weight."""
        raise NotImplementedError

    @classmethod
    def _unpack(cls, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> WeightFormat:
        """Build the validated format from the buffers."""
        raise NotImplementedError

    @classmethod
    def _geometry(cls, dense: nn.Module) -> dict[str, Any]:
        """Constructor arguments that describe a dense layer."""
        raise NotImplementedError

    def _multiply(self, x: Tensor, rows: slice) -> Tensor:
        """x [..., K] times some rows of the weight, with bias and activation."""
        raise NotImplementedError

    # --- building ---

    @classmethod
    def from_dense(cls: type[Self], dense: nn.Module, **options: Any) -> Self:
        """Make the layer from its dense form, which stays as it is.

        Args:
            dense: the torch.nn layer.
            options: activation, kernel, and for int8 layers x_scale and x_zero_point.

        Raises:
            FormatError: the weight cannot be stored, for example NaN in int8.
            UnsupportedError: another class of layer, or an option of it that the kernels lack.
        """
        if not isinstance(dense, cls.dense_type):
            raise UnsupportedError(
                f"expected a torch.nn.{cls.dense_type.__name__}, got {type(dense).__name__}"
            )
        return cls(
            cls._compress(_current_weight(dense)),
            _copy(dense.bias),
            **cls._geometry(dense),
            **options,
        )

    @classmethod
    def _rebuild(
        cls: type[Self], module: CompressedModule, weight: WeightFormat, **options: Any
    ) -> Self:
        """The same layer with another weight: what this class and the module's have in common stays."""
        common = [
            name
            for name in module.all_keywords()
            if name in cls.all_keywords() and name != "kernel"
        ]
        return cls(
            weight, _copy(module.bias), **{name: getattr(module, name) for name in common} | options
        )

    @classmethod
    def all_keywords(cls) -> tuple[str, ...]:
        """Constructor arguments besides weight and bias; each is an attribute of the same name."""
        return tuple(name for base in cls.__mro__ for name in vars(base).get("keywords", ()))

    def config(self) -> dict[str, Any]:
        """Return everything but the tensors, ready for JSON."""
        return {"weight_shape": self.weight_shape} | {
            name: getattr(self, name) for name in self.all_keywords()
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the weight's tensors and the bias, if there is one, by name."""
        bias = {} if self.bias is None else {"bias": self.bias.detach()}
        return {name: self.get_buffer(name) for name in self.buffer_names} | bias

    @classmethod
    def from_config(
        cls: type[Self], config: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> Self:
        """Build the layer from ``config()`` and ``tensors()``, which may come from an untrusted file.

        Raises:
            FormatError: a tensor is missing, has invalid content, or does not fit the configuration.
            ValueError: a setting has an impossible value.
        """
        expected = {"weight_shape", *cls.all_keywords()}
        if set(config) != expected:
            raise FormatError(
                f"expected the settings {sorted(expected)} for {cls.__name__}, got {sorted(config)}"
            )
        options = dict(config)
        weight = cls._checked(tensors, options.pop("weight_shape"))
        return cls(weight, tensors.get("bias"), **options)

    @classmethod
    def _checked(cls, tensors: Mapping[str, Tensor], shape: Any) -> WeightFormat:
        missing = [name for name in cls.buffer_names if name not in tensors]
        if missing:
            raise FormatError(
                f"expected the tensors {', '.join(cls.buffer_names)} together, {missing} missing"
            )
        weight = cls._unpack({name: tensors[name] for name in cls.buffer_names}, shape)
        if tuple(weight.shape) != tuple(shape):
            raise FormatError(f"expected a weight of shape {tuple(shape)}, got {weight.shape}")
        return weight

    # --- using ---

    @property
    def weight_format(self) -> WeightFormat:
        """The weight as a validated format that shares this layer's tensors."""
        return self._checked(self.tensors(), self.weight_shape)

    def to_dense_module(self) -> nn.Module:
        """Return the torch.nn layer with the (dequantized) weight, without the fused activation."""
        raise NotImplementedError

    def _fill_dense(self, dense: nn.Module) -> nn.Module:
        matrix = self.weight_format.to_dense()
        dense.weight = nn.Parameter(matrix.reshape(dense.weight.shape), requires_grad=False)  # type: ignore[arg-type,union-attr]
        dense.bias = _copy(self.bias)  # type: ignore[assignment]
        return dense.train(self.training)

    def _options_repr(self) -> str:
        shown = [f"bias={self.bias is not None}"]
        if "col_idx" in self.buffer_names:
            nnz = self.get_buffer("values").numel()
            size = self.weight_shape[0] * self.weight_shape[1]
            shown = [f"nnz={nnz}", f"sparsity={1 - nnz / max(size, 1):.3f}", *shown]
        defaults = {"activation": "none", "kernel": "", "x_scale": None, "x_zero_point": 0}
        options = {name: getattr(self, name) for name in self.all_keywords() if name in defaults}
        return ", ".join(
            shown
            + [f"{name}={value}" for name, value in options.items() if value != defaults[name]]
        )

    # --- torch.nn.Module ---

    def _apply(self: Self, fn: Any, recurse: bool = True) -> Self:
        scale = self._buffers.get("scale")
        super()._apply(fn, recurse)
        if scale is not None:  # model.half() must not round the scales
            self._buffers["scale"] = scale.to(self.get_buffer("scale").device)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        given = {
            name: state_dict[prefix + name]
            for name in self.buffer_names
            if prefix + name in state_dict
        }
        if given:
            try:
                self._checked(given, self.weight_shape)
            except FormatError as error:
                raise FormatError(f"{prefix.rstrip('.') or 'state_dict'}: {error}") from None
        for name, tensor in given.items():  # nnz may differ
            if tensor.shape != self.get_buffer(name).shape:
                self._buffers[name] = torch.empty_like(
                    self.get_buffer(name)[:0].expand(tensor.shape)
                )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def _current_weight(dense: nn.Module) -> Tensor:
    """The dense weight; torch.nn.utils.prune masks it only when the layer runs, so that it may be out of date."""
    for hook in dense._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == "weight":
            return cast(Tensor, hook.apply_mask(dense))
    return cast(Tensor, dense.weight)


def _copy(bias: Any) -> nn.Parameter | None:
    return (
        None
        if bias is None
        else nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    )


# The three storages. What they multiply with are rows [..., K] of activations.


class CsrStorage(CompressedModule):
    """Float CSR."""

    buffer_names = ("row_ptr", "col_idx", "values")
    row_ptr: Tensor
    col_idx: Tensor
    values: Tensor

    @classmethod
    def _compress(cls, weight: Tensor) -> CsrWeight:
        return CsrWeight.from_dense(weight)

    @classmethod
    def _unpack(cls, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> CsrWeight:
        return CsrWeight(**tensors, shape=shape)


class QuantizedStorage(CompressedModule):
    """int8 weight, and activations quantized on the way in.

    Args:
        x_scale: scale of the activations, from calibration; None scales each row by its own maximum.
        x_zero_point: the integer that stands for zero, with x_scale only.
    """

    keywords = ("x_scale", "x_zero_point")

    def __init__(
        self,
        weight: WeightFormat,
        bias: Tensor | None = None,
        *,
        x_scale: float | None = None,
        x_zero_point: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(weight, bias, **options)
        self._set_input(x_scale, x_zero_point)

    def _set_input(self, x_scale: float | None, x_zero_point: int) -> None:
        if x_scale is not None and not is_valid_scale(x_scale):
            raise ValueError(f"expected a finite x_scale above 0, got {x_scale}")
        if not INPUT_MIN <= x_zero_point <= INPUT_MAX or (x_scale is None and x_zero_point != 0):
            raise ValueError(
                f"expected an int8 x_zero_point, and 0 without x_scale, got {x_zero_point}"
            )
        self.x_scale = None if x_scale is None else float(x_scale)
        self.x_zero_point = int(x_zero_point)

    def get_extra_state(self) -> Tensor:
        """The activation scale and zero point belong to the state: they come from data. Empty if dynamic."""
        state = [] if self.x_scale is None else [self.x_scale, self.x_zero_point]
        return torch.tensor(state, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        if state.shape == (0,):
            self._set_input(None, 0)
        elif state.shape == (2,):
            self._set_input(float(state[0]), int(state[1]))
        else:
            raise FormatError(
                f"expected [x_scale, x_zero_point] or nothing, got shape {list(state.shape)}"
            )


class Int8Storage(QuantizedStorage):
    """Dense int8."""

    buffer_names = ("q", "scale")
    q: Tensor
    scale: Tensor

    @classmethod
    def _compress(cls, weight: Tensor) -> Int8Weight:
        return Int8Weight.from_dense(weight)

    @classmethod
    def _unpack(cls, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Int8Weight:
        return Int8Weight(**tensors)


class CsrInt8Storage(QuantizedStorage):
    """int8 CSR."""

    buffer_names = ("row_ptr", "col_idx", "values", "scale")
    row_ptr: Tensor
    col_idx: Tensor
    values: Tensor
    scale: Tensor

    @classmethod
    def _compress(cls, weight: Tensor) -> CsrWeight:
        return Int8Weight.from_dense(weight).to_csr()

    @classmethod
    def _unpack(cls, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> CsrWeight:
        return CsrWeight(**tensors, shape=shape)

    @classmethod
    def from_int8(cls: type[Self], module: CompressedModule) -> Self:
        """Leave the zeros out of a dense int8 layer; the outputs are the same."""
        weight = module.weight_format
        if not isinstance(weight, Int8Weight):
            raise UnsupportedError(f"expected a dense int8 layer, got {type(module).__name__}")
        return cls._rebuild(module, weight.to_csr())

    @classmethod
    def from_sparse(cls: type[Self], module: CompressedModule, **options: Any) -> Self:
        """Quantize a float CSR layer; options are x_scale and x_zero_point."""
        weight = module.weight_format
        if not isinstance(weight, CsrWeight):
            raise UnsupportedError(f"expected a CSR layer, got {type(module).__name__}")
        return cls._rebuild(module, weight.quantize(), **options)
