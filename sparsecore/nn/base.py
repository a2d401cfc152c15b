"""What all compressed layers share: weights as buffers, validated loading, configuration.

A layer is a geometry (linear.py, conv.py) times a storage (storage.py), which is what fills in the
methods that are not implemented here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.formats import BinaryWeight, CodebookWeight, CsrWeight, Int4Weight, Int8Weight, TernaryWeight
from sparsecore.formats.check import FLOAT_DTYPES, check_shape, check_tensor
from sparsecore.nn.dense import DenseLayer
from sparsecore.ops.cuda import check_cuda
from sparsecore.ops.shared import check_activation

WeightFormat: TypeAlias = BinaryWeight | CodebookWeight | CsrWeight | Int4Weight | Int8Weight | TernaryWeight
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

    weight_type: ClassVar[type[WeightFormat]]
    buffer_names: ClassVar[tuple[str, ...]]
    runs_on_cuda: ClassVar[bool] = False
    takes_16_bits: ClassVar[bool] = False  # its operations take bfloat16 and float16 activations
    keywords: ClassVar[tuple[str, ...]] = ("activation", "kernel")
    compression_keywords: ClassVar[tuple[str, ...]] = ()  # options of from_dense() that _compress() takes
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
        if not isinstance(weight, self.weight_type):
            raise FormatError(
                f"expected a {self.weight_type.__name__}, got {type(weight).__name__}; "
                f"{type(self).__name__}.from_dense() takes a torch.nn layer"
            )
        check_activation(activation)
        if not isinstance(kernel, str):
            raise ValueError(f"expected the name of a kernel, got {kernel!r}")
        if bias is not None:
            check_tensor("bias", bias, FLOAT_DTYPES, weight.shape[:1])
        self.weight_shape = weight.shape
        self.activation = activation
        self.kernel = kernel
        self._hold(weight)
        if bias is not None and not isinstance(bias, nn.Parameter):
            bias = nn.Parameter(bias.contiguous())
        self.register_parameter("bias", bias)

    # --- what storage and geometry fill in ---

    def _hold(self, weight: WeightFormat) -> None:
        """Register the weight's tensors."""
        for name in self.buffer_names:
            self.register_buffer(name, getattr(weight, name))

    @classmethod
    def _compress(cls, weight: Tensor) -> WeightFormat:
        """Pack a dense weight; further arguments are those of compression_keywords."""
        raise NotImplementedError

    @classmethod
    def _unpack(cls, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> WeightFormat:
        """Build the validated format from the buffers."""
        raise NotImplementedError

    @classmethod
    def _geometry(cls, dense: nn.Module) -> dict[str, Any]:
        """Constructor arguments that describe a dense layer."""
        return {}

    def _check_input(self, x: Tensor) -> None:
        """Compare K with the weight's: CSR arrays would take any that is large enough."""
        raise NotImplementedError

    def _run(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Do the layer on float32 activations, or on 16-bit ones if it takes them."""
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
        compression = {name: options[name] for name in cls.compression_keywords if name in options}
        options = {name: value for name, value in options.items() if name not in compression}
        compress: Any = cls._compress
        weight = compress(cls._weight_of(dense, options), **compression)
        if isinstance(dense, DenseLayer):
            options = {"activation": dense.activation} | options
        return cls.with_weight(dense, weight, **options)

    @classmethod
    def with_weight(cls: type[Layer], dense: nn.Module, weight: WeightFormat, **options: Any) -> Layer:
        """Make the layer from a stored weight, and all else from its dense form.

        Args:
            dense: an instance of ``dense_type``, whose weight is not read.
            weight: as for the constructor.
            options: as for ``from_dense()``.
        """
        return cls(weight, _copy(dense.bias), **cls._geometry(dense), **options)

    @classmethod
    def _weight_of(cls, dense: nn.Module, options: Mapping[str, Any]) -> Tensor:
        """The weight to compress, with the options of ``from_dense()``."""
        return _current_weight(dense)

    @classmethod
    def _rebuild(cls: type[Layer], module: CompressedModule, weight: WeightFormat, **options: Any) -> Layer:
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
        return self._stored() | bias

    def _stored(self) -> dict[str, Tensor]:
        """The tensors of the stored format."""
        return {name: self.get_buffer(name) for name in self.buffer_names}

    @classmethod
    def from_config(cls: type[Layer], config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Layer:
        """Build the layer from ``config()`` and ``tensors()``, which may come from anywhere.

        Raises:
            FormatError: a tensor or setting is missing, invalid, or does not fit the others.
            ValueError: a setting has an impossible value.
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

    def _weight(self) -> list[Tensor]:
        """The buffers in order; nn.Module's __getattr__ would cost 0.3 us for each."""
        buffers = cast("dict[str, Tensor]", self._buffers)
        return [buffers[name] for name in self.buffer_names]

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Do the layer; a residual of the output's shape and dtype is added before the activation."""
        self._check_input(x)
        if x.dtype == torch.float32 or self.takes_16_bits:
            return self._run(x, residual)
        return self._run(widen(x), None if residual is None else widen(residual)).to(x.dtype)

    @property
    def weight_format(self) -> WeightFormat:
        """The weight as a validated format that shares this layer's tensors."""
        return self._checked(self.tensors(), self.weight_shape)

    @property
    def weight(self) -> Tensor:
        """The (dequantized) dense weight, made anew by every access, for code that reads a child's weight."""
        dense = self.to_dense_module().weight
        assert isinstance(dense, Tensor)
        return dense.detach()

    def count_nonzero(self) -> int:
        """Count the weight's entries that are not zero."""
        return int(torch.count_nonzero(self.get_buffer("values")))

    def _fill_dense(self, dense: nn.Linear | nn.Conv2d) -> None:
        matrix = self.weight_format.to_dense()
        dense.weight = nn.Parameter(matrix.reshape(dense.weight.shape))
        dense.bias = _copy(self.bias)
        dense.train(self.training)

    def _num_stored(self) -> int:
        """Values in memory, zeros among them included."""
        return self.get_buffer("values").numel()

    def _settings_repr(self) -> str:
        shown: dict[str, object] = {"bias": self.bias is not None}
        if "values" in self.buffer_names:
            nnz = self._num_stored()
            numel = self.weight_shape[0] * self.weight_shape[1]
            shown = {"nnz": nnz, "sparsity": f"{1 - nnz / max(numel, 1):.3f}"} | shown
        usual = {"activation": "none", "kernel": "", "x_scale": None, "x_zero_point": 0}
        for name in self.all_keywords():
            if name in usual and getattr(self, name) != usual[name]:
                shown[name] = getattr(self, name)
        return ", ".join(f"{name}={value}" for name, value in shown.items())

    # --- torch.nn.Module ---

    def _apply(self: Layer, fn: Any, recurse: bool = True) -> Layer:
        self._check_device(fn(torch.empty(0)).device)
        kept = {name: self._buffers[name] for name in self._fixed_dtype_names()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in kept.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        return self

    def _check_device(self, device: torch.device) -> None:
        """Refuse to move to a GPU before anything has moved."""
        if device.type != "cuda":
            return
        if not self.runs_on_cuda:
            raise UnsupportedError(
                f"expected a device with kernels for {type(self).__name__}, got {device}; "
                "move the dense model and make a SparseLinear of its layers"
            )
        check_cuda(device, type(self).__name__)

    def _fixed_dtype_names(self) -> tuple[str, ...]:
        """Buffers that model.half() must not round."""
        return ("scale",) if "scale" in self._buffers else ()

    def _checked_entry(self, prefix: str, given: Mapping[str, Tensor]) -> WeightFormat:
        """Validate what a state_dict holds for this layer; errors name the layer."""
        try:
            return self._checked(given, self.weight_shape)
        except FormatError as error:
            raise FormatError(f"{prefix.rstrip('.') or 'state_dict'}: {error}") from None

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        names = [name for name in self.buffer_names if prefix + name in state_dict]
        given = {name: state_dict[prefix + name] for name in names}
        if given:
            self._checked_entry(prefix, given)
        for name, tensor in given.items():  # nnz may differ
            buffer = self.get_buffer(name)
            if tensor.shape != buffer.shape:
                self._buffers[name] = buffer.new_empty(tensor.shape)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def put_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of another one, and make its parents call it."""
    model.set_submodule(name, layer)
    if isinstance(layer, CompressedModule):
        leave_fast_path(model, name)


def leave_fast_path(model: nn.Module, name: str) -> None:
    """Make the parents of a layer call it.

    nn.TransformerEncoderLayer has a fast path that multiplies with its children's weights itself; it takes it for
    relu and gelu only, so it is told that its activation is neither. nn.TransformerEncoder would pack padded
    batches as nested tensors for that path.
    """
    path = name.split(".")
    for parent in (model.get_submodule(".".join(path[:end])) for end in range(len(path))):
        if isinstance(parent, nn.TransformerEncoderLayer):
            parent.activation_relu_or_gelu = 0
        if isinstance(parent, nn.TransformerEncoder):
            parent.use_nested_tensor = False


def _current_weight(dense: nn.Module) -> Tensor:
    """The weight of a dense layer; torch.nn.utils.prune masks it only when the layer runs."""
    for hook in dense._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == "weight":
            return cast(Tensor, hook.apply_mask(dense))
    return cast(Tensor, dense.weight)


def _copy(bias: Any) -> nn.Parameter | None:
    if bias is None:
        return None
    return nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)


_NARROW = (torch.float16, torch.bfloat16)


def widen(tensor: Tensor) -> Tensor:
    """16-bit floats to float32; the operations say what is wrong with anything else."""
    return tensor.float() if tensor.dtype in _NARROW else tensor
