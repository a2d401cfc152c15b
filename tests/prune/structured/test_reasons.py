"""Every layer of known architectures is listed: in a group that can be cut, or with the reason why it cannot."""

from __future__ import annotations

import pytest
import torch
from random_nets import ChannelsLast, Scale, Sum
from torch import nn

from sparsecore.bench.models import create, settle_batchnorm
from sparsecore.prune.structured import ChannelGroups, prunable_channels, prune_channels
from sparsecore.prune.structured.layers import is_producer

pytest.importorskip("torch_pruning")

OUTPUT, MIXED = "they are an output of the model", "a product of activations or a softmax mixes them"
TOKENS, IMAGE = {"input_ids": torch.tensor([[1, 5, 3, 0], [2, 2, 7, 4]])}, {"pixel_values": torch.ones(2, 3, 8, 8)}
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}


def check(model: nn.Module, inputs) -> ChannelGroups:
    """All layers are listed; what is said to be prunable is cut; nothing changes in a dry run. Returns the groups."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    groups = prunable_channels(model, inputs)
    listed = {name for group in groups.groups for name in group.layers}
    assert listed == {name for name, module in model.named_modules() if is_producer(module)}
    report = str(groups)
    assert all(group.name in report and group.reason in report for group in groups.groups)
    edits = prune_channels(model, inputs, 0.5, dry_run=True)
    assert {name for group in groups.prunable for name in group.layers} <= {
        edit.name.rpartition(".")[0] for edit in edits.tensors
    }
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    return groups


def transformer(kind: str, **more: object) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    prefix = kind.removesuffix("ForCausalLM").removesuffix("LMHeadModel").removesuffix("Model")
    config = getattr(transformers, f"{prefix}Config")(**more)
    return getattr(transformers, kind)(config).eval()


def test_gpt2():
    """Its Conv1D are linear layers; the residual stream is tied to the classifier."""
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 8, "bos_token_id": 0, "eos_token_id": 0}
    groups = check(transformer("GPT2LMHeadModel", **sizes), {**TOKENS, "use_cache": False})
    assert [group.name for group in groups.prunable] == [f"transformer.h.{layer}.mlp.c_fc" for layer in (0, 1)]
    assert MIXED in groups["transformer.h.0.attn.c_attn"].reason
    assert groups["transformer.h.0.mlp.c_proj"].reason == "transformer.wte.weight and lm_head.weight are one parameter"
    assert groups["lm_head"].reason == OUTPUT


def test_llama():
    """Queries share keys and values; gate and up lose the same neurons."""
    model = transformer("LlamaForCausalLM", **SIZES, num_key_value_heads=2, vocab_size=8)
    groups = check(model, {**TOKENS, "use_cache": False})
    for layer in (0, 1):
        mlp = f"model.layers.{layer}.mlp"
        assert groups[f"{mlp}.gate_proj"].layers == (f"{mlp}.gate_proj", f"{mlp}.up_proj")
        assert not groups[f"{mlp}.gate_proj"].reason
        assert {MIXED in groups[f"model.layers.{layer}.self_attn.{name}_proj"].reason for name in "qkv"} == {True}
    assert "the others depend on them" in groups["model.layers.0.mlp.down_proj"].reason  # RMSNorm
    assert groups["lm_head"].reason == OUTPUT


@pytest.mark.parametrize(
    ("model", "inputs", "up"),
    [
        (("BertModel", {"vocab_size": 8}), TOKENS, "intermediate.dense"),
        (("ViTModel", {"image_size": 8, "patch_size": 4}), IMAGE, "fc1"),
    ],
)
def test_encoders(model, inputs, up):
    groups = check(transformer(model[0], **SIZES, **model[1]), inputs)
    assert [group.name.endswith(up) for group in groups.prunable] == [True, True]
    reasons = {group.reason for group in groups.groups if group.reason}
    assert len(reasons) == 3
    assert all(any(known in reason for known in (OUTPUT, MIXED, "LayerNorm")) for reason in reasons)


def test_convnext_block():
    """Depthwise, LayerNorm over the channels, two linear layers, a factor for each channel."""
    block = nn.Sequential(nn.Conv2d(6, 6, 7, padding=3, groups=6), ChannelsLast(6, 24, has_norm=True), Scale(6))
    model = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), Sum(nn.Identity(), block), nn.Conv2d(6, 5, 1)).eval()
    groups = check(model, torch.randn(2, 3, 16, 16))
    assert [group.name for group in groups.prunable] == ["1.branches.1.1.up"]
    assert groups["0"].layers == ("0", "1.branches.1.0", "1.branches.1.1.down")
    assert groups["0"].reason == "LayerNorm 1.branches.1.1.norm normalises over all of them together"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("efficientnet_b0", 1),
        ("mobilenet_v1", 1),
        ("mobilenet_v3_small", 1),
        ("convnext_tiny", 5),
    ],
)
def test_networks(name, refused):
    """The classifier is refused, and ConvNeXt's four stages, whose LayerNorms see all channels."""
    model, x = create(name), torch.randn(2, 3, 64, 64)
    settle_batchnorm(model, x)
    groups = check(model.eval(), x)
    assert len(groups.groups) - len(groups.prunable) == refused
