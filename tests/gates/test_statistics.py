"""Norms written by hand: their means are taken over what is open, as torch's own norms take theirs."""

import copy

import pytest
import torch
from torch import nn

import difflayers as dl

from .zoo_images import Applied


class HandRMS(nn.Module):
    """As language models write it."""

    def __init__(self, n):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.rand(n) + 0.5), 1e-6

    def forward(self, x):
        exact = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        exact = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * exact.to(x.dtype)


class HandLayer(nn.Module):
    """Two means; `dim` 1 as in networks of images."""

    def __init__(self, n, dim=-1):
        super().__init__()
        self.weight, self.bias, self.dim = nn.Parameter(torch.rand(n) + 0.5), nn.Parameter(torch.rand(n)), dim

    def forward(self, x):
        x = x - torch.mean(x, self.dim, True)
        x = x / (x.square().mean(dim=(self.dim,), keepdim=True) + 1e-5).sqrt()
        shape = [-1 if d == self.dim % x.dim() else 1 for d in range(x.dim())]
        return x * self.weight.view(shape) + self.bias.view(shape)


class Turned(nn.Module):
    """torch's LayerNorm over dimension 1."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


def stream(norm, dim):
    layer = nn.Linear if dim == -1 else lambda i, o: nn.Conv2d(i, o, 1)

    def forward(m, x):
        x = m.embed(x)
        x = x + m.b(m.a(m.norm(x)).relu())
        return m.out(m.last(x)).mean(1)  # a mean that is over no channels, and is counted all the same

    return Applied(forward, embed=layer(3, 8), norm=norm(), a=layer(8, 6), b=layer(6, 8), last=norm(), out=layer(8, 5))


NORMS = {
    "rms": (lambda: HandRMS(8), lambda: nn.RMSNorm(8, eps=1e-6), -1),
    "layer": (lambda: HandLayer(8), lambda: nn.LayerNorm(8), -1),
    "images": (lambda: HandLayer(8, 1), lambda: Turned(nn.LayerNorm(8)), 1),
}


@pytest.mark.parametrize("kind", list(NORMS))
def test_norms_written_by_hand(kind):
    """Left whole unless inexact="allow"; then equal to torch's norm with the same gates, and to the pruned model."""
    torch.manual_seed(0)
    hand, own, dim = NORMS[kind]
    model = stream(hand, dim).double()
    x = torch.randn((4, 7, 3) if dim == -1 else (2, 3, 4, 4), dtype=torch.float64)
    assert [group.size for group in dl.gates.attach(model, x).groups.values()] == [6]
    gated = dl.gates.attach(model, x, inexact="allow")
    assert sorted(group.size for group in gated.groups.values()) == [6, 8]
    twin = stream(own, dim).double()
    twin.load_state_dict({_turned(key) if kind == "images" else key: v for key, v in model.state_dict().items()})
    other = dl.gates.attach(twin, x, inexact="allow")
    for name, gate in gated.gates.items():
        gate.weight.data = torch.where(torch.arange(gate.n) % 3 == 1, -1.0, 1.0)
        other.gates[name].weight.data.copy_(gate.weight.data)
    small = dl.gates.prune(gated)
    y = torch.randn_like(x)
    with torch.no_grad():
        torch.testing.assert_close(gated(y), other(y), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(small(y), gated(y), rtol=1e-10, atol=1e-10)
    assert small.norm.weight.shape == (5,)
    gated(y).square().sum().backward()
    other(y).square().sum().backward()
    for name, gate in gated.gates.items():
        torch.testing.assert_close(gate.weight.grad, other.gates[name].weight.grad, rtol=1e-4, atol=1e-6)


def _turned(key):
    return key.replace("norm.", "norm.norm.").replace("last.", "last.norm.")


def test_other_calls_than_traced_are_refused():
    model = stream(lambda: HandRMS(8), -1)
    gated = dl.gates.attach(model, torch.randn(4, 7, 3), inexact="allow")
    before = copy.deepcopy(gated.state_dict())
    gated.model.function = lambda m, x: m.out(m.last(m.embed(x)))
    with pytest.raises(dl.UnsupportedOperationError, match=r"inexact='allow'.*3 times, got 1 calls"):
        gated(torch.randn(4, 7, 3))
    assert all(torch.equal(value, before[key]) for key, value in gated.state_dict().items())
