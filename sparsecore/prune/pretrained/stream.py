"""Pruning a language model that is larger than memory, one block of its decoder at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsecore.bench.progress import Progress, silent, stage
from sparsecore.errors import ModelError
from sparsecore.prune.pretrained.blocks import find_blocks, trace_chain
from sparsecore.prune.pretrained.calibration import Calibration
from sparsecore.prune.pretrained.checkpoint import Checkpoint, load_config
from sparsecore.prune.pretrained.output import OutputFolder, split_shards
from sparsecore.prune.pretrained.run import BlockMethod, PrunedBlock, Run
from sparsecore.prune.pretrained.skeleton import Skeleton
from sparsecore.prune.pretrained.tokens import calibration_samples
from sparsecore.prune.weights import Selector, find_weights

DTYPES = ("float32", "bfloat16", "float16")
_LENGTH = 2048


@dataclass(frozen=True)
class PrunedModel:
    """A pruned model in a folder.

    Attributes:
        folder: What ``from_pretrained()`` loads.
        blocks: What was pruned of each block.
    """

    folder: Path
    blocks: tuple[PrunedBlock, ...]

    @property
    def sparsity(self) -> float:
        """Share of the pruned weights' entries that is zero, over all blocks."""
        num_entries = sum(block.num_entries for block in self.blocks)
        return 1 - sum(block.num_kept for block in self.blocks) / num_entries if num_entries else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        blocks = [asdict(block) | {"sparsity": block.sparsity} for block in self.blocks]
        return {"folder": str(self.folder), "sparsity": self.sparsity, "blocks": blocks}


def prune_pretrained(
    model: str | Path,
    out: str | Path,
    sparsity: float | None = None,
    *,
    criterion: str = "sparsegpt",
    data: str | Path | None = None,
    samples: int = 128,
    length: int | None = None,
    pattern: str = "unstructured",
    exclude: Selector | Iterable[Selector] = (),
    damping: float = 0.01,
    block_size: int = 128,
    seed: int = 0,
    dtype: str | None = None,
    progress: Progress = silent,
) -> PrunedModel:
    """Prune a transformers language model from a folder into another, in the memory of one decoder block.

    The blocks of the decoder are read, pruned on what the pruned blocks before them make of the calibration samples,
    run for the next one's inputs, and written one after another; what lies between them is kept in files under
    ``out``. Embeddings, final norm and head are copied. A run that was stopped continues with the first block that is
    not done, when it is called again with the same arguments.

    Args:
        model: A folder with config.json, safetensors and, for calibration on text, a tokenizer.
        out: A folder for the result, of the same form; must be new or empty, or hold the same run.
        sparsity: Share of entries to prune, in [0, 1); None for a keep:group pattern.
        criterion: ``"sparsegpt"``, ``"wanda"``, or ``"magnitude"``, which looks at no data.
        data: Calibration text in UTF-8, a folder of ``*.txt`` files, or token ids as ``.npy`` or ``.safetensors``.
        samples: Windows of the data to calibrate on, none overlapping another.
        length: Tokens in each; None is 2048, or the most that the model takes.
        pattern: ``"unstructured"``, ``"2:4"``, ``"4x1"``, as in :func:`sparsecore.prune`.
        exclude: What to leave alone inside the blocks: names of modules or weights, fnmatch patterns or module types.
        damping: SparseGPT: added to the diagonal of the Hessian, as a share of its mean.
        block_size: SparseGPT: columns that are updated together.
        seed: Of the choice of windows.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``, to compute and to write in; None is the model's own.
        progress: Called with the name of a step and the share done.

    Returns:
        What was pruned; ``AutoModelForCausalLM.from_pretrained(out)`` loads the model.

    Raises:
        ValueError: An argument is out of range, or a name in ``exclude`` matches nothing.
        ModelError: The folder holds no such model, or no tokenizer.
        FormatError: The data is too short or of another vocabulary; a weight or the pattern does not fit.
        UnsupportedError: The decoder does not call its blocks one after another, or is stored in another form.
        FileExistsError: ``out`` holds something else, or a run with other arguments.
        MissingExtraError: transformers is not installed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> folder = Path(tempfile.mkdtemp())
        >>> sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
        >>> LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **sizes)).save_pretrained(folder / "dense")
        >>> np.save(folder / "ids.npy", np.arange(400) % 50)
        >>> options = {"data": folder / "ids.npy", "samples": 8, "length": 32}
        >>> prune_pretrained(folder / "dense", folder / "pruned", 0.5, **options).sparsity
        0.5

    Reference:
        Frantar & Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, ICML 2023, and
        Sun et al., A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024, both of which prune
        block by block in this way.
    """
    source, folder = Path(model), Path(out)
    OutputFolder.require_usable(folder)
    checkpoint = Checkpoint.open(source)
    config = load_config(source)
    skeleton = Skeleton.build(config, checkpoint, _torch_dtype(dtype, config, checkpoint))
    method = BlockMethod(criterion, sparsity, pattern, damping, block_size)
    prefix, modules = find_blocks(skeleton.model)
    blocks = [f"{prefix}.{index}" for index in range(len(modules))]
    weights = [weight for weight in find_weights(skeleton.model, exclude) if weight.name.startswith(f"{prefix}.")]
    method.check(weights)
    tokens = _samples(data, source, config, samples, length, seed) if method.needs_data else None

    with stage(progress, "read the model's files"):
        arguments = {**asdict(method), "weights": sorted(weight.name for weight in weights)}
        arguments |= {"dtype": str(skeleton.model.dtype), "model": checkpoint.sha256(), "samples": _sha256(tokens)}
    output = OutputFolder(folder, arguments, split_shards(checkpoint.files, skeleton.model.base_model_prefix, blocks))
    calibration = None
    if tokens is not None:
        with stage(progress, "trace the decoder"):
            calibration = Calibration(skeleton, trace_chain(skeleton, tokens[0]), tokens, output.calibration)
    done = [PrunedBlock(**block) for block in output.begin()]
    if not output.is_complete:
        run = Run(skeleton, blocks, calibration, method, arguments["weights"], output)
        done = run.prune_blocks(done, progress)
        run.write_others()
        output.finish(source, skeleton.model.dtype if dtype else None)
    return PrunedModel(folder, tuple(done))


def _torch_dtype(dtype: str | None, config: Any, checkpoint: Checkpoint) -> torch.dtype:
    """What was asked for, or what ``from_pretrained()`` would load."""
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"expected one of {', '.join(DTYPES)} as dtype, got {dtype!r}")
    own = config.dtype if isinstance(config.dtype, torch.dtype) else checkpoint.dtype()
    return own if dtype is None else getattr(torch, dtype)


def _samples(data: str | Path | None, source: Path, config: Any, samples: int, length: int | None, seed: int) -> Tensor:
    longest = getattr(config, "max_position_embeddings", None)
    if data is None:
        raise ValueError("expected calibration data for this criterion, got none; give a text file")
    if length is not None and longest is not None and length > longest:
        raise ModelError(f"expected samples of at most {longest} tokens, which the model takes, got {length}")
    length = length or min(_LENGTH, longest or _LENGTH)
    vocabulary = config.vocab_size
    return calibration_samples(Path(data), source, vocabulary, samples=samples, length=length, seed=seed)


def _sha256(samples: Tensor | None) -> str | None:
    return None if samples is None else hashlib.sha256(samples.numpy().tobytes()).hexdigest()
