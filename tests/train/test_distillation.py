"""Distillation: the loss against float64 formulas, its gradient, the teacher held still, bad input."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from sparsecore.train import Distillation, FSPFeatures, L2Features, fsp_matrix, linear_schedule, soft_loss


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    powers = (logits.double() / temperature).exp()
    return powers / powers.sum(-1, keepdim=True)


def soft(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    s, t = probabilities(student, temperature), probabilities(teacher, temperature)
    return temperature**2 * (t * (t / s).log()).sum(-1).mean()


def hard(student: Tensor, labels: Tensor) -> Tensor:
    p = probabilities(student, 1.0).flatten(0, -2)
    return torch.stack([-p[row, label].log() for row, label in enumerate(labels.flatten().tolist())]).mean()


def nets() -> tuple[nn.Sequential, nn.Sequential]:
    student = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 3))
    teacher = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(96, 3),
    )
    return student, teacher


@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 3)])
@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 0.5), (4.0, 0.9), (2.0, 0.0), (2.0, 1.0)])
def test_loss_is_the_formula(shape: tuple[int, ...], temperature: float, alpha: float) -> None:
    student, teacher = nn.Linear(8, 3), nn.Linear(8, 3)
    x, labels = torch.randn(*shape[:-1], 8), torch.randint(3, shape[:-1])
    loss = Distillation(student, teacher, temperature=temperature, alpha=alpha)(student(x), labels, x)
    y, z = student(x).detach(), teacher(x).detach()
    expected = alpha * soft(y, z, temperature) + (1 - alpha) * hard(y, labels)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_soft_gradient_has_its_limit_at_high_temperatures() -> None:
    teacher = torch.randn(7, 10, dtype=torch.float64)
    student = torch.randn(7, 10, dtype=torch.float64, requires_grad=True)

    def gradient(temperature: float) -> Tensor:
        return torch.autograd.grad(soft_loss(student, teacher, temperature), student)[0]

    difference = student.detach() - teacher
    limit = (difference - difference.mean(1, keepdim=True)) / (7 * 10)  # Hinton et al., eq. 4, less the means
    torch.testing.assert_close(gradient(1e5), limit, rtol=1e-3, atol=1e-6)
    norms = torch.stack([gradient(temperature).norm() for temperature in (2.0, 4.0, 8.0, 16.0, 32.0)])
    assert norms.max() < 1.5 * norms.min()  # without T^2 it would fall to 1/256


def test_gradient_is_that_of_the_formula() -> None:
    teacher = torch.randn(4, 5, dtype=torch.float64)
    student = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    (ours,) = torch.autograd.grad(soft_loss(student, teacher, 3.0), student)
    expected = 3.0 * (probabilities(student.detach(), 3.0) - probabilities(teacher, 3.0)) / 4
    torch.testing.assert_close(ours, expected)


def test_labels_that_are_missing_do_not_count() -> None:
    student, teacher = nn.Linear(8, 3), nn.Linear(8, 3)
    x, labels = torch.randn(4, 8), torch.tensor([0, -100, 2, -100])
    distillation = Distillation(student, teacher, alpha=0.5)
    distillation(student(x), labels, x)
    expected = hard(student(x[::2]).detach(), labels[::2])
    torch.testing.assert_close(distillation.terms["hard"].double(), expected, rtol=1e-5, atol=1e-6)
    loss = distillation(student(x), torch.full((4,), -100), x)
    assert distillation.terms["hard"] == 0
    assert loss > 0


@pytest.mark.parametrize("is_training", [True, False])
def test_teacher_stays_exactly_as_it_is(is_training: bool) -> None:
    student, teacher = nets()
    teacher.train(is_training)
    teacher[3].train(not is_training)
    before = copy.deepcopy(teacher.state_dict())
    flags = [module.training for module in teacher.modules()]
    distillation = Distillation(student, teacher, features=[L2Features("0", adapter=nn.Conv2d(4, 6, 1))])
    # The teacher's parameters in the optimizer by mistake: they have no gradient.
    parameters = [*student.parameters(), *distillation.parameters(), *teacher.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1)
    x, labels = torch.randn(8, 1, 4, 4), torch.randint(3, (8,))
    first = student[0].weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        distillation(student(x), labels, x).backward()
        optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert [module.training for module in teacher.modules()] == flags
    assert not torch.equal(student[0].weight, first)


def test_teacher_runs_in_evaluation_mode() -> None:
    student, teacher = nets()
    x, labels = torch.randn(8, 1, 4, 4), torch.randint(3, (8,))
    distillation = Distillation(student, teacher.train(), alpha=1.0)
    loss = distillation(student(x), labels, x)
    expected = soft(student(x).detach(), copy.deepcopy(teacher).eval()(x).detach(), 4.0)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_features_and_adapter() -> None:
    student, teacher = nets()
    adapter = nn.Conv2d(4, 6, 1)
    features = L2Features("0", "1", weight=3.0, adapter=adapter)
    distillation = Distillation(student, teacher, alpha=0.0, features=[features])
    assert [id(p) for p in distillation.parameters()] == [id(p) for p in adapter.parameters()]
    x, labels = torch.randn(2, 1, 4, 4), torch.randint(3, (2,))
    loss = distillation(student(x), labels, x)
    ours, theirs = adapter(student[0](x)), teacher.eval()[:2](x)  # before the ReLU that works in place
    expected = 3.0 * (ours - theirs).double().square().mean() + hard(student(x).detach(), labels)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    (ours,) = torch.autograd.grad(loss - nn.functional.cross_entropy(student(x), labels), student[0].weight)
    (other,) = torch.autograd.grad(3.0 * nn.functional.mse_loss(adapter(student[0](x)), theirs), student[0].weight)
    torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-5)
    assert distillation.terms.keys() == {"soft", "hard", "0"}


def test_two_losses_on_one_layer_both_count() -> None:
    student, teacher = nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    x, labels = torch.randn(2, 4), torch.randint(3, (2,))
    one, other = L2Features("0", "0"), L2Features("0", "1")
    losses = [
        Distillation(student, teacher, alpha=0.0, features=features)(student(x), labels, x)
        for features in ([], [one], [other], [one, other])
    ]
    torch.testing.assert_close(losses[3] - losses[0], losses[1] + losses[2] - 2 * losses[0])


def test_fsp_in_the_loss() -> None:
    student = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 5, 1, stride=2), nn.Flatten(), nn.Linear(20, 3))
    teacher = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    teacher.append(nn.Linear(5, 3))
    x, labels = torch.randn(2, 1, 4, 4), torch.randint(3, (2,))
    distillation = Distillation(student, teacher, features=[FSPFeatures(("0", "1"))])
    distillation(student(x), labels, x).backward()
    assert student[0].weight.grad is not None
    ours, theirs = (fsp_matrix(model[0](x), model[:2](x)).double() for model in (student, teacher))
    expected = ((ours - theirs) ** 2).sum() / 2  # Frobenius norms, the mean over two images
    torch.testing.assert_close(distillation.terms["0 1"].double(), expected.detach(), rtol=1e-5, atol=1e-7)


def test_schedule() -> None:
    student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    x, labels = torch.randn(2, 4), torch.randint(3, (2,))
    distillation = Distillation(student, teacher, alpha=linear_schedule(1.0, 0.0, steps=10))
    for step, alpha in ((0, 1.0), (5, 0.5), (10, 0.0), (99, 0.0)):
        loss = distillation(student(x), labels, x, step=step)
        terms = distillation.terms
        torch.testing.assert_close(loss, alpha * terms["soft"] + (1 - alpha) * terms["hard"])


def test_remove_takes_the_hooks_away() -> None:
    student, teacher = nets()
    distillation = Distillation(student, teacher, features=[L2Features("2", "4")])
    assert student[2]._forward_hooks
    assert teacher[4]._forward_hooks
    distillation.remove()
    assert not student[2]._forward_hooks
    assert not teacher[4]._forward_hooks


def test_a_copy_of_the_student_does_not_disturb() -> None:
    student, teacher = nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.Linear(4, 3))
    distillation = Distillation(student, teacher, alpha=0.0, features=[L2Features("0")])
    x, labels = torch.randn(2, 4), torch.randint(3, (2,))
    output = student(x)
    copy.deepcopy(student)(x + 1)
    distillation(output, labels, x)
    torch.testing.assert_close(distillation.terms["0"], nn.functional.mse_loss(output, teacher(x)).detach())


class WithLogits(nn.Module):
    """As transformers' models: keyword arguments, and an object with logits."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, *, values: Tensor) -> object:
        return type("Output", (), {"logits": self.head(values)})()


def test_models_with_keyword_arguments_and_logits() -> None:
    student, teacher = WithLogits(), WithLogits()
    batch, labels = {"values": torch.randn(2, 4)}, torch.randint(3, (2,))
    Distillation(student, teacher)(student(**batch), labels, batch).backward()
    assert student.head.weight.grad is not None


def test_half_precision_is_computed_in_float32() -> None:
    logits, other = torch.randn(3, 5).bfloat16(), torch.randn(3, 5).bfloat16()
    torch.testing.assert_close(soft_loss(logits, other, 2.0), soft_loss(logits.float(), other.float(), 2.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature above zero, got 0.0"),
        ({"temperature": math.nan}, "temperature above zero, got nan"),
        ({"alpha": 1.5}, r"alpha in \[0, 1\], got 1.5"),
        ({"alpha": "0.5"}, r"alpha in \[0, 1\], got '0.5'"),
        ({"temperature": "4"}, r"temperature above zero, got '4'"),
        ({"alpha": math.nan}, r"alpha in \[0, 1\], got nan"),
        ({"features": [L2Features("convolution")]}, "the student has no layer 'convolution'"),
        ({"features": [L2Features("0", "9")]}, "the teacher has no layer '9'"),
    ],
)
def test_wrong_settings(settings: dict[str, object], message: str) -> None:
    student, teacher = nets()
    with pytest.raises(ValueError, match=message):
        Distillation(student, teacher, **settings)
    assert not any(module._forward_hooks for model in (student, teacher) for module in model.modules())


def test_wrong_feature_losses() -> None:
    with pytest.raises(ValueError, match=r"weight of at least 0, got -1"):
        L2Features("0", weight=-1)
    with pytest.raises(ValueError, match=r"names of two layers, got '0'"):
        FSPFeatures("0")


def test_student_as_its_own_teacher() -> None:
    model = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=r"share weight and 1 other.*copy.deepcopy"):
        Distillation(model, model)


def test_what_is_no_model() -> None:
    for models in ((None, nn.Linear(2, 2)), (nn.Linear(2, 2), None)):
        with pytest.raises(TypeError, match=r"expected the (student|teacher) as a torch\.nn\.Module, got NoneType"):
            Distillation(*models)


def test_wrong_shapes() -> None:
    x, labels = torch.randn(2, 4), torch.tensor([0, 1])
    student = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=r"one shape, got \[2, 3\] and \[2, 5\]"):
        Distillation(student, nn.Linear(4, 5))(student(x), labels, x)
    distillation = Distillation(student, nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"labels \[...\], got \[2, 3\] and \[3\]"):
        distillation(student(x), torch.tensor([0, 1, 2]), x)
    for wrong in (None, [0, 1]):
        with pytest.raises(ValueError, match="labels as a tensor, got"):
            distillation(student(x), wrong, x)
    with pytest.raises(ValueError, match=r"labels as integers"):
        distillation(student(x), torch.tensor([0.0, 1.0]), x)
    for label in (3, -1):
        with pytest.raises(ValueError, match=f"labels from 0 to 2, or -100 for none, got {label}"):
            distillation(student(x), torch.tensor([0, label]), x)
    with pytest.raises(ValueError, match=r"logits from the student.*got tuple"):
        distillation((student(x),), labels, x)
    student, teacher = nets()
    distillation = Distillation(student, teacher, features=[L2Features("0")])
    x = torch.randn(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"features '0' and '0'.*\[2, 4, 4, 4\] and \[2, 6, 4, 4\]"):
        distillation(student(x), labels, x)


def test_features_need_a_call_of_the_student() -> None:
    student, teacher = nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.Linear(4, 3))
    distillation = Distillation(student, teacher, features=[L2Features("0")])
    x, labels = torch.randn(2, 4), torch.tensor([0, 1])
    output = student(x)
    distillation(output, labels, x)
    with pytest.raises(ValueError, match=r"layer '0' has not run; call the student first"):
        distillation(output, labels, x)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite(value: float) -> None:
    student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    x, labels = torch.randn(2, 4), torch.tensor([0, 1])
    output = student(x).detach()
    output[0, 0] = value
    with pytest.raises(ValueError, match=r"loss is not finite.*hard: nan"):
        Distillation(student, teacher, alpha=0.0)(output, labels, x)
    nn.init.constant_(teacher.bias, math.nan)
    with pytest.raises(ValueError, match=r"loss is not finite.*soft: "):
        Distillation(student, teacher)(student(x), labels, x)


def test_schedule_out_of_range() -> None:
    student, x = nn.Linear(4, 3), torch.randn(2, 4)
    distillation = Distillation(student, nn.Linear(4, 3), alpha=lambda step: 2.0)
    with pytest.raises(ValueError, match=r"alpha in \[0, 1\], got 2.0"):
        distillation(student(x), torch.tensor([0, 1]), x)
    with pytest.raises(ValueError, match=r"at least 1 step, got 0"):
        linear_schedule(0.0, 1.0, steps=0)
