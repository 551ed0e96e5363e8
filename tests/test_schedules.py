"""Temperature schedules, and modules that follow them."""

import copy
import math

import pytest
import torch

import difflayers as dl
from difflayers.schedules import Cosine, EntropyAdaptive, Exponential

MODULES = [
    dl.GumbelSoftmax, dl.StraightThrough, dl.ReinMax, dl.GumbelRao, dl.GappedStraightThrough,
    lambda temperature: dl.subsets.OptimalTransportTopK(1, temperature),
    lambda temperature: dl.subsets.Simple(1, temperature),
    lambda temperature: dl.subsets.ProjectionTopK(1, temperature),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "middle"), [(Exponential, math.sqrt(0.2)), (Cosine, 0.6)])
def test_from_start_to_end(kind, middle):
    schedule = kind(1.0, 0.2, steps=10)
    assert schedule.value == schedule(0) == pytest.approx(1.0)
    values = [schedule.step() for _ in range(15)]
    assert values[4] == schedule(5) == pytest.approx(middle)
    assert values[9:] == pytest.approx([0.2] * 6)
    assert all(a > b for a, b in zip([1.0, *values[:9]], values[:10], strict=True))
    assert kind(0.2, 1.0, steps=1)(1) == pytest.approx(1.0)  # heating is allowed


@pytest.mark.parametrize("make", [lambda: Exponential(1.0, 0.1, 5), lambda: EntropyAdaptive(0.4, rate=0.5)])
def test_state_is_carried_over(make):
    logits = torch.randn(3, 4)
    step = lambda s: s.step(logits) if isinstance(s, EntropyAdaptive) else s.step()  # noqa: E731
    first, second = make(), make()
    for _ in range(3):
        step(first)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.value == first.value
    assert step(second) == step(first)
    with pytest.raises(KeyError, match="steps_done"):
        second.load_state_dict({})


def test_entropy_is_brought_to_the_target_and_held():
    schedule = EntropyAdaptive(0.6, rate=0.5)
    logits = torch.randn(50, 8)
    for scale in (1.0, 10.0, 0.1):  # logits grow and shrink during training
        for _ in range(200):
            schedule.step(scale * logits)
        assert schedule.entropy(scale * logits) == pytest.approx(0.6, abs=0.01)
    assert schedule.value == pytest.approx(EntropyAdaptive(0.6, start=schedule.value).value)


def test_entropy_counts_present_classes():
    schedule = EntropyAdaptive(0.5)
    masked = torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf]])
    assert schedule.entropy(masked) == pytest.approx(1.0)
    assert schedule.entropy(masked.t(), dim=0) == pytest.approx(1.0)
    assert schedule.entropy(torch.tensor([[0.0, -torch.inf]])) == 0.5  # no choice: nothing to learn from
    bounded = EntropyAdaptive(0.9, rate=100.0, minimum=0.5, maximum=2.0)
    assert bounded.step(torch.tensor([[50.0, 0.0]])) == 2.0
    assert bounded.step(torch.zeros(1, 2)) < 2.0


BAD = [
    (ValueError, "start", r"\(0, inf\), got 0", lambda: Exponential(0.0, 1.0, 5)),
    (ValueError, "end", r"\(0, inf\), got -1", lambda: Cosine(1.0, -1.0, 5)),
    (ValueError, "steps", r"at least 1, got 0", lambda: Exponential(1.0, 0.1, 0)),
    (TypeError, "steps", r"an integer, got float", lambda: Cosine(1.0, 0.1, 2.5)),
    (ValueError, "step", r"at least 0, got -1", lambda: Cosine(1.0, 0.1, 2)(-1)),
    (ValueError, "target", r"\(0, 1\), got 1", lambda: EntropyAdaptive(1.0)),
    (ValueError, "maximum", r"got 0.1", lambda: EntropyAdaptive(0.5, minimum=1.0, maximum=0.1)),
    (ValueError, "logits", r"this step's logits, got None", lambda: EntropyAdaptive().step()),
    (
        ValueError,
        "logits",
        r"finite entropy, got nan",
        lambda: EntropyAdaptive().step(torch.tensor([[1.0, torch.nan]])),
    ),
    (TypeError, "logits", r"floating-point dtype, got int64", lambda: EntropyAdaptive().step(torch.ones(2, 2).long())),
]


@pytest.mark.parametrize(("error", "argument", "shown", "call"), BAD)
def test_bad_input(error, argument, shown, call):
    with pytest.raises(error, match=rf"^difflayers\.schedules\.\w+(\.\w+)?: argument '{argument}' must .*{shown}"):
        call()


@pytest.mark.parametrize("make", MODULES)
def test_modules_follow_a_schedule(make):
    schedule = Exponential(2.0, 0.5, steps=1)
    module = make(schedule)
    x = torch.tensor([[0.3, 0.1, -0.2]])
    results = []
    for _ in range(2):
        leaf = x.clone().requires_grad_()
        y = module(leaf, generator=torch.Generator().manual_seed(1))
        results.append(torch.autograd.grad((y * torch.tensor([1.0, 2.0, 4.0])).sum(), leaf)[0])
        fixed = make(schedule.value)
        leaf = x.clone().requires_grad_()
        y = fixed(leaf, generator=torch.Generator().manual_seed(1))
        (expected,) = torch.autograd.grad((y * torch.tensor([1.0, 2.0, 4.0])).sum(), leaf)
        torch.testing.assert_close(results[-1], expected)
        schedule.step()
    assert not torch.allclose(*results)
    assert "Exponential" in repr(module)


@pytest.mark.parametrize("kind", [dl.GumbelSoftmax, dl.StraightThrough, dl.GumbelRao])
def test_learnable_temperature(kind):
    module = kind(0.7, learnable=True)
    assert [name for name, _ in module.named_parameters()] == ["log_temperature"]
    assert module.temperature.item() == pytest.approx(0.7)
    y = module(torch.randn(20, 5))
    (y * torch.arange(5.0)).sum().backward()
    assert module.log_temperature.grad.abs() > 0
    with pytest.raises(AttributeError, match="learnable"):
        module.temperature = 1.0
    with pytest.raises(ValueError, match="learnable=True"):
        kind(Exponential(1.0, 0.1, 5), learnable=True)
    with torch.no_grad():
        module.log_temperature.fill_(-1e9)  # diverged: still a temperature
    assert module.temperature > 0


def test_temperature_may_be_set_and_moves_with_the_module():
    module = dl.GumbelSoftmax(torch.tensor([[0.5], [2.0]]))
    assert "fixed_temperature" in module.state_dict()
    assert module.double().temperature.dtype == torch.float64
    module.temperature = 3.0
    assert module.temperature == 3.0
    with pytest.raises(ValueError, match="must not require a gradient"):
        module.temperature = torch.tensor(1.0, requires_grad=True)
    with pytest.raises(ValueError, match=r"in \(0"):
        module.temperature = -1.0
