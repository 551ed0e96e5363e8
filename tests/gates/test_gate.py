"""The gates themselves: exact values, the gradient's shape, the transforms."""

import pytest
import torch
from torch import nn

import difflayers as dl
from difflayers import gates
from difflayers.gates.gate import _step

SHAPES = {
    "constant": (torch.ones_like, torch.zeros_like),
    "sigmoid": (
        lambda w: 1 / (2 + w.exp() + (-w).exp()),
        lambda w: -(w.exp() - (-w).exp()) / (2 + w.exp() + (-w).exp()) ** 2,
    ),
    "triangle": (
        lambda w: torch.relu(1 - w.abs()),
        lambda w: torch.where(w.abs() < 1, -w.sign(), torch.zeros_like(w)),
    ),
}
WEIGHTS = torch.tensor([-3.0, -0.75, -1e-3, -0.0, 0.0, 1e-30, 0.25, 0.6, 2.5], dtype=torch.float64)


def made(gradient="constant", dtype=torch.float64, **settings):
    return dl.TrainableGate(len(WEIGHTS), gradient=gradient, initial=WEIGHTS.to(dtype), **settings)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("gradient", [*SHAPES, "callable"])
def test_values_are_zero_or_one_and_the_gradient_is_the_shape(gradient, dtype):
    given = (lambda w: torch.exp(-w * w)) if gradient == "callable" else gradient
    g = given if gradient == "callable" else SHAPES[gradient][0]
    gate = made(given, dtype)
    value = gate()
    assert value.dtype == dtype
    # the weight 1e-30 is 0 in float16: open all the same
    assert value.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert gate.opened().tolist() == [v == 1 for v in value.tolist()]
    factors = torch.arange(1.0, len(WEIGHTS) + 1, dtype=dtype)
    (value * factors).sum().backward()
    expected = factors.double() * g(gate.weight.detach().double())
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6}.get(dtype, 2e-2)
    torch.testing.assert_close(gate.weight.grad.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("gradient", list(SHAPES))
@pytest.mark.parametrize("m", [1e3, 1e5])
def test_the_literal_formula_tends_to_the_step(gradient, m):
    g, slope = SHAPES[gradient]
    weights = torch.linspace(-2, 2, 401, dtype=torch.float64) + 1e-7
    gate = dl.TrainableGate(401, gradient=gradient, finite_m=m, initial=weights)
    value = gate()
    step = (weights >= 0).double()
    # b + (M w - floor(M w)) / M g(w), in numbers
    saw = (m * weights - torch.floor(m * weights)) / m
    torch.testing.assert_close(value.detach(), step + saw * g(weights), rtol=0, atol=1e-12)
    assert bool(((value - step).abs() <= g(weights) / m + 1e-15).all())
    value.sum().backward()
    torch.testing.assert_close(gate.weight.grad, g(weights) + saw * slope(weights), rtol=0, atol=1e-9)
    assert float((gate.weight.grad - g(weights)).abs().max()) <= 1 / m


@pytest.mark.parametrize("gradient", list(SHAPES))
def test_double_backward_is_that_of_a_function_with_this_derivative(gradient):
    gate = made(gradient)
    (first,) = torch.autograd.grad((gate() * 3).sum(), gate.weight, create_graph=True)
    if not first.requires_grad:  # a constant shape
        assert gradient == "constant"
        return
    (second,) = torch.autograd.grad(first.sum(), gate.weight, allow_unused=True)
    torch.testing.assert_close(second, 3 * SHAPES[gradient][1](WEIGHTS))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # jacfwd of torch 2.13 uses it
@pytest.mark.parametrize("gradient", list(SHAPES))
def test_functional_transforms(gradient):
    gate = made(gradient)

    def run(weight):
        return torch.func.functional_call(gate, {"weight": weight}, ())

    g = SHAPES[gradient][0]
    torch.testing.assert_close(torch.func.grad(lambda w: run(w).sum())(WEIGHTS), g(WEIGHTS))
    rows = torch.stack([WEIGHTS, -WEIGHTS, WEIGHTS + 0.5])
    assert torch.equal(torch.vmap(run)(rows), (rows >= 0).double())
    each = torch.vmap(torch.func.grad(lambda w: (run(w) * 2).sum()))(rows)
    torch.testing.assert_close(each, 2 * g(rows))
    torch.testing.assert_close(torch.func.jacrev(run)(WEIGHTS), torch.diag(g(WEIGHTS)))
    torch.testing.assert_close(torch.func.jacfwd(run)(WEIGHTS), torch.diag(g(WEIGHTS)))
    second = torch.func.grad(lambda w: torch.func.grad(lambda v: run(v).sum())(w).sum())(WEIGHTS)
    torch.testing.assert_close(second, SHAPES[gradient][1](WEIGHTS))


@pytest.mark.parametrize("gradient", ["triangle", "callable"])
def test_compiled_without_a_break(gradient):
    torch._dynamo.reset()
    given = (lambda w: 1 / (1 + w * w)) if gradient == "callable" else gradient
    gate = made(given)
    compiled = torch.compile(lambda x: (gate() * x).sum(), fullgraph=True, backend="aot_eager")
    x = torch.arange(1.0, 10.0, dtype=torch.float64)
    loss = compiled(x)
    loss.backward()
    found, gate.weight.grad = gate.weight.grad, None
    (gate() * x).sum().backward()
    assert float(loss.detach()) == float((gate() * x).sum().detach())
    torch.testing.assert_close(found, gate.weight.grad)
    slope = torch.compile(torch.func.grad(lambda w: (_step(w, gate.shape) * x).sum()), fullgraph=True, backend="eager")
    torch.testing.assert_close(slope(WEIGHTS), found)


@pytest.mark.parametrize("make", [dl.TrainableGate, gates.HardConcreteGate, gates.BernoulliGate])
def test_bad_settings(make):
    with pytest.raises(ValueError, match="'n' must be at least 1"):
        make(0)
    with pytest.raises(TypeError, match="'n' must be an integer"):
        make(2.0)
    with pytest.raises(ValueError, match="'initial'"):
        make(2, initial=torch.zeros(3))
    with pytest.raises(TypeError, match="'initial'"):
        make(2, initial=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="'initial'"):
        make(2, initial=float("nan"))
    with pytest.raises(ValueError, match="'initial' must be finite"):
        make(2, initial=torch.tensor([0.0, float("nan")]))


def test_bad_settings_of_one_kind():
    with pytest.raises(ValueError, match="'gradient' must be one of 'constant'"):
        dl.TrainableGate(2, gradient="linear")
    with pytest.raises(TypeError, match="'gradient'"):
        dl.TrainableGate(2, gradient=3)
    with pytest.raises(ValueError, match="'finite_m'"):
        dl.TrainableGate(2, finite_m=0.0)
    with pytest.raises(ValueError, match="'temperature'"):
        gates.HardConcreteGate(2, temperature=0.0)
    with pytest.raises(ValueError, match="'estimator'"):
        gates.BernoulliGate(2, estimator="reinforce")


def test_bernoulli_values_and_gradient_are_unbiased_for_a_linear_function():
    logits = torch.tensor([-1.5, 0.0, 0.8], dtype=torch.float64)
    p = torch.sigmoid(logits)
    for estimator in ("reinmax", "straight_through"):
        gate = gates.BernoulliGate(3, estimator=estimator, initial=logits)
        factors = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
        samples, slopes = [], []
        for _ in range(1500):
            value = gate()
            assert set(value.tolist()) <= {0.0, 1.0}
            samples.append(value.detach())
            slopes.append(torch.autograd.grad((value * factors).sum(), gate.weight)[0])
        deviation = (torch.stack(samples).mean(0) - p) / (p * (1 - p) / 1500).sqrt()
        assert bool((deviation.abs() < 4).all())
        slopes = torch.stack(slopes)
        error = (slopes.mean(0) - factors * p * (1 - p)).abs()
        assert bool((error <= 4 * slopes.std(0) / 1500**0.5 + 1e-12).all())
    torch.testing.assert_close(gate.openness().detach(), p)


def test_bernoulli_is_the_step_in_evaluation():
    gate = gates.BernoulliGate(3, initial=torch.tensor([-0.1, 0.0, 0.1])).eval()
    assert gate().tolist() == [0.0, 1.0, 1.0]
    gate().sum().backward()
    p = torch.sigmoid(gate.weight.detach())
    torch.testing.assert_close(gate.weight.grad, p * (1 - p))


def test_hard_concrete_opens_as_often_as_it_says():
    logits = torch.tensor([-2.0, -0.5, 0.0, 2.0], dtype=torch.float64)
    gate = gates.HardConcreteGate(4, initial=logits)
    with torch.no_grad():
        values = torch.stack([gate() for _ in range(2000)])
    assert bool(((values >= 0) & (values <= 1)).all())
    share = (values > 0).double().mean(0)
    p = gate.openness().detach()
    assert bool(((share - p).abs() < 4 * (p * (1 - p) / 2000).sqrt()).all())
    gate.eval()
    assert torch.equal(gate(), gate())
    assert gate.opened().tolist() == (p >= 0.5).tolist()


def test_a_gate_of_ones_own():
    class Soft(gates.Gate):
        def __init__(self, n):
            super().__init__(n)
            self.weight = nn.Parameter(torch.zeros(n))

        def forward(self):
            return torch.sigmoid(self.weight)

    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    gated = gates.attach(net, torch.randn(1, 3), gate=Soft)
    x = torch.randn(5, 3)
    half = torch.func.functional_call(net, {"2.weight": net[2].weight / 2}, (x,))
    torch.testing.assert_close(gated(x), half)
    with pytest.raises(TypeError):
        gates.Gate(3)  # abstract
