"""Pruning with calibration batches: which inputs each layer is pruned on, what is refused, and that it is undone."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from networks import Conv1D
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from sparsecore.errors import UnsupportedError
from sparsecore.prune import (
    CALIBRATED,
    CRITERIA,
    GradualPruner,
    Masks,
    SparseGPT,
    Taylor,
    Wanda,
    inputs,
    prune,
    pruning_sensitivity,
)

BOTH = pytest.mark.parametrize("criterion", [*CALIBRATED])


class Block(nn.Module):
    """Two layers and a shortcut; the layers are made in the order in which they are not called."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.down = nn.Linear(2 * size, size)
        self.up = nn.Linear(size, 2 * size)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return x + scale * self.down(torch.relu(self.up(x)))


class Stack(nn.Module):
    """Blocks between two layers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.blocks = nn.ModuleList([Block(6), Block(6)])
        self.stem = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, scale=0.5)
        return self.head(x)


def some_batches(size: int = 4, count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(10, size, generator=generator) * torch.linspace(0.1, 3, size) for _ in range(count)]


def pruned_alone(layer: nn.Linear, criterion: str, inputs: list[Tensor]) -> nn.Linear:
    layer = copy.deepcopy(layer)
    prune(layer, 0.5, criterion=criterion, batches=inputs)
    return layer


@BOTH
def test_every_group_sees_what_comes_out_of_the_pruned_ones_before_it(criterion: str) -> None:
    model, batches = Stack(), some_batches()
    expected = copy.deepcopy(model)
    with torch.no_grad():
        expected.stem = pruned_alone(expected.stem, criterion, batches)
        x = [expected.stem(batch) for batch in batches]
        for block in expected.blocks:
            hidden = [torch.relu(block.up(batch)) for batch in x]  # of the dense block
            block.up, block.down = pruned_alone(block.up, criterion, x), pruned_alone(block.down, criterion, hidden)
            x = [block(batch, scale=0.5) for batch in x]
        expected.head = pruned_alone(expected.head, criterion, x)

    masks = prune(model, 0.5, criterion=criterion, batches=batches)
    assert masks == Masks.from_model(expected)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected.get_parameter(name)), name


@BOTH
def test_layers_of_a_block_stay_together_whatever_holds_them(criterion: str) -> None:
    def block() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 6), nn.ReLU()), nn.ReLU(), nn.Linear(6, 4))

    model, x = nn.ModuleDict({"blocks": nn.Sequential(block(), block())}), some_batches()
    model.forward = model["blocks"].forward
    expected = copy.deepcopy(model["blocks"])
    for part in expected:
        prune(part, 0.5, criterion=criterion, batches=x, sequential=False)
        x = [part(batch).detach() for batch in x]
    prune(model, 0.5, criterion=criterion, batches=some_batches())
    assert all(map(torch.equal, model.parameters(), expected.parameters()))


@BOTH
def test_one_pass_sees_the_dense_model(criterion: str) -> None:
    model, batches = Stack(), some_batches()
    inputs: dict[str, list[Tensor]] = {}
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs.setdefault(name, []).append(*args))
    with torch.no_grad():
        for batch in batches:
            model(batch)
    inputs = {name: list(seen) for name, seen in inputs.items()}
    expected = {name: pruned_alone(layer, criterion, inputs[name]) for name, layer in layers.items()}
    prune(model, 0.5, criterion=criterion, batches=iter(batches), sequential=False)
    for name, layer in layers.items():
        assert torch.equal(layer.weight, expected[name].weight), name


def test_one_group_for_each_layer_of_a_chain() -> None:
    model, batches = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.Linear(6, 2)), some_batches()
    expected: Any = copy.deepcopy(model)
    x = batches
    for layer in expected:
        if isinstance(layer, nn.Linear):
            prune(layer, 0.5, criterion="sparsegpt", batches=x)
        x = [layer(batch).detach() for batch in x]
    prune(model, 0.5, criterion="sparsegpt", batches=batches)
    assert all(map(torch.equal, model.parameters(), expected.parameters()))


@BOTH
def test_a_layer_called_twice_sees_both_inputs(criterion: str) -> None:
    shared = nn.Linear(4, 4)
    model, batches = nn.Sequential(shared, nn.Tanh(), shared), some_batches()
    seen = [x for batch in batches for x in (batch, torch.tanh(shared(batch)).detach())]
    expected = pruned_alone(shared, criterion, seen)
    assert list(prune(model, 0.5, criterion=criterion, batches=batches)) == ["0.weight"]
    assert torch.equal(shared.weight, expected.weight)


@BOTH
def test_a_tied_weight_sees_the_inputs_of_all_its_layers(criterion: str) -> None:
    model, batches = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), some_batches()
    model[2].weight = model[0].weight
    seen = [x for batch in batches for x in (batch, torch.tanh(model[0](batch)).detach())]
    expected = pruned_alone(model[0], criterion, seen)
    assert list(prune(model, 0.5, criterion=criterion, batches=batches)) == ["0.weight"]
    assert torch.equal(model[0].weight, expected.weight)
    assert model[2].weight is model[0].weight


class Zoo(nn.Module):
    """Everything that is easily handled wrongly."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.grouped = nn.Conv1d(8, 12, 3, groups=2, padding=1)
        self.up = nn.ConvTranspose1d(12, 8, 2)
        self.projection = Conv1D(8, 8)
        self.shared = nn.Linear(8, 8)
        self.head = nn.Linear(8, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = x + self.attention(value=x, key=x, query=x.flip(1))[0]
        x = self.up(self.grouped(x.transpose(1, 2))).transpose(1, 2)
        x = self.projection(self.shared(torch.tanh(self.shared(x))))
        return self.head(x)


def gradients(model: nn.Module, batches: list[Any]) -> None:
    for batch in batches:
        model(batch).square().mean().backward()


TOKENS = [torch.arange(14).view(2, 7) % 9, torch.arange(20).view(4, 5) % 7]


@pytest.mark.parametrize("criterion", [*CRITERIA, *CALIBRATED])
def test_unusual_layers_with_every_criterion(criterion: str) -> None:
    model = Zoo()
    gradients(model, TOKENS)
    before = copy.deepcopy(model.state_dict())
    masks = prune(model, 0.5, criterion=criterion, batches=TOKENS if criterion in CALIBRATED else None)
    assert list(masks) == [
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "grouped.weight",
        "projection.weight",
        "shared.weight",
    ]
    for name, tensor in model.state_dict().items():
        assert (name in masks) != torch.equal(tensor, before[name]), name
        if name in masks:
            assert torch.equal(tensor != 0, masks[name])
            assert masks[name].is_contiguous()
            assert (~masks[name]).sum() == tensor.numel() // 2
            if criterion != "sparsegpt":
                assert torch.equal(tensor, before[name] * masks[name])
    assert model.head.weight is model.embedding.weight


@BOTH
def test_groups_of_a_convolution_and_rows_of_query_key_and_value_count_by_themselves(criterion: str) -> None:
    model = Zoo()
    masks = prune(model, 0.5, criterion=criterion, batches=TOKENS)
    for name, parts in (("grouped.weight", 2), ("attention.in_proj_weight", 3)):
        for part in masks[name].chunk(parts):
            assert part.sum() == part.numel() // 2


@BOTH
def test_every_group_of_a_convolution_is_pruned_on_its_own_inputs(criterion: str) -> None:
    grouped = nn.Conv2d(6, 4, 3, groups=2)
    x = torch.randn(5, 6, 7, 7) * torch.rand(6, 1, 1) * torch.rand(7)
    for part, channels in enumerate(x.chunk(2, 1)):
        alone = nn.Conv2d(3, 2, 3)
        alone.weight.data = grouped.weight.detach().chunk(2)[part].clone()
        prune(alone, 0.5, criterion=criterion, batches=[channels])
        both = copy.deepcopy(grouped)
        prune(both, 0.5, criterion=criterion, batches=[x])
        assert torch.equal(both.weight.chunk(2)[part], alone.weight)


@BOTH
def test_blocks_hold_no_entry_that_earlier_masks_forbid(criterion: str) -> None:
    layer = nn.Linear(6, 8)
    earlier = Masks(layer, {"weight": torch.rand(8, 6) < 0.7})
    masks = prune(layer, 0.25, criterion=criterion, pattern="4x1", masks=earlier, batches=[torch.randn(20, 6)])
    assert masks & earlier == masks
    assert torch.equal(layer.weight != 0, masks["weight"])


@BOTH
def test_batches_are_tensors_tuples_or_dicts(criterion: str) -> None:
    results = []
    for wrap in (lambda x: x, lambda x: (x, 0.5), lambda x: [x, 0.5], lambda x: {"scale": 0.5, "x": x}):
        torch.manual_seed(3)
        results.append(prune(Block(4), 0.5, criterion=criterion, batches=[wrap(x) for x in some_batches()]))
    assert results[1] == results[2] == results[3]


@BOTH
def test_arguments_by_name_may_come_in_any_order(criterion: str) -> None:
    attention = nn.MultiheadAttention(8, 2)
    same = copy.deepcopy(attention)
    query, key, value = torch.randn(3, 5, 2, 8) * torch.rand(3, 1, 1, 8)
    masks = prune(attention, 0.5, criterion=criterion, batches=[(query, key, value)])
    swapped = {"need_weights": False, "value": value, "key": key, "query": query}
    assert prune(same, 0.5, criterion=criterion, batches=[swapped]) == masks


@BOTH
def test_modes_hooks_and_gradients_stay_as_they_were(criterion: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4).eval())
    masks = prune(model, 0.5, criterion=criterion, batches=some_batches())
    assert [module.training for module in model.modules()] == [True, True, True, False]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    again = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9), nn.Linear(4, 4))
    again.load_state_dict(model.state_dict())
    assert prune(again, 0.5, criterion=criterion, batches=some_batches()) == masks  # no dropout, zeros first


@BOTH
def test_sparsity_of_each_layer_exclude_and_masks(criterion: str) -> None:
    model = Stack()
    head = model.head.weight.detach().clone()
    earlier = Masks(model, {"stem.weight": torch.arange(24).view(6, 4) % 4 != 3, "head.weight": head > -9})
    masks = prune(
        model,
        {"stem": 0.5, Block: 1 / 3},
        criterion=criterion,
        exclude="blocks.1",
        masks=earlier,
        batches=some_batches(),
    )
    assert {name: row.numel - row.num_kept for name, row in masks.statistics().items()} == {
        "stem.weight": 12,
        "head.weight": 0,
        "blocks.0.down.weight": 24,
        "blocks.0.up.weight": 24,
    }
    assert not masks["stem.weight"][:, 3].any()
    assert not model.stem.weight[:, 3].any()
    assert torch.equal(model.head.weight, head)


@BOTH
def test_torch_pruned_models_are_folded(criterion: str) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5))
    plain = copy.deepcopy(model)
    for each in (model, plain):
        torch_prune.l1_unstructured(each[0], "weight", amount=0.5)
    torch_prune.remove(plain[0], "weight")
    gone = model[0].weight == 0
    masks = prune(model, 0.75, criterion=criterion, batches=some_batches())
    assert not model[0].weight[gone].any()
    assert "0.weight" in model.state_dict()
    assert masks == prune(plain, 0.75, criterion=criterion, batches=some_batches())
    assert all(map(torch.equal, model.state_dict().values(), plain.state_dict().values()))


def test_a_criterion_of_ones_own() -> None:
    class LargestMean(Wanda):
        """Another statistic: the sum of the inputs."""

        def add_inputs(self, total: Tensor | None, x: Tensor) -> Tensor:
            return x.sum(0).double() + (0 if total is None else total)

    layer = nn.Linear(3, 1)
    layer.weight.data = torch.ones(1, 3)
    masks = prune(layer, 1 / 3, criterion=LargestMean(), batches=[torch.tensor([[3.0, 1.0, 2.0]])])
    assert masks["weight"].tolist() == [[True, False, True]]


def _nan_late(model: Stack) -> dict[str, Any]:
    batches = some_batches()
    batches[-1][3, 2] = torch.nan
    return {"batches": batches}


def _interrupted(model: Stack) -> dict[str, Any]:
    calls = iter(range(100))

    def interrupt(*_: Any) -> None:
        if next(calls) == 10:
            raise KeyboardInterrupt

    model.blocks[1].register_forward_pre_hook(interrupt)
    return {}


def _dead_head(model: Stack) -> dict[str, Any]:
    model.head.register_forward_pre_hook(lambda _, args: args[0] * 0)
    return {}


def _never_called(model: Stack) -> dict[str, Any]:
    model.spare = nn.Linear(3, 3)
    return {}


def _never_called_in_one_pass(model: Stack) -> dict[str, Any]:
    return {**_never_called(model), "sequential": False}


def _own_call(model: Stack) -> dict[str, Any]:
    model.register_parameter("alias", model.head.weight)
    return {}


def _own_forward(model: Stack) -> dict[str, Any]:
    class SumOfHalves(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[..., :6] + x[..., 6:])

    model.head = SumOfHalves(6, 3)
    model.head.register_forward_pre_hook(lambda _, args: args[0].repeat(1, 2))
    return {}


def _nan_weight(model: Stack) -> dict[str, Any]:
    model.head.weight.data[0, 0] = torch.nan
    return {}


def _emptied(model: Stack) -> dict[str, Any]:
    return {"masks": Masks(model, {"stem.weight": torch.zeros(6, 4, dtype=torch.bool)})}


def _half_overflow(model: Stack) -> dict[str, Any]:
    """SparseGPT moves weights by more than float16 holds."""
    model.half()
    model.head.weight.data[:] = 60000
    model.head.register_forward_pre_hook(lambda _, args: args[0][:, :1].expand(-1, 6))
    return {"criterion": "sparsegpt", "batches": [batch.half() for batch in some_batches()]}


BAD: list[tuple[str, type[BaseException], str, Callable[[Stack], dict[str, Any]]]] = [
    ("no batches", ValueError, r"pass batches=\[", lambda model: {"batches": None}),
    ("empty", ValueError, "at least one calibration batch", lambda model: {"batches": []}),
    ("empty, one pass", ValueError, "at least one", lambda model: {"batches": [], "sequential": False}),
    ("generator", ValueError, r"list\(\) around it", lambda model: {"batches": iter(some_batches())}),
    ("tensor", ValueError, "put it in a list", lambda model: {"batches": some_batches()[0]}),
    ("number", ValueError, "got int", lambda model: {"batches": 3}),
    ("wrong size", ValueError, "head: expected inputs of 6 features, got 12", _own_forward),
    ("nan", ValueError, "stem: an input is NaN", _nan_late),
    ("interrupted", KeyboardInterrupt, "^$", _interrupted),
    ("dead", ValueError, r"head\.weight: every input is zero.*exclude='head\.weight'", _dead_head),
    ("not reached", ValueError, r"never reach spare\.weight.*\['spare\.weight'\]", _never_called),
    ("not reached, one pass", ValueError, r"never reach spare\.weight", _never_called_in_one_pass),
    ("other module", UnsupportedError, r"head\.weight: it is also alias", _own_call),
    ("emptied", ValueError, r"stem\.weight: the earlier masks leave none", _emptied),
    ("nan weight", ValueError, r"head\.weight: the weight is NaN", _nan_weight),
    ("overflow", ValueError, r"head\.weight: the adjusted weight in torch\.float16 is", _half_overflow),
    ("sparsity", ValueError, "got 1.5", lambda model: {"sparsity": 1.5}),
    ("scope", ValueError, "within a layer", lambda model: {"scope": "global"}),
    ("pattern", ValueError, r"stem\.weight \(K = 4", lambda model: {"sparsity": None, "pattern": "1:3"}),
]


@BOTH
@pytest.mark.parametrize(("error", "text", "make"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_changes_nothing(
    error: type[BaseException], text: str, make: Callable[[Stack], dict[str, Any]], criterion: str
) -> None:
    model = Stack()
    arguments = {"sparsity": 0.5, "criterion": criterion, "batches": some_batches(), **make(model)}
    torch_prune.identity(model.stem, "weight")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=text):
        prune(model, **arguments)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name].nan_to_num(7), tensor.nan_to_num(7)) for name, tensor in before.items())
    assert all(module.training for module in model.modules())


@BOTH
def test_wrapped_models_and_shares_by_shape(criterion: str) -> None:
    model = Stack()
    same = copy.deepcopy(model)
    masks = prune(nn.DataParallel(model), 0.5, scope="erdos-renyi", criterion=criterion, batches=some_batches())
    assert masks == prune(same, 0.5, scope="erdos-renyi", criterion=criterion, batches=some_batches())
    assert masks.statistics()["head.weight"].density > masks.statistics()["blocks.0.up.weight"].density
    assert all(map(torch.equal, model.parameters(), same.parameters()))


@BOTH
def test_sharded_weights_are_refused(criterion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "is_sharded", lambda tensor: tensor.shape == (3, 6))
    with pytest.raises(UnsupportedError, match=r"head\.weight: it is sharded over processes"):
        prune(Stack(), 0.5, criterion=criterion, batches=some_batches())


@BOTH
def test_a_sensitivity_scan_takes_scores_only(criterion: str) -> None:
    with pytest.raises(ValueError, match=f"'{criterion}' needs calibration batches, which only prune"):
        pruning_sensitivity(Stack(), lambda model: 0.0, [0.5], criterion=criterion)


def test_blocks_must_not_cross_parts() -> None:
    model = Zoo()
    with pytest.raises(ValueError, match=r"attention\.in_proj_weight \(a block would cross its 3 groups of 8 rows\)"):
        prune(model, 0.5, pattern="3x1", criterion="wanda", batches=TOKENS)


def test_batches_are_for_calibrated_criteria_only() -> None:
    with pytest.raises(ValueError, match="'magnitude' takes no calibration batches"):
        prune(Stack(), 0.5, batches=some_batches())
    model = Stack()
    with pytest.raises(ValueError, match=r"expected calibration batches.*batches=\["):
        GradualPruner(model, torch.optim.SGD(model.parameters(), lr=0.1), 0.5, end=3, criterion="wanda")


@pytest.mark.parametrize("kind", [Wanda, SparseGPT, Taylor])
def test_a_class_is_not_a_criterion(kind: Any) -> None:
    with pytest.raises(TypeError, match=rf"got the class {kind.__name__}; pass {kind.__name__}\(\)"):
        prune(Stack(), 0.5, criterion=kind, batches=some_batches())


def test_unknown_names_are_told_all_criteria() -> None:
    with pytest.raises(ValueError, match=r"'magnitude', 'sparsegpt', 'taylor', 'wanda'\] as criterion, got 'wander'"):
        prune(Stack(), 0.5, criterion="wander", batches=some_batches())


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds() -> Iterator[float]:
        yield from range(0, 10000, 2)

    clock = seconds()
    monkeypatch.setattr("sparsecore.calibration.time.monotonic", lambda: float(next(clock)))
    prune(Stack(), 0.5, criterion=SparseGPT(), batches=some_batches())
    error = capsys.readouterr().err
    assert "finding the order of layers: 3 batches" in error
    assert "pruning group 2 of 4: 3 batches" in error
    assert "pruning group 2 of 4: blocks.0.up.weight" in error
    prune(Stack(), 0.5, criterion=SparseGPT(), batches=some_batches(), progress=False)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("spectral_norm", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
@pytest.mark.parametrize("arguments", [{}, {"exclude": "0"}], ids=["computed weight", "NaN"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_refusing_moves_no_power_iteration(spectral_norm: Any, arguments: dict[str, Any]) -> None:
    model = nn.Sequential(spectral_norm(nn.Linear(6, 5)), nn.Linear(5, 4))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((UnsupportedError, ValueError)):
        prune(model, 0.5, criterion="wanda", batches=[torch.full((3, 6), torch.nan)], **arguments)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
