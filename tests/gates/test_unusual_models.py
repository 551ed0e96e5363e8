"""Models that are rarely written, and valid: found by a review."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import difflayers as dl
from difflayers import gates


def half_closed(model: nn.Module, *inputs: Tensor, **settings: Any) -> gates.Gated:
    """With the first half of each group closed."""
    gated = gates.attach(model, inputs, **settings)
    gated.freeze({name: torch.arange(gate.n) >= gate.n // 2 for name, gate in gated.gates.items()})  # pyright: ignore
    return gated


def test_input_without_a_batch():
    x = torch.randn(8)
    gated = half_closed(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)), x)
    torch.testing.assert_close(gates.prune(gated)(x), gated(x))
    normed = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 2))
    gated = half_closed(normed, x, inexact="allow")
    torch.testing.assert_close(gates.prune(gated)(x), gated(x))


class Outside(nn.Module):
    """A weight that is used through a list."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(8, 16), nn.Linear(16, 2)
        self.weights = [self.o.weight]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.a(x).relu(), self.weights[0])


def test_parameters_held_outside_are_refused():
    x = torch.randn(3, 8)
    with pytest.raises(dl.UnsupportedOperationError, match=r"group 'a' .*'o\.weight' is also held by .* 'weights'"):
        gates.attach(Outside(), x)
    with pytest.raises(ValueError, match="no channels that can be removed"):
        gates.attach(Outside(), x, unknown="skip")


def test_tied_recurrent_weights_are_met_at_every_call():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.o = nn.LSTM(8, 8), nn.LSTM(8, 8), nn.Linear(8, 2)
            self.b.weight_hh_l0 = self.a.weight_hh_l0

        def forward(self, x: Tensor) -> Tensor:
            return self.o(self.b(self.a(x)[0])[0])

    x = torch.randn(5, 3, 8)
    gated = half_closed(Tied(), x)
    run = gated.bound(gated.values())
    assert torch.equal(run(x), run(x))
    torch.testing.assert_close(gates.prune(gated)(x), gated(x))


class Scaled(nn.Module):
    """A branch with a number for a scale, a forward that writes into its input, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.l, self.m, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.scale, self.calls = nn.Parameter(torch.tensor(0.3)), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.stem(x.clamp_(-0.5, 0.5))
        return self.head(x + self.scale * self.m(F.relu(self.l(x))))


def test_branches_with_a_number_for_a_scale():
    model, x = Scaled(), 3 * torch.randn(5, 4)
    before = x.clone()
    gated = gates.attach(model, x, branches="gate")
    assert torch.equal(x, before)
    assert model.calls == 0
    gated(x.clone()).sum().backward()
    assert all(gate.weight.grad is not None for gate in gated.gates.values())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, of forward mode
def test_second_derivatives_and_transforms_of_gates():
    x = torch.randn(3, 4, dtype=torch.float64)
    gated = gates.attach(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double(), x)

    def loss(value: Tensor) -> Tensor:
        return gated.call({"0": value}, (x,), {}).square().sum()

    at = torch.tensor([0.5, 1.0, 0.2], dtype=torch.float64)
    by_hand = torch.autograd.functional.hessian(loss, at)
    torch.testing.assert_close(torch.func.hessian(loss)(at), by_hand)


class Outputs(nn.Module):
    """A truth value and infinities among the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.o(self.a(x).relu())
        return y.masked_fill(torch.tensor([True, False, False]), -torch.inf), x > 0


def test_outputs_that_are_not_finite_numbers():
    x = torch.randn(5, 4)
    gated = half_closed(Outputs(), x)
    for a, b in zip(gates.prune(gated)(x), gated(x), strict=True):
        torch.testing.assert_close(a, b)


def test_a_fit_that_fails_at_once_restores_all():
    gated = gates.attach(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4))
    gated.eval()
    before = {name: gate.weight.detach().clone() for name, gate in gated.gates.items()}
    with pytest.raises(ValueError, match="loss"):
        gates.fit(
            gated, lambda m, b: m(b).sum() * torch.nan, [torch.randn(2, 4)], target=0.5, steps=4, freeze_at=0.0,
            progress=False,
        )  # fmt: skip
    assert gated.frozen is None
    assert not gated.training
    assert all(torch.equal(gate.weight, before[name]) for name, gate in gated.gates.items())


def test_a_module_named_like_a_method():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.values, self.o = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.o(self.values(x).relu())

    assert list(gates.attach(Named(), torch.randn(2, 4)).gates) == ["values_"]


def test_parametrized_weights():
    class Absolute(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.abs()

    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    parametrize.register_parametrization(net[0], "weight", Absolute())
    x = torch.randn(5, 4)
    gated = half_closed(net, x)
    small: Any = gates.prune(gated)
    torch.testing.assert_close(small(x), gated(x))
    assert small[0].out_features == 4


def test_a_plan_of_modules_with_a_state_of_their_own():
    class Counted(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 3}

        def set_extra_state(self, state: dict[str, int]) -> None:
            assert state == {"calls": 3}

    net = nn.Sequential(Counted(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(5, 4)
    gated = half_closed(net, x)
    torch.testing.assert_close(gates.plan(gated).apply(net)(x), gated(x))
