"""Recurrent layers keep a list of their weights beside their parameters: gates reach it, and leave it as it was."""

import pytest
import torch
from torch import nn

import difflayers as dl
from difflayers import gates

from .zoo_images import Applied

LAYERS = {
    "lstm": (lambda i, h: nn.LSTM(i, h), 4),
    "gru": (lambda i, h: nn.GRU(i, h), 3),
    "tanh": (lambda i, h: nn.RNN(i, h), 1),
}


@pytest.mark.parametrize("kind", list(LAYERS))
def test_closed_units_are_those_of_a_smaller_layer(kind):
    """Against a layer that never had them, made by hand; and the gradient against finite differences."""
    make, parts = LAYERS[kind]
    torch.manual_seed(0)
    net = Applied(lambda m, x: m.out(m.layer(x)[0]), layer=make(3, 5), out=nn.Linear(5, 2)).double()
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    gated = gates.attach(net, x)
    (name,) = gated.groups
    kept = torch.tensor([0, 2, 3])
    gated.gates[name].weight.data = torch.tensor([1.0, -1, 1, 1, -1])
    rows = (torch.arange(parts)[:, None] * 5 + kept).flatten()
    small = make(3, 3).double()
    with torch.no_grad():
        for part, old in net.layer.named_parameters():
            getattr(small, part).copy_(old[rows][:, kept] if part == "weight_hh_l0" else old[rows])
        expected = small(x)[0] @ net.out.weight[:, kept].T + net.out.bias
        torch.testing.assert_close(gated(x), expected, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(gated(x), net(x), atol=1e-3)
    # closed gates have a gradient, through the weights inside of the layer as well
    values = torch.tensor([1.0, 0, 1, 1, 0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: gated.bound({name: z})(x), values)
    whole = torch.autograd.grad(gated.bound({name: values})(x).square().sum(), values)[0]
    outer = net.out.weight * values
    with torch.no_grad():
        y = gated.model.layer(x)[0]
    of_outer = torch.autograd.grad((y @ outer.T + net.out.bias).square().sum(), values)[0]
    assert (whole - of_outer).abs().min() > 1e-4


def test_the_list_is_as_it_was():
    net = nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 5, num_layers=2))
    net = Applied(lambda m, x: m.out(m.layers(x)[0]), layers=net, out=nn.Linear(5, 2))
    gated = gates.attach(net, torch.randn(4, 2, 3))
    layer = net.layers[1]

    def untouched():
        return len(layer._flat_weights) == 8 and all(
            weight is getattr(layer, name)
            for name, weight in zip(layer._flat_weights_names, layer._flat_weights, strict=True)
        )

    gated(torch.randn(4, 2, 3)).sum().backward()
    assert untouched()
    with pytest.raises(RuntimeError):
        gated(torch.randn(4, 2, 7))
    assert untouched()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in layer.parameters())
    small = gates.prune(gated)
    assert untouched()
    assert [id(w) for w in small.layers[1]._flat_weights] == [id(p) for p in small.layers[1].parameters()]


def test_packed_inputs_are_refused():
    net = nn.LSTM(3, 4)
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(5, 2, 3), torch.tensor([5, 3]))
    with pytest.raises(dl.UnsupportedOperationError, match=r"PackedSequence.*pack them in the model's forward"):
        gates.attach(net, packed)


def test_torch_is_as_it_was_after_a_trace():
    before = nn.LSTM.forward, nn.utils.rnn._VF
    net = Applied(lambda m, x: m.out(torch.fft.fft(m.layer(x)[0]).real), layer=nn.LSTM(3, 4), out=nn.Linear(4, 2))
    with pytest.raises(dl.UnsupportedOperationError):
        gates.attach(net, torch.randn(5, 2, 3))
    assert (nn.LSTM.forward, nn.utils.rnn._VF) == before
