"""What cannot be done is refused by name, and nothing is left half done."""

import pytest
import torch
from torch import nn

import difflayers as dl

from .test_zoo import assert_as_before, close, snapshot
from .zoo import made
from .zoo_images import Applied

UNKNOWN = {
    "cumprod": lambda m, x: m.c(m.b(torch.cumprod(m.a(x), -1)).relu()),
    "sort": lambda m, x: m.c(m.b(m.a(x).sort(-1)[0]).relu()),
    "index": lambda m, x: m.c(m.b(m.a(x)[:, torch.tensor([5, 4, 3, 2, 1, 0])]).relu()),
    "fft_fft": lambda m, x: m.c(m.b(torch.fft.fft(m.a(x)).real).relu()),
    "gather": lambda m, x: m.c(m.b(m.a(x).gather(1, torch.arange(6).expand(3, 6))).relu()),
    "bilinear": lambda m, x: m.c(m.b(torch.nn.functional.bilinear(m.a(x), x, torch.ones(6, 6, 4))).relu()),
}


@pytest.mark.parametrize("operation", UNKNOWN)
def test_unknown_operations(operation):
    model = Applied(UNKNOWN[operation], a=nn.Linear(4, 6), b=nn.Linear(6, 5), c=nn.Linear(5, 2))
    before, x = snapshot(model), torch.randn(3, 4)
    with pytest.raises(dl.UnsupportedOperationError, match=rf"{operation}.*is not understood.*unknown='skip'"):
        dl.gates.attach(model, x)
    gated = dl.gates.attach(model, x, unknown="skip")
    assert [group.size for group in gated.groups.values()] == [5]
    assert any(operation in text for text in gated.analysis.unknown.values())
    close(gated, 0)
    small = dl.gates.prune(gated)
    torch.testing.assert_close(small(x), gated(x))
    assert_as_before(model, before)


def test_sizes_in_code():
    """A literal size cannot be rewritten: said when gates are attached, not after they are trained."""
    model = Applied(
        lambda m, x: m.c(m.b(m.a(x).view(-1, 2, 3).transpose(1, 2).flatten(1)).relu()),
        a=nn.Linear(4, 6), b=nn.Linear(6, 5), c=nn.Linear(5, 2),
    )  # fmt: skip
    x = torch.randn(3, 4)
    with pytest.raises(dl.UnsupportedOperationError, match=r"group 'a' cannot be removed.*unknown='skip'.*'a'"):
        dl.gates.attach(model, x)
    gated = dl.gates.attach(model, x, unknown="skip")
    assert [group.size for group in gated.groups.values()] == [5]
    assert "a" in gated.analysis.unknown
    small = dl.gates.prune(gated)
    assert sum(p.numel() for p in small.parameters()) == gated.full_cost("parameters")


def test_control_flow_on_values():
    model = Applied(lambda m, x: m.b(m.a(x)) if x.sum() > 0 else m.b(-m.a(x)), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    with pytest.raises(dl.UnsupportedOperationError, match=r"cannot be traced.*control flow.*taken out"):
        dl.gates.attach(model, torch.randn(3, 4))


def test_the_last_unit_stays():
    model, example = made("perceptron")
    gated = dl.gates.attach(model, example)
    gated.gates["0"].weight.data.fill_(-1)
    before = snapshot(gated)
    with pytest.raises(ValueError, match=r"group '0' would lose its last of 7 units"):
        dl.gates.prune(gated)
    assert_as_before(gated, before)


def test_a_failed_pruning_changes_nothing():
    """Masks that are not what is removed: the outputs differ, and the first module where they do is named."""
    model, example = made("perceptron")
    gated = dl.gates.attach(model, example)
    close(gated, 0)
    gated._masked.clear()
    before = snapshot(gated)
    with pytest.raises(dl.gates.PruningError, match=r"does not compute what the gated one does.*module.*unchanged"):
        dl.gates.prune(gated)
    assert_as_before(gated, before)
    assert dl.gates.prune(gated, verify=False)[0].out_features < 7


def test_nothing_to_remove():
    with pytest.raises(ValueError, match="no channels that can be removed"):
        dl.gates.attach(nn.Linear(3, 2), torch.randn(1, 3))
    with pytest.raises(ValueError, match="no channels that can be removed"):
        dl.gates.attach(nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1), nn.Linear(4, 2)), torch.randn(1, 3))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"unknown": "ignore"}, ValueError, "argument 'unknown'"),
        ({"inexact": True}, (TypeError, ValueError), "argument 'inexact'"),
        ({"model": torch.relu}, TypeError, "argument 'model'"),
    ],
)
def test_bad_arguments(change, error, match):
    arguments = {"model": nn.Linear(2, 2), "example_inputs": torch.randn(1, 2)} | change
    with pytest.raises(error, match=match):
        dl.gates.attach(**arguments)
    with pytest.raises(TypeError, match="argument 'gated'"):
        dl.gates.prune(nn.Linear(2, 2))


def test_not_runnable_in_float64():
    class Single(nn.Module):
        def forward(self, x):
            return x + torch.nn.functional.linear(x, torch.ones(6, 6, dtype=torch.float32))

    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2))
    model.insert(1, Single())
    gated = dl.gates.attach(model, torch.randn(3, 4), unknown="skip")
    with pytest.raises(dl.gates.PruningError, match=r"cannot be run in float64.*verify=False"):
        dl.gates.prune(gated)
    assert isinstance(dl.gates.prune(gated, verify=False), nn.Sequential)
