"""A model by name: from the zoo, from a library, from a function, with weights from a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from sparsecore import bundle, io
from sparsecore.bench.models.initialise import settle_batchnorm
from sparsecore.bench.models.zoo import ZOO, create
from sparsecore.errors import ModelError, UnsupportedError, require_extra
from sparsecore.graph.compiled import CompiledModule
from sparsecore.graph.plain import plain_module
from sparsecore.lookup import close_matches, import_by_name
from sparsecore.nn import CompressedModule, DepthwiseConv2d, put_layer

IMAGE = (3, 224, 224)
TOKENS = 128
# Samples that BatchNorm takes its statistics from.
SETTLING_BATCH = 4
WAYS = (
    "a name of the zoo, torchvision:NAME, timm:NAME, transformers:CONFIG (such as transformers:ViTConfig), a folder "
    "with config.json, or MODULE:FUNCTION; with @FILE behind it for weights, a bundle of sparsecore.save() or a "
    "state_dict"
)


@dataclass(frozen=True)
class Input:
    """The one input of a model.

    Attributes:
        shape: Of one sample, without the batch.
        vocabulary: Token ids are below it; 0 for float32.
    """

    shape: tuple[int, ...] = IMAGE
    vocabulary: int = 0

    def make(self, shape: Sequence[int]) -> Tensor:
        """Random input of a shape, batch included."""
        if self.vocabulary:
            return torch.randint(self.vocabulary, tuple(shape))
        return torch.randn(tuple(shape))


@dataclass(frozen=True)
class ModelSource:
    """A model that was found by name and is not built yet.

    Attributes:
        name: As it was asked for; `find_model` finds the same again.
        build: Makes the model, from torch's random numbers where its weights are random.
        input_of: What the built model takes; None where nobody says.
        is_random: Its weights are random.
    """

    name: str
    build: Callable[[], nn.Module]
    input_of: Callable[[nn.Module], Input | None]
    is_random: bool = True

    def make_input(self, model: nn.Module, batch: int | None = None, shape: Sequence[int] = ()) -> Tensor:
        """Make a random input.

        Args:
            model: What `build` made.
            batch: Samples; None is the shape's first size, or 1 without a shape.
            shape: With the batch; none is the model's own.

        Returns:
            The input.

        Raises:
            ModelError: There is no shape, and the model has none of its own.
        """
        found = self.input_of(model)
        if not shape:
            if found is None:
                raise ModelError(f"{self.name} does not say what it takes; give the input's shape: --input 1x3x224x224")
            shape = (1, *found.shape)
        return (found or Input()).make((batch or shape[0], *shape[1:]))


def load_model(
    name: str | ModelSource, *, batch: int | None = None, shape: Sequence[int] = (), seed: int = 0
) -> tuple[nn.Module, tuple[Tensor]]:
    """Build a model by name, with an example of its input.

    Random weights keep activations in range, and BatchNorm gets statistics of random data, see `settle_batchnorm`.
    Weights from a file and models of a function stay as they are.

    Args:
        name: A name of `ZOO`, ``torchvision:NAME``, ``timm:NAME``, ``transformers:CONFIG``, a folder with config.json
            and perhaps weights, or ``MODULE:FUNCTION``; each with ``@FILE`` behind it for weights.
        batch: Samples in the example; None is the shape's first size, or 1 without a shape.
        shape: Of the example, with the batch; none is the model's own.
        seed: Of weights and example.

    Returns:
        The model in eval mode, and its positional arguments.

    Raises:
        ModelError: The name means nothing, the shape is missing, or the model does not run on it.
        MissingExtraError: The library of the name is not installed.

    Example:
        >>> model, inputs = load_model("resnet18", shape=(1, 3, 32, 32))
        >>> model(*inputs).shape
        torch.Size([1, 1000])
    """
    source = find_model(name) if isinstance(name, str) else name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = source.build().eval()
        x = source.make_input(model, batch, shape)
        if source.is_random:
            settle(source, model, x.shape, seed)
        try:
            with torch.no_grad():
                model(x)
        except Exception as error:  # any error of anybody's code
            raise ModelError(
                f"{source.name} does not run on an input {list(x.shape)}: {_first_line(error)}; give another --input"
            ) from error
    return model, (x,)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def settle(source: ModelSource, model: nn.Module, shape: Sequence[int], seed: int) -> None:
    """`settle_batchnorm` on random input of this shape, whatever its batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        settle_batchnorm(model, source.make_input(model, SETTLING_BATCH, shape), seed=seed)


def find_model(name: str) -> ModelSource:
    """Find what a name means; nothing large is built.

    Args:
        name: See `load_model`.

    Returns:
        The source of the model.

    Raises:
        ModelError: The name means nothing.
        MissingExtraError: The library of the name is not installed.
    """
    base, has_weights, path = name.partition("@")
    source = replace(_find(base), name=name)
    if not has_weights:
        return source
    if not Path(path).is_file():
        raise ModelError(f"expected a file of weights behind @, got {path!r}")
    return replace(source, build=partial(_with_weights, source.build, Path(path)), is_random=False)


def _find(name: str) -> ModelSource:
    library, colon, rest = name.partition(":")
    if name in ZOO:
        return ModelSource(name, partial(create, name), lambda model: Input())
    if (Path(name) / "config.json").is_file():
        return _from_folder(Path(name))
    if colon:
        return _LIBRARIES.get(library, partial(_from_factory, library))(rest)
    if Path(name).is_file():
        raise ModelError(f"{name} is a file; a file holds weights only: expected MODEL@{name}")
    raise ModelError(f"no model is called {name!r}{close_matches(name, ZOO)}; expected {WAYS}")


def _from_torchvision(name: str) -> ModelSource:
    models = require_extra("torchvision.models", "zoo")
    known = models.list_models()
    if name not in known:
        raise ModelError(f"torchvision has no model {name!r}{close_matches(name, known)}")
    return ModelSource(name, partial(models.get_model, name, weights=None), lambda model: Input())


def _from_timm(name: str) -> ModelSource:
    timm = require_extra("timm", "zoo")
    if not timm.is_model(name):
        raise ModelError(f"timm has no model {name!r}{close_matches(name, timm.list_models())}")

    def input_of(model: Any) -> Input:
        return Input(tuple(model.pretrained_cfg["input_size"]))

    return ModelSource(name, partial(timm.create_model, name, pretrained=False), input_of)


def _from_transformers(name: str) -> ModelSource:
    transformers = require_extra("transformers", "zoo")
    config_class = getattr(transformers, name, None)
    if not (isinstance(config_class, type) and issubclass(config_class, transformers.PretrainedConfig)):
        configs = [known for known in dir(transformers) if known.endswith("Config")]
        raise ModelError(f"transformers has no configuration {name!r}{close_matches(name, configs)}")
    return _hugging_face(name, config_class(), None)


def _from_folder(folder: Path) -> ModelSource:
    transformers = require_extra("transformers", "zoo")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError) as error:
        raise ModelError(f"expected a transformers config.json in {folder}, got: {error}") from error
    has_weights = any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
    return _hugging_face(str(folder), config, folder if has_weights else None)


def _hugging_face(name: str, config: Any, weights: Path | None) -> ModelSource:
    if hasattr(config, "use_cache"):
        config.use_cache = False
    build = partial(_build_hugging_face, config, weights)
    return ModelSource(name, build, _hugging_face_input, is_random=weights is None)


def _build_hugging_face(config: Any, weights: Path | None) -> nn.Module:
    """The architecture that the configuration names, else a classifier of images, else the model without a head."""
    transformers = require_extra("transformers", "zoo")
    architectures = [getattr(transformers, name, None) for name in config.architectures or ()]
    classes = [*filter(None, architectures), transformers.AutoModelForImageClassification, transformers.AutoModel]
    if weights is not None:
        options = {"config": config, "local_files_only": True, "dtype": torch.float32}
        makers = [partial(cls.from_pretrained, weights, **options) for cls in classes]
    else:
        makers = [partial(getattr(cls, "from_config", cls), config) for cls in classes]
    for make in makers[:-1]:
        try:
            return make()
        except ValueError:  # this kind of model has no such head
            continue
    return makers[-1]()


def _hugging_face_input(model: Any) -> Input | None:
    config = model.config
    if model.main_input_name == "pixel_values":
        size = getattr(config, "image_size", None) or IMAGE[-1]
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return Input((getattr(config, "num_channels", 3), height, width))
    if model.main_input_name == "input_ids":
        longest = getattr(config, "max_position_embeddings", None) or TOKENS
        return Input((min(TOKENS, longest),), config.vocab_size)
    return None


def _from_factory(module: str, function: str) -> ModelSource:
    name = f"{module}:{function}"
    try:
        factory = import_by_name(name)
    except ValueError as error:
        raise ModelError(f"{error}; expected {WAYS}") from error
    return ModelSource(name, partial(_call, name, factory), lambda model: None, is_random=False)


def _call(name: str, factory: Callable[[], Any]) -> nn.Module:
    try:
        model = factory()
    except Exception as error:  # any error of anybody's code
        raise ModelError(f"{name} fails without arguments: {type(error).__name__}: {_first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected {name} to return a torch.nn.Module, got {type(model).__name__}")
    return model


_LIBRARIES: dict[str, Callable[[str], ModelSource]] = {
    "torchvision": _from_torchvision,
    "timm": _from_timm,
    "transformers": _from_transformers,
}


def _with_weights(build: Callable[[], nn.Module], path: Path) -> nn.Module:
    """Build a model and fill it from a bundle, another safetensors file, or a state_dict of torch.save()."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                is_bundle = (file.metadata() or {}).get("format") == bundle.FORMAT
        except SafetensorError as error:
            raise ModelError(f"{path}: not a complete safetensors file ({error})") from error
        if is_bundle:
            return _from_bundle(build(), path)
        state = load_file(path)
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # what comes of other files, torch says in many ways
            raise ModelError(
                f"expected a state_dict of torch.save() in {path}, got {type(error).__name__}: {_first_line(error)}"
            ) from error
    model = build()
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"{path} does not belong to this model: {error}") from error
    return model


def _from_bundle(built: nn.Module, path: Path) -> nn.Module:
    """The model of a bundle with dense layers, so that every library can run it."""
    model = io.load(path, lambda: built)
    if not isinstance(model, CompiledModule):
        return _decompressed(model)
    plain = plain_module(model)
    for name in _DESCRIPTIONS:
        if hasattr(built, name):
            setattr(plain, name, getattr(built, name))
    return plain


# What models of libraries have, from which `input_of` knows their input.
_DESCRIPTIONS = ("config", "main_input_name", "pretrained_cfg")


def _decompressed(model: nn.Module) -> nn.Module:
    """Put dense layers in the place of compressed ones."""
    root = nn.Sequential(model)
    for name, layer in list(root.named_modules()):
        if not isinstance(layer, CompressedModule | DepthwiseConv2d):
            continue
        if layer.activation != "none":
            raise UnsupportedError(
                f"expected compressed layers without an activation, got {layer.activation} in {name}"
            )
        put_layer(root, name, layer.to_dense_module())
    return root[0]
