"""Apprentice: the loss and its gradients, what each scheme trains, ternary students."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from sparsecore.quantize import fold_qat, prepare_ternary
from sparsecore.train import Apprentice, soft_cross_entropy


def log_probabilities(logits: Tensor) -> Tensor:
    powers = logits.double().exp()
    return (powers / powers.sum(1, keepdim=True)).log()


def entropy(targets: Tensor, logits: Tensor) -> Tensor:
    return -(targets * log_probabilities(logits)).sum(1).mean()


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def batch() -> tuple[Tensor, Tensor, Tensor]:
    x, labels = torch.randn(7, 6), torch.randint(3, (7,))
    return x, labels, nn.functional.one_hot(labels, 3).double()


@pytest.mark.parametrize("scheme", ["A", "B", "C"])
@pytest.mark.parametrize("weights", [{}, {"alpha": 0.3, "beta": 2.0, "gamma": 0.7}])
def test_loss_is_the_formula(scheme: str, weights: dict[str, float]) -> None:
    student, teacher, (x, labels, y) = net().eval(), net().eval(), batch()
    loss = Apprentice(student, teacher, scheme=scheme, **weights)(student(x), labels, x)
    alpha, beta, gamma = weights.values() or (1.0, 0.5, 0.5)
    ours, theirs = student(x).detach(), teacher(x).detach()
    expected = beta * entropy(y, ours) + gamma * entropy(log_probabilities(theirs).exp(), ours)
    if scheme == "A":
        expected += alpha * entropy(y, theirs)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_scheme_a_trains_the_teacher_by_its_labels_alone() -> None:
    student, teacher, (x, labels, _) = net(), net(), batch()
    apprentice = Apprentice(student, teacher, scheme="A")
    assert [id(p) for p in apprentice.parameters()] == [id(p) for m in (student, teacher) for p in m.parameters()]
    alone = copy.deepcopy(teacher)
    apprentice(student(x), labels, x).backward()
    nn.functional.cross_entropy(alone(x), labels).backward()
    for ours, expected in zip(teacher.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad)
    assert torch.equal(teacher[1].running_mean, alone[1].running_mean)  # it runs in training mode


@pytest.mark.parametrize("scheme", ["B", "C"])
def test_fixed_teacher_stays_bit_identical(scheme: str) -> None:
    student, teacher, (x, labels, _) = prepare_ternary(net()), net().train(), batch()
    before = copy.deepcopy(teacher.state_dict())
    apprentice = Apprentice(student, teacher, scheme=scheme)
    assert [id(p) for p in apprentice.parameters()] == [id(p) for p in student.parameters()]
    optimizer = torch.optim.AdamW([*apprentice.parameters(), *teacher.parameters()], lr=0.1, weight_decay=0.1)
    first = copy.deepcopy(student.state_dict())
    for _ in range(3):
        optimizer.zero_grad()
        apprentice(student(x), labels, x).backward()
        optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(module.training for module in teacher.modules())
    assert not torch.equal(student[0].weight, first["0.weight"])


def test_soft_targets_at_a_temperature() -> None:
    student, teacher = torch.randn(7, 3), torch.randn(7, 3)
    expected = 4.0 * entropy(log_probabilities(teacher / 2).exp(), student / 2)
    torch.testing.assert_close(soft_cross_entropy(student, teacher, 2.0).double(), expected, rtol=1e-5, atol=1e-6)


def test_temperature_keeps_the_size_of_the_gradient() -> None:
    student, teacher, (x, labels, _) = net().double().eval(), net().double().eval(), batch()
    x = x.double()
    logits = student(x).detach().requires_grad_()
    loss = Apprentice(student, teacher, beta=0.0, gamma=1.0, temperature=1e5)(logits, labels, x)
    (gradient,) = torch.autograd.grad(loss, logits)
    difference = logits.detach() - teacher(x).detach()
    limit = (difference - difference.mean(1, keepdim=True)) / (7 * 3)
    torch.testing.assert_close(gradient, limit, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scheme", ["A", "B", "C"])
@pytest.mark.parametrize("method", ["twn", "ttq"])
def test_ternary_student(scheme: str, method: str) -> None:
    teacher, (x, labels, _) = net(), batch()
    student = copy.deepcopy(teacher) if scheme == "C" else net()
    prepare_ternary(student, method=method)
    apprentice = Apprentice(student, teacher, scheme=scheme)
    optimizer = torch.optim.SGD(apprentice.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = apprentice(student(x), labels, x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    fold_qat(student)
    assert len(student[0].weight.unique()) <= 3


def test_terms_are_told() -> None:
    student, teacher, (x, labels, _) = net(), net(), batch()
    apprentice = Apprentice(student, teacher, scheme="A")
    loss = apprentice(student(x), labels, x)
    terms = apprentice.terms
    assert not any(term.requires_grad for term in terms.values())
    torch.testing.assert_close(loss.detach(), terms["teacher"] + 0.5 * terms["labels"] + 0.5 * terms["soft"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheme": "D"}, r"scheme of \['A', 'B', 'C'\], got 'D'"),
        ({"beta": -0.5}, "beta of at least 0, got -0.5"),
        ({"gamma": math.nan}, "gamma of at least 0, got nan"),
        ({"temperature": -1.0}, "temperature above zero, got -1.0"),
    ],
)
def test_wrong_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Apprentice(net(), net(), **settings)


def test_wrong_calls() -> None:
    student, (x, labels, _) = net(), batch()
    with pytest.raises(ValueError, match=r"one shape, got \[7, 3\] and \[7, 8\]"):
        Apprentice(student, net()[:1])(student(x), labels, x)
    with pytest.raises(ValueError, match=r"loss is not finite.*labels: nan"):
        Apprentice(student, net())(student(x) * math.nan, labels, x)
    with pytest.raises(ValueError, match=r"weight above zero for labels or soft"):
        Apprentice(student, net(), beta=0.0, gamma=0.0)(student(x), labels, x)
    with pytest.raises(ValueError, match=r"share"):
        Apprentice(student, student)
