"""What all compressed layers share: weights as buffers, validated loading, configuration.

A layer is a geometry (linear.py, conv.py) times one of the three storages below. A storage names
its buffers, makes them from a dense weight, and multiplies rows of activations with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from sparsecore._native import raw
from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.formats import CsrWeight, Int8Weight
from sparsecore.formats.check import FLOAT_DTYPES, check_shape, check_tensor
from sparsecore.ops import ACTIVATIONS
from sparsecore.quantize.affine import INPUT_MAX, INPUT_MIN, is_valid_scale

WeightFormat: TypeAlias = CsrWeight | Int8Weight
Layer = TypeVar("Layer", bound="CompressedModule")


class CompressedModule(nn.Module):
    """A layer that holds its weight in a stored format and in no other.

    The format's tensors are buffers under their own names and ``bias`` is a parameter or None, so
    that ``state_dict()`` round-trips; loading validates them, and takes any number of non-zeros.
    16-bit activations, values and biases are widened to float32, and the output has the type of x.

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
    bias: nn.Parameter | None

    def __init__(
        self,
        weight: WeightFormat,
        bias: Tensor | None = None,
        *,
        activation: str = "none",
        kernel: str = "",
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"expected an activation of {ACTIVATIONS}, got {activation!r}")
        if not isinstance(kernel, str):
            raise ValueError(f"expected the name of a kernel, got {kernel!r}")
        if bias is not None:
            check_tensor("bias", bias, FLOAT_DTYPES, weight.shape[:1])
        self.weight_shape = weight.shape
        self.activation = activation
        self.kernel = kernel
        for name in self.buffer_names:
            self.register_buffer(name, getattr(weight, name))
        if bias is not None and not isinstance(bias, nn.Parameter):
            bias = nn.Parameter(bias)
        self.bias = bias

    # --- what storage and geometry fill in ---

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
        return {}

    def _multiply(self, x: Tensor, group: int = 0, groups: int = 1) -> Tensor:
        """Multiply rows of activations with one of equal groups of rows of the weight."""
        raise NotImplementedError

    def _check_input(self, x: Tensor) -> None:
        """Compare K with the weight's: CSR arrays would take any that is large enough."""
        raise NotImplementedError

    def _run(self, x: Tensor) -> Tensor:
        """Do the layer on float32 activations."""
        raise NotImplementedError

    def to_dense_module(self) -> nn.Module:
        """Return the torch.nn layer with the (dequantized) weight, without the activation."""
        raise NotImplementedError

    # --- building ---

    @classmethod
    def from_dense(cls: type[Layer], dense: nn.Module, **options: Any) -> Layer:
        """Make the layer from its dense form, which stays as it is.

        Args:
            dense: the torch.nn layer; pruning by torch.nn.utils.prune is applied.
            options: activation, kernel, and for int8 layers x_scale and x_zero_point.

        Raises:
            FormatError: the weight cannot be stored, for example NaN in int8.
            UnsupportedError: another class of layer, or a setting of it that the kernels lack.
        """
        if not isinstance(dense, cls.dense_type):
            wanted = cls.dense_type.__name__
            raise UnsupportedError(f"expected a torch.nn.{wanted}, got {type(dense).__name__}")
        weight = cls._compress(_current_weight(dense))
        return cls(weight, _copy(dense.bias), **cls._geometry(dense), **options)

    @classmethod
    def _rebuild(
        cls: type[Layer], module: CompressedModule, weight: WeightFormat, **options: Any
    ) -> Layer:
        """Make the same layer with another weight; the settings that both classes have stay."""
        shared = set(cls.all_keywords()) & set(module.all_keywords()) - {"kernel"}
        settings = {name: getattr(module, name) for name in shared}
        return cls(weight, _copy(module.bias), **settings | options)

    @classmethod
    def all_keywords(cls) -> tuple[str, ...]:
        """Return the constructor's arguments besides weight and bias, which are attributes too."""
        return tuple(name for base in cls.__mro__ for name in vars(base).get("keywords", ()))

    def config(self) -> dict[str, Any]:
        """Return everything but the tensors, ready for JSON."""
        settings = {name: getattr(self, name) for name in self.all_keywords()}
        return {"weight_shape": self.weight_shape} | settings

    def tensors(self) -> dict[str, Tensor]:
        """Return the weight's tensors and the bias, if there is one, by name."""
        bias = {} if self.bias is None else {"bias": self.bias.detach()}
        return {name: self.get_buffer(name) for name in self.buffer_names} | bias

    @classmethod
    def from_config(
        cls: type[Layer], config: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> Layer:
        """Build the layer from ``config()`` and ``tensors()``, which may come from anywhere.

        Raises:
            FormatError: A tensor or setting is missing, invalid, or does not fit the others.
            ValueError: A setting has an impossible value.
        """
        expected = {"weight_shape", *cls.all_keywords()}
        if set(config) != expected:
            raise FormatError(f"expected settings {sorted(expected)}, got {sorted(config)}")
        options = dict(config)
        weight = cls._checked(tensors, options.pop("weight_shape"))
        return cls(weight, tensors.get("bias"), **options)

    @classmethod
    def _checked(cls, tensors: Mapping[str, Tensor], weight_shape: object) -> WeightFormat:
        shape = check_shape(weight_shape)
        if missing := [name for name in cls.buffer_names if name not in tensors]:
            raise FormatError(f"expected the tensors {cls.buffer_names} together, not {missing}")
        weight = cls._unpack({name: tensors[name] for name in cls.buffer_names}, shape)
        if weight.shape != shape:
            raise FormatError(f"expected a weight of shape {shape}, got {weight.shape}")
        return weight

    # --- using ---

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        if x.dtype == torch.float32:
            return self._run(x)
        return self._run(_widen(x)).to(x.dtype)

    @property
    def weight_format(self) -> WeightFormat:
        """The weight as a validated format that shares this layer's tensors."""
        return self._checked(self.tensors(), self.weight_shape)

    def _fill_dense(self, dense: nn.Linear | nn.Conv2d) -> None:
        matrix = self.weight_format.to_dense()
        dense.weight = nn.Parameter(matrix.reshape(dense.weight.shape))
        dense.bias = _copy(self.bias)
        dense.train(self.training)

    def _settings_repr(self) -> str:
        shown: dict[str, object] = {"bias": self.bias is not None}
        if "values" in self.buffer_names:
            nnz = self.get_buffer("values").numel()
            numel = self.weight_shape[0] * self.weight_shape[1]
            shown = {"nnz": nnz, "sparsity": f"{1 - nnz / max(numel, 1):.3f}"} | shown
        usual = {"activation": "none", "kernel": "", "x_scale": None, "x_zero_point": 0}
        for name in self.all_keywords():
            if name in usual and getattr(self, name) != usual[name]:
                shown[name] = getattr(self, name)
        return ", ".join(f"{name}={value}" for name, value in shown.items())

    # --- torch.nn.Module ---

    def _apply(self: Layer, fn: Any, recurse: bool = True) -> Layer:
        scale = self._buffers.get("scale")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if scale is not None:  # model.half() must not round the scales
            self._buffers["scale"] = scale.to(self.get_buffer("scale").device)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        names = [name for name in self.buffer_names if prefix + name in state_dict]
        given = {name: state_dict[prefix + name] for name in names}
        if given:
            try:
                self._checked(given, self.weight_shape)
            except FormatError as error:
                raise FormatError(f"{prefix.rstrip('.') or 'state_dict'}: {error}") from None
        for name, tensor in given.items():  # nnz may differ
            buffer = self.get_buffer(name)
            if tensor.shape != buffer.shape:
                self._buffers[name] = buffer.new_empty(tensor.shape)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def _current_weight(dense: nn.Module) -> Tensor:
    """The weight of a dense layer; torch.nn.utils.prune masks it only when the layer runs."""
    for hook in dense._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == "weight":
            return cast(Tensor, hook.apply_mask(dense))  # type: ignore[no-untyped-call]
    return cast(Tensor, dense.weight)


def _copy(bias: Any) -> nn.Parameter | None:
    if bias is None:
        return None
    return nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)


_NARROW = (torch.float16, torch.bfloat16)


def _widen(tensor: Tensor) -> Tensor:
    """16-bit floats to float32; the operations say what is wrong with anything else."""
    return tensor.float() if tensor.dtype in _NARROW else tensor


# --- the three storages ---


class CsrStorage(CompressedModule):
    """Float CSR."""

    buffer_names: ClassVar[tuple[str, ...]] = ("row_ptr", "col_idx", "values")
    row_ptr: Tensor
    col_idx: Tensor
    values: Tensor

    @classmethod
    def _compress(cls, weight: Tensor) -> CsrWeight:
        return CsrWeight.from_dense(weight)

    @classmethod
    def _unpack(cls, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> CsrWeight:
        return CsrWeight(**tensors, shape=shape)

    def _arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        # Looked up in the dict, for nn.Module's __getattr__ costs 0.3 us for each tensor.
        buffers, bias = self._buffers, self._parameters["bias"]
        return (
            buffers["row_ptr"],
            buffers["col_idx"],
            _widen(buffers["values"]),
            None if bias is None else _widen(bias),
        )


class QuantizedStorage(CompressedModule):
    """int8 weight, and activations quantized on the way in. There are no gradients.

    Args:
        x_scale: scale of the activations, from calibration; None scales each row by its maximum.
        x_zero_point: the int8 value that stands for zero, with x_scale.
    """

    keywords: ClassVar[tuple[str, ...]] = ("x_scale", "x_zero_point")

    def __init__(
        self,
        weight: WeightFormat,
        bias: Tensor | None = None,
        *,
        x_scale: float | None = None,
        x_zero_point: int = 0,
        **options: Any,
    ) -> None:
        if bias is not None:
            bias = nn.Parameter(bias.detach(), requires_grad=False)
        super().__init__(weight, bias, **options)
        self.x_scale, self.x_zero_point = _checked_input(x_scale, x_zero_point)

    def get_extra_state(self) -> Tensor:
        """Return [x_scale, x_zero_point], which come from data like weights; empty if dynamic."""
        state = [] if self.x_scale is None else [self.x_scale, self.x_zero_point]
        return torch.tensor(state, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.x_scale, self.x_zero_point = _input_from_state(state)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        if (state := state_dict.get(prefix + "_extra_state")) is not None:
            _input_from_state(state)  # raises before anything is changed
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _shared_arguments(self, group: int, groups: int) -> tuple[Any, ...]:
        """What both int8 operations take after the weight: bias, input, activation, kernel."""
        bias = None if self.bias is None else _rows(_widen(self.bias), group, groups)
        return bias, self.x_scale, self.x_zero_point, self.activation, self.kernel


def _checked_input(x_scale: Any, x_zero_point: Any) -> tuple[float | None, int]:
    if x_scale is not None and not is_valid_scale(x_scale):
        raise ValueError(f"expected a finite x_scale above 0, got {x_scale}")
    if type(x_zero_point) is not int or not INPUT_MIN <= x_zero_point <= INPUT_MAX:
        raise ValueError(f"expected an int8 x_zero_point, got {x_zero_point!r}")
    if x_scale is None and x_zero_point != 0:
        raise ValueError(f"expected an x_scale with x_zero_point={x_zero_point}")
    return None if x_scale is None else float(x_scale), x_zero_point


def _input_from_state(state: object) -> tuple[float | None, int]:
    values = state.tolist() if isinstance(state, Tensor) and state.dim() == 1 else None
    if values == []:
        return None, 0
    if values is None or len(values) != 2 or not float(values[1]).is_integer():
        raise FormatError(f"expected extra state [x_scale, x_zero_point] or nothing, got {state}")
    try:
        return _checked_input(values[0], int(values[1]))
    except ValueError as error:
        raise FormatError(str(error)) from None


def _rows(tensor: Tensor, group: int, groups: int) -> Tensor:
    """One of equal parts of a tensor."""
    size = tensor.shape[0] // groups
    return tensor if groups == 1 else tensor[group * size : (group + 1) * size]


class Int8Storage(QuantizedStorage):
    """Dense int8."""

    buffer_names: ClassVar[tuple[str, ...]] = ("q", "scale")
    q: Tensor
    scale: Tensor

    @classmethod
    def _compress(cls, weight: Tensor) -> Int8Weight:
        return Int8Weight.from_dense(weight)

    @classmethod
    def _unpack(cls, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> Int8Weight:
        return Int8Weight(**tensors)

    def _multiply(self, x: Tensor, group: int = 0, groups: int = 1) -> Tensor:
        weight = (_rows(tensor, group, groups) for tensor in (self.q, self.scale))
        return cast(Tensor, raw.gemm_int8(x, *weight, *self._shared_arguments(group, groups)))


class CsrInt8Storage(QuantizedStorage):
    """int8 CSR."""

    buffer_names: ClassVar[tuple[str, ...]] = ("row_ptr", "col_idx", "values", "scale")
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
    def from_int8(cls: type[Layer], module: nn.Module) -> Layer:
        """Leave the zeros out of a dense int8 layer; the outputs stay equal."""
        if not isinstance(module, Int8Storage):
            raise UnsupportedError(f"expected a dense int8 layer, got {type(module).__name__}")
        return cls._rebuild(module, Int8Weight(module.q, module.scale).to_csr())

    @classmethod
    def from_sparse(cls: type[Layer], module: nn.Module, **options: Any) -> Layer:
        """Quantize a float CSR layer; options are x_scale and x_zero_point."""
        if not isinstance(module, CsrStorage):
            raise UnsupportedError(f"expected a float CSR layer, got {type(module).__name__}")
        weight = CsrWeight(module.row_ptr, module.col_idx, module.values, module.weight_shape)
        return cls._rebuild(module, weight.quantize(), **options)

    def _multiply(self, x: Tensor, group: int = 0, groups: int = 1) -> Tensor:
        weight = (*self._group(group, groups), _rows(self.scale, group, groups))
        arguments = self._shared_arguments(group, groups)
        return cast(Tensor, raw.spmm_csr_int8(x, *weight, *arguments))

    def _group(self, group: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
        """row_ptr, col_idx and values of one group of rows."""
        assert groups == 1
        return self.row_ptr, self.col_idx, self.values
