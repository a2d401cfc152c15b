"""Masks keep zeros zero, merge, save and compare."""

import copy
import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from torch.optim import (
    LBFGS,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
)

from sparsecore.errors import FormatError, UnsupportedError
from sparsecore.prune import Masks, MaskStatistics, prune

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": partial(SGD, lr=0.1),
    "sgd fused": partial(SGD, lr=0.1, momentum=0.9, fused=True),
    "momentum": partial(SGD, lr=0.1, momentum=0.9),
    "weight decay": partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": partial(SGD, lr=0.1, momentum=0.9, nesterov=True),
    "adam": partial(Adam, lr=0.01),
    "adam amsgrad": partial(Adam, lr=0.01, amsgrad=True, foreach=True),
    "adam fused": partial(Adam, lr=0.01, fused=True),
    "adamw": partial(AdamW, lr=0.01, weight_decay=0.1),
    "adamw foreach": partial(AdamW, lr=0.01, weight_decay=0.1, foreach=True),
    "radam": partial(RAdam, lr=0.01),
    "adamax": partial(Adamax, lr=0.01),
    "adadelta": partial(Adadelta, lr=0.5),
    "nadam": partial(NAdam, lr=0.01),
    "rmsprop": partial(RMSprop, lr=0.01, momentum=0.9, centered=True),
    "adagrad": partial(Adagrad, lr=0.01),
    "adagrad fused": partial(Adagrad, lr=0.01, fused=True),
}


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.ReLU(), nn.Linear(16, 5))


def backward(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model(torch.randn(8, 1, 4, 4, generator=generator)).square().mean().backward()


def masked_state(masks: Masks, optimizer: Optimizer) -> list[Tensor]:
    """Optimizer state tensors at the pruned entries."""
    return [
        tensor[~mask]
        for name, mask in masks.items()
        for tensor in optimizer.state[masks.model.get_parameter(name)].values()
        if isinstance(tensor, Tensor) and tensor.shape == mask.shape
    ]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_equals_training_under_torch_masks(name: str) -> None:
    """Kept weights move exactly as if the others did not exist; pruned ones stay zero."""
    ours, theirs = small_net(), small_net()
    ours_optimizer = OPTIMIZERS[name](ours.parameters())
    theirs_optimizer = OPTIMIZERS[name](theirs.parameters())
    for step in range(3):  # momentum gathers before the pruning
        for model, optimizer in ((ours, ours_optimizer), (theirs, theirs_optimizer)):
            optimizer.zero_grad()
            backward(model, step)
            optimizer.step()
    masks = prune(ours, 0.6)
    masks.attach(ours_optimizer)
    for layer in ("0", "3"):
        torch_prune.custom_from_mask(theirs.get_submodule(layer), "weight", masks[f"{layer}.weight"].float())
    for step in range(5):
        for model, optimizer in ((ours, ours_optimizer), (theirs, theirs_optimizer)):
            optimizer.zero_grad()
            backward(model, 10 + step)
            backward(model, 20 + step)  # gradient accumulation
            optimizer.step()
        for layer in ("0", "3"):
            mask, weight = masks[f"{layer}.weight"], ours.get_parameter(f"{layer}.weight")
            assert not weight[~mask].any()
            assert weight[mask].all()
            theirs_kept = theirs.get_submodule(layer).weight_orig[mask]
            assert torch.equal(weight[mask], theirs_kept)
        assert not any(state.any() for state in masked_state(masks, ours_optimizer))
    if name != "sgd":
        assert masked_state(masks, ours_optimizer)


def test_zeros_stay_under_an_optimizer_with_factored_state() -> None:
    """Adafactor keeps a moment per row and column, where no entry can be cleared."""
    model = small_net()
    optimizer = Adafactor(model.parameters(), lr=0.1, weight_decay=0.1)
    masks = prune(model, 0.5)
    masks.attach(optimizer)
    for step in range(3):
        backward(model, step)
        optimizer.step()
        assert Masks.from_model(model) == masks


def test_an_optimizer_that_evaluates_within_a_step_is_refused() -> None:
    model = small_net()
    masks = prune(model, 0.5)
    optimizer = LBFGS(model.parameters())
    with pytest.raises(UnsupportedError, match="LBFGS evaluates the model within a step"):
        masks.attach(optimizer)
    assert not optimizer._optimizer_step_post_hooks


def test_two_optimizers_of_one_model() -> None:
    model = small_net()
    optimizers = [SGD(model[0].parameters(), lr=0.1, momentum=0.9), AdamW(model[3].parameters(), lr=0.01)]
    masks = prune(model, 0.5)
    for optimizer in optimizers:
        masks.attach(optimizer)
    for step in range(3):
        backward(model, step)
        optimizers[step % 2].step()
        assert Masks.from_model(model) == masks
    for optimizer in optimizers:
        state = [t for s in optimizer.state.values() for t in s.values() if t.dim() > 1]
        assert state
        assert not any(t[~mask].any() for t in state for mask in masks.values() if mask.shape == t.shape)


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_scaled_gradients_and_a_skipped_step(fused: bool) -> None:
    """Under bfloat16 autocast with a GradScaler: a step with an infinite gradient is skipped, and moves nothing."""
    model = small_net()
    optimizer = AdamW(model.parameters(), lr=0.01, weight_decay=0.1, fused=fused)
    masks = prune(model, 0.5)
    masks.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for step in range(6):
        optimizer.zero_grad()
        for half in range(2):  # gradient accumulation
            generator = torch.Generator().manual_seed(2 * step + half)
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(torch.randn(8, 1, 4, 4, generator=generator)).float().square().mean()
            scaler.scale(loss).backward()
        skipped = step in (1, 4)
        if skipped:
            model[3].weight.grad[0, 0] = float("inf")
        before = model[3].weight.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(model[3].weight, before) == skipped
        assert Masks.from_model(model) == masks
        assert not any(state.any() for state in masked_state(masks, optimizer))
    assert scaler.get_scale() == 2.0
    assert masked_state(masks, optimizer)


def test_a_wrapper_stands_for_the_model_inside() -> None:
    model = small_net()
    wrapped = torch.compile(nn.DataParallel(model), backend="eager")
    masks = prune(wrapped, {"0": 0.5, "3.weight": 0.7})
    assert list(masks) == ["0.weight", "3.weight"]
    assert masks.model is model
    assert Masks.from_model(wrapped) == masks == Masks(wrapped, masks)
    again = prune(wrapped, 0.8, exclude="0", masks=masks)
    assert again & masks == again
    optimizer = AdamW(wrapped.parameters(), lr=0.01)
    again.attach(optimizer)
    for step in range(2):
        backward(wrapped, step)
        optimizer.step()
        assert Masks.from_model(model) == again


def test_exact_resume_through_files(tmp_path: Path) -> None:
    """Model and masks in one safetensors file, the optimizer by torch.save."""

    def train(model: nn.Module, optimizer: Optimizer, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            backward(model, step)
            optimizer.step()

    model = small_net()
    optimizer = AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    masks = prune(model, 0.7)
    masks.attach(optimizer)
    train(model, optimizer, range(3))
    groups = {"model": model.state_dict(), "masks": masks.state_dict()}
    tensors = {f"{group} {name}": tensor for group, state in groups.items() for name, tensor in state.items()}
    save_file(tensors, tmp_path / "checkpoint.safetensors")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    train(model, optimizer, range(3, 6))

    torch.manual_seed(1)
    other = small_net()
    loaded = load_file(tmp_path / "checkpoint.safetensors")
    states = {
        group: {name.removeprefix(f"{group} "): t for name, t in loaded.items() if name.startswith(group)}
        for group in groups
    }
    other.load_state_dict(states["model"])
    other_optimizer = AdamW(other.parameters(), lr=0.01, weight_decay=0.1)
    other_optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    Masks(other, states["masks"]).attach(other_optimizer)
    train(other, other_optimizer, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert Masks.from_model(other) == masks


def test_a_removed_handle_lets_weights_free() -> None:
    model = small_net()
    optimizer = SGD(model.parameters(), lr=0.1)
    masks = prune(model, 0.5)
    masks.attach(optimizer).remove()
    backward(model, 0)
    optimizer.step()
    assert model[3].weight[~masks["3.weight"]].any()
    masks.apply()
    assert not model[3].weight[~masks["3.weight"]].any()


def test_nan_does_not_outlive_the_mask() -> None:
    model = small_net()
    masks = prune(model, 0.5)
    model[3].weight.data.fill_(float("nan"))
    masks.apply()
    assert not model[3].weight[~masks["3.weight"]].any()


def test_optimizer_of_another_model_is_an_error() -> None:
    masks = prune(small_net(), 0.5)
    with pytest.raises(TypeError, match=r"expected a torch\.optim\.Optimizer, got NoneType"):
        masks.attach(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="holds none of the masked weights"):
        masks.attach(SGD(small_net().parameters(), lr=0.1))


def test_masks_survive_weights_replaced_by_load_state_dict() -> None:
    model = small_net()
    masks = prune(model, 0.5)
    model.load_state_dict(small_net().state_dict(), assign=True)
    masks.apply()
    assert Masks.from_model(model) == masks


def test_from_model_reads_zeros() -> None:
    model = small_net()
    model[3].weight.data[:, ::2] = 0
    masks = Masks.from_model(model)
    assert masks["0.weight"].all()
    assert masks["3.weight"].tolist() == [[False, True] * 8] * 5
    assert list(Masks.from_model(model, exclude="0")) == ["3.weight"]


def test_from_model_folds_torch_pruning() -> None:
    model = small_net()
    torch_prune.l1_unstructured(model[3], "weight", amount=0.4)
    expected = model[3].weight_mask.bool()
    masks = Masks.from_model(model)
    assert torch.equal(masks["3.weight"], expected)
    assert "3.weight" in dict(model.named_parameters())


def test_statistics_and_repr() -> None:
    model = small_net()
    masks = prune(model, {"0": 0.5, "3": 0.9})
    assert masks.statistics() == {
        "0.weight": MaskStatistics((4, 1, 3, 3), 36, 18),
        "3.weight": MaskStatistics((5, 16), 80, 8),
    }
    assert masks.statistics()["0.weight"].density == 0.5
    assert masks.sparsity() == pytest.approx(1 - 26 / 116)
    assert repr(masks).splitlines() == [
        "Masks(2 weights, 77.6% sparse)",
        "  0.weight   50.0% of [4, 1, 3, 3]",
        "  3.weight   90.0% of [5, 16]",
    ]
    assert repr(Masks(model, {})) == "Masks(0 weights, 0.0% sparse)"


def test_state_dict_round_trip() -> None:
    model = small_net()
    masks = prune(model, 0.7)
    other = Masks.from_model(small_net())
    assert other != masks
    before = other.model.get_parameter("3.weight").clone()
    other.load_state_dict(masks.state_dict())
    assert other == masks
    assert torch.equal(other.model.get_parameter("3.weight"), before)
    other.apply()
    assert torch.equal(other.model.get_parameter("3.weight"), model[3].weight)


def test_copy_of_the_model_gets_masks_of_its_own() -> None:
    model = small_net()
    masks = prune(model, 0.5)
    copied = copy.deepcopy(model)
    optimizer = SGD(copied.parameters(), lr=0.1)
    Masks(copied, masks).attach(optimizer)
    backward(copied, 0)
    optimizer.step()
    assert Masks.from_model(copied) == masks


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"3.weight": torch.ones(5, 16, dtype=torch.bool)},
        {"0.weight": torch.ones(4, 1, 3, 3, dtype=torch.bool), "3.weight": torch.ones(5, 16)},
        {name: torch.ones(5, 16, dtype=torch.bool) for name in ("0.weight", "3.weight")},
        {"0.weight": None, "3.weight": None},
    ],
    ids=["empty", "one missing", "not bool", "wrong shape", "no tensors"],
)
def test_bad_state_changes_nothing(state: dict[str, Tensor]) -> None:
    masks = prune(small_net(), 0.5)
    before = masks.hash()
    with pytest.raises(FormatError):
        masks.load_state_dict(state)
    assert masks.hash() == before


def test_masks_do_not_hold_on_to_the_tensors_they_are_made_from() -> None:
    model = small_net()
    masks = prune(model, 0.5)
    state = {name: mask.clone() for name, mask in masks.items()}
    masks.load_state_dict(state)
    before = masks.hash()
    state["3.weight"].logical_not_()
    assert masks.hash() == before


def test_one_parameter_has_one_mask() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    mask = torch.tensor([[True, False], [False, True]])
    assert Masks(model, {"0.weight": mask, "1.weight": mask}).sparsity() == 0.5
    with pytest.raises(FormatError, match=r"0\.weight and 1\.weight are one parameter"):
        Masks(model, {"0.weight": mask, "1.weight": ~mask})


def test_a_layer_that_was_replaced_is_named() -> None:
    model = small_net()
    optimizer = SGD(model.parameters(), lr=0.1)
    masks = prune(model, 0.5)
    masks.attach(optimizer)
    before = model[0].weight.detach().clone()
    for layer in (nn.Linear(16, 7), nn.Identity()):
        model[3] = layer
        with pytest.raises(FormatError, match=r"3\.weight: .* no longer in the model"):
            masks.apply()
        with pytest.raises(FormatError, match=r"3\.weight"):
            optimizer.step()
        assert torch.equal(model[0].weight, before)


def test_mask_of_an_unknown_weight() -> None:
    with pytest.raises(FormatError, match=r"no parameter 'fc\.weight'"):
        Masks(small_net(), {"fc.weight": torch.ones(1, dtype=torch.bool)})


BITS = st.lists(st.booleans(), min_size=6, max_size=6)


@settings(max_examples=50, deadline=None)
@given(BITS, BITS)
def test_merge_bit_by_bit(left: list[bool], right: list[bool]) -> None:
    layer = nn.Linear(6, 1)
    a, b = (Masks(layer, {"weight": torch.tensor([bits])}) for bits in (left, right))
    both = [x and y for x, y in zip(left, right, strict=True)]
    if any(left) and any(right) and not any(both):
        with pytest.raises(FormatError, match="weight: the two masks have no entry in common"):
            a & b
    else:
        assert (a & b)["weight"].tolist() == [both]
    assert (a | b)["weight"].tolist() == [[x or y for x, y in zip(left, right, strict=True)]]
    assert (a == b) == (left == right) == (a.hash() == b.hash())


def test_merge_of_different_weights() -> None:
    model = small_net()
    first, second = prune(model, {"0": 0.5}), prune(model, {"3": 0.5})
    assert (first & second).state_dict().keys() == {"0.weight", "3.weight"}
    assert torch.equal((first & second)["3.weight"], second["3.weight"])
    assert (first | second).sparsity() == 0.0
    with pytest.raises(TypeError):
        first & {"0.weight": True}


def test_hash_is_stable() -> None:
    layer = nn.Linear(3, 1)
    masks = Masks(layer, {"weight": torch.tensor([[True, False, True]])})
    # sha256 of the name, the shape and the bits 101 padded to a byte
    expected = hashlib.sha256(b"weight [1, 3]\n" + bytes([0b10100000]))
    assert masks.hash() == expected.hexdigest()


def test_hash_tells_names_shapes_and_bits_apart() -> None:
    def digest(name: str, shape: tuple[int, int], first: bool) -> str:
        model = nn.ModuleDict({name: nn.Linear(shape[1], shape[0])})
        mask = torch.ones(shape, dtype=torch.bool)
        mask[0, 0] = first
        return Masks(model, {f"{name}.weight": mask}).hash()

    base = digest("a", (2, 4), True)
    others = {digest("b", (2, 4), True), digest("a", (4, 2), True), digest("a", (2, 4), False)}
    assert len(others | {base}) == 4
    assert digest("a", (2, 4), True) == base
