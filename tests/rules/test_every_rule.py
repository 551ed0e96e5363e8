"""What holds for every rule: rows do not disturb each other, failures pass no gradient, bad input raises."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch

import difflayers as dl
from tests.rules.polytopes import Recorded, subsets
from tests.tolerances import assert_identical, assert_near

RULES = {
    "Blackbox": lambda: dl.Blackbox(2.0),
    "Blackbox both": lambda: dl.Blackbox(2.0, side="both"),
    "Blackbox worsen": lambda: dl.Blackbox(2.0, side="worsen"),
    "Identity": lambda: dl.rules.Identity(),
    "Identity None": lambda: dl.rules.Identity(None),
    "Perturbed": lambda: dl.rules.Perturbed(0.5, samples=4),
    "Perturbed gumbel": lambda: dl.rules.Perturbed(0.5, samples=4, noise="gumbel", control_variate=False),
    "PerturbedMultiplicative": lambda: dl.rules.PerturbedMultiplicative(0.5, samples=4, antithetic=True),
    "IMLE": lambda: dl.rules.IMLE(2.0, k=2, samples=4),
    "IMLE symmetric": lambda: dl.rules.IMLE(2.0, k=2, samples=4, symmetric=True),
    "AdaptiveIMLE": lambda: dl.rules.AdaptiveIMLE(samples=4),
    "FrankWolfe": lambda: dl.rules.FrankWolfe(0.5),
    "LPGD": lambda: dl.rules.LPGD(2.0, rho=0.5),
    "LPGD no penalty": lambda: dl.rules.LPGD(2.0, side="both"),
}
STOCHASTIC = [name for name in RULES if "Perturbed" in name or "IMLE" in name]
ANY_COSTS = [name for name in RULES if name != "LPGD"]  # on oracles of nonnegative costs, too
each_rule = pytest.mark.parametrize("rule", RULES)


def seeded():
    return torch.Generator().manual_seed(5)


def run(rule, oracle, costs, incoming):
    layer = dl.SolverLayer(oracle, rule=RULES[rule]())
    leaf = costs.clone().requires_grad_()
    y = layer(leaf, generator=seeded())
    (gradient,) = torch.autograd.grad(y, leaf, incoming)
    return y.detach(), gradient


@each_rule
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (0,)], ids=str)
def test_shapes_and_dtypes(rule, dtype, lead):
    costs = torch.randn(*lead, 6).to(dtype)
    y, gradient = run(rule, dl.oracles.TopK(6, 2), costs, torch.randn(*lead, 6).to(dtype))
    assert y.shape == gradient.shape == costs.shape
    assert y.dtype == gradient.dtype == dtype
    assert y.isfinite().all()
    assert gradient.isfinite().all()
    torch.testing.assert_close(y.double().sum(-1), torch.full(lead, 2.0).double(), rtol=0, atol=0.02)


@each_rule
def test_matrix_shaped_costs(rule):
    oracle = dl.oracles.FromCallable(lambda c: (c == c.min()).astype(float), (2, 3))
    costs, incoming = torch.rand(4, 2, 3, dtype=torch.float64) + 0.1, torch.randn(4, 2, 3, dtype=torch.float64)
    y, gradient = run(rule, oracle, costs, incoming)
    flat_oracle = dl.oracles.FromCallable(lambda c: (c == c.min()).astype(float), (6,))
    flat_y, flat_gradient = run(rule, flat_oracle, costs.flatten(1), incoming.flatten(1))
    assert_near(y.flatten(1), flat_y)
    assert_near(gradient.flatten(1), flat_gradient, order=1)


@each_rule
def test_rows_without_incoming_gradient_get_none(rule):
    costs, incoming = torch.rand(5, 6, dtype=torch.float64) + 0.1, torch.randn(5, 6, dtype=torch.float64)
    incoming[[1, 3]] = 0.0
    _, gradient = run(rule, dl.oracles.TopK(6, 2), costs, incoming)
    assert_identical(gradient[[1, 3]], torch.zeros(2, 6, dtype=torch.float64))
    _, gradient = run(rule, dl.oracles.TopK(6, 2), costs, torch.zeros_like(incoming))
    assert_identical(gradient, torch.zeros(5, 6, dtype=torch.float64))


@each_rule
def test_no_solve_for_a_gradient_of_zero(rule):
    oracle = Recorded(subsets(6, 2))
    costs = torch.rand(5, 6, dtype=torch.float64, requires_grad=True)
    y = RULES[rule]()(oracle, costs)
    before = len(oracle.calls)
    y.backward(torch.zeros_like(y))
    assert len(oracle.calls) == before


@each_rule
def test_rows_with_a_broken_gradient_are_nan_and_alone(rule):
    costs, incoming = torch.rand(4, 6, dtype=torch.float64) + 0.1, torch.randn(4, 6, dtype=torch.float64)
    clean = incoming.clone()
    clean[1:3] = 0.0
    _, expected = run(rule, dl.oracles.TopK(6, 2), costs, clean)
    incoming[1, 0], incoming[2, 3] = math.nan, math.inf
    _, gradient = run(rule, dl.oracles.TopK(6, 2), costs, incoming)
    assert (~gradient[1:3].isfinite()).any(1).all()
    assert_near(gradient[[0, 3]], expected[[0, 3]], order=1)


@each_rule
def test_rows_without_a_solution_are_nan_and_pass_no_gradient(rule):
    oracle = dl.oracles.TopK(6, 2, on_failure="nan").with_parameters(k=np.array([2, 7, 1]))
    costs, incoming = torch.rand(3, 6, dtype=torch.float64) + 0.1, torch.randn(3, 6, dtype=torch.float64)
    spoilt = incoming.clone()
    spoilt[1] = math.nan  # as of any loss that looks at the NaN solution
    y, gradient = run(rule, oracle, costs, spoilt)
    assert y[1].isnan().all()
    assert_identical(gradient[1], torch.zeros(6, dtype=torch.float64))
    assert y[[0, 2]].isfinite().all()
    assert gradient[[0, 2]].isfinite().all()
    torch.testing.assert_close(y[[0, 2]].sum(1), torch.tensor([2.0, 1.0]).double())


@each_rule
def test_previous_solutions_are_those_returned_not_those_of_gradients(rule):
    asked = []

    def f(cost):  # row 1 of every later call has no solution
        asked.append(cost)
        return None if cost[0] > 100 else np.eye(6)[cost.argmin()]

    oracle = dl.oracles.FromCallable(f, (6,), on_failure="previous")
    costs, incoming = torch.rand(3, 6, dtype=torch.float64) + 0.1, torch.randn(3, 6, dtype=torch.float64)
    first, _ = run(rule, oracle, costs, incoming)
    costs[1, 0] = 1e6
    again, gradient = run(rule, oracle, costs, incoming)
    assert gradient.isfinite().all()
    if rule != "FrankWolfe":  # whose calls differ in their rows
        assert_identical(again[1], first[1])


@each_rule
def test_rows_do_not_depend_on_each_other(rule):
    if rule == "AdaptiveIMLE" or rule in STOCHASTIC:
        pytest.skip("their noise, and the step of AdaptiveIMLE, are drawn for the batch")
    costs, incoming = torch.rand(5, 6, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    oracle = dl.oracles.TopK(6, 2)
    together = run(rule, oracle, costs, incoming)
    for row in range(5):
        for whole, alone in zip(together, run(rule, oracle, costs[row], incoming[row]), strict=True):
            assert_near(whole[row], alone, order=1)


@each_rule
def test_per_instance_parameters(rule):
    k = np.array([1, 4])
    oracle = dl.oracles.TopK(6, 2).with_parameters(k=k)
    costs, incoming = torch.rand(3, 2, 6, dtype=torch.float64) + 0.1, torch.randn(3, 2, 6, dtype=torch.float64)
    y, gradient = run(rule, oracle, costs, incoming)
    torch.testing.assert_close(y.sum(-1), torch.tensor([1.0, 4.0]).double().expand(3, 2))
    if rule not in STOCHASTIC:
        for j in range(2):
            alone = run(rule, dl.oracles.TopK(6, int(k[j])), costs[:, j], incoming[:, j])
            assert_near(y[:, j], alone[0])
            assert_near(gradient[:, j], alone[1], order=1)


@pytest.mark.parametrize("rule", STOCHASTIC)
def test_the_generator_decides(rule):
    oracle, costs, incoming = dl.oracles.TopK(30, 5), torch.rand(4, 30), torch.randn(4, 30)
    first, again = run(rule, oracle, costs, incoming), run(rule, oracle, costs, incoming)
    assert_identical(first[0], again[0])
    assert_identical(first[1], again[1])
    other = RULES[rule]()(oracle, costs, generator=torch.Generator().manual_seed(6))
    assert not torch.equal(first[0], other)
    torch.manual_seed(1)
    one = RULES[rule]()(oracle, costs)
    torch.manual_seed(1)
    assert_identical(RULES[rule]()(oracle, costs), one)


@pytest.mark.parametrize("rule", ANY_COSTS)
def test_the_oracle_never_sees_costs_outside_of_its_domain(rule):
    oracle = Recorded(subsets(6, 2), cost_domain="nonnegative")
    costs, incoming = torch.rand(5, 6, dtype=torch.float64) * 0.3, 5 * torch.randn(5, 6, dtype=torch.float64)
    run(rule, oracle, costs, incoming)
    assert all((call >= 0).all() for call in oracle.calls)
    with pytest.raises(ValueError, match=r"argument 'costs' must not be negative, got -1 \(rows 2\)"):
        run(rule, oracle, costs.index_fill(0, torch.tensor([2]), -1.0), incoming)


@each_rule
def test_bad_costs(rule):
    rule = RULES[rule]()
    oracle = dl.oracles.TopK(6, 2)
    name = rf"difflayers\.rules\.{type(rule).__name__}"
    with pytest.raises(TypeError, match=rf"{name}: argument 'costs' must be a torch.Tensor, got list"):
        rule(oracle, [1.0] * 6)
    with pytest.raises(TypeError, match="floating-point dtype, got int64"):
        rule(oracle, torch.arange(6))
    with pytest.raises(ValueError, match=rf"{name}: argument 'costs' must have shape \[\.\.\., 6\], got \(2, 5\)"):
        rule(oracle, torch.rand(2, 5))
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"must be finite, got NaN or infinity in rows 1"):
            rule(oracle, torch.rand(3, 6).index_fill(0, torch.tensor([1]), bad))
    with pytest.raises(TypeError, match=rf"{name}: argument 'generator' must be a torch.Generator or None, got int"):
        rule(oracle, torch.rand(6), generator=3)


@each_rule
def test_failures_raise(rule):
    oracle = dl.oracles.TopK(6, 2).with_parameters(k=np.array([2, 7, 1]))
    with pytest.raises(dl.InfeasibleError, match="INFEASIBLE"):
        RULES[rule]()(oracle, torch.rand(3, 6))


@each_rule
def test_transforms_that_cannot_be_raise_by_name(rule):
    layer = dl.SolverLayer(dl.oracles.TopK(6, 2), rule=RULES[rule]())
    name = rf"difflayers\.rules\.{type(layer.rule).__name__}: a solver runs on the host"
    with pytest.raises(dl.UnsupportedOperationError, match=name):
        torch.func.grad(lambda c: layer(c).sum())(torch.rand(6))
    with pytest.raises(dl.UnsupportedOperationError, match=name):
        torch.func.vmap(layer, randomness="different")(torch.rand(2, 6))


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, while tracing
@pytest.mark.parametrize("rule", ["Blackbox", "Perturbed", "FrankWolfe"])
def test_compile(rule):
    layer = dl.SolverLayer(dl.oracles.TopK(6, 2), rule=RULES[rule]())
    costs, incoming = torch.rand(3, 6), torch.randn(3, 6)

    def f(c):
        return layer(c * 2.0, generator=None) * 3.0

    results = []
    for function in (f, torch.compile(f, backend="aot_eager")):
        torch.manual_seed(0)
        leaf = costs.clone().requires_grad_()
        y = function(leaf)
        results.append((y.detach(), torch.autograd.grad(y, leaf, incoming)[0]))
    for actual, expected in zip(*results, strict=True):
        assert_near(actual, expected)
    torch.compiler.reset()
    with pytest.raises(Exception, match=r"a solver runs on the host and cannot be traced"):
        torch.compile(f, backend="aot_eager", fullgraph=True)(costs)
    with pytest.raises(Exception, match=r"a solver runs on the host and cannot be traced"):
        torch.export.export(layer, (costs,))


@each_rule
def test_checkpointing(rule):
    oracle, costs, incoming = dl.oracles.TopK(6, 2), torch.rand(3, 6), torch.randn(3, 6)
    results = []
    for checkpointed in (False, True):
        layer = RULES[rule]()
        torch.manual_seed(2)
        leaf = costs.clone().requires_grad_()
        y = (
            torch.utils.checkpoint.checkpoint(lambda c, layer=layer: layer(oracle, c), leaf, use_reentrant=False)
            if checkpointed
            else layer(oracle, leaf)
        )
        results.append(torch.autograd.grad(y, leaf, incoming)[0])
    assert_identical(*results)


@each_rule
def test_second_derivatives_raise_or_are_the_surrogates(rule):
    costs = torch.rand(6, dtype=torch.float64, requires_grad=True)
    y = RULES[rule]()(dl.oracles.TopK(6, 2), costs)
    (gradient,) = torch.autograd.grad(y.square().sum(), costs, create_graph=True)
    if "Identity" in rule:
        return
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@each_rule
def test_copies_and_repr(rule):
    original = RULES[rule]()
    assert type(original).__name__ in repr(original)
    for twin in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert repr(twin) == repr(original)
        assert vars(twin) == vars(original)


BAD = [
    (ValueError, "lam", lambda: dl.rules.IMLE(0.0)),
    (TypeError, "lam", lambda: dl.rules.IMLE("1")),
    (ValueError, "k", lambda: dl.rules.IMLE(1.0, k=0)),
    (ValueError, "sigma", lambda: dl.rules.IMLE(1.0, sigma=-1.0)),
    (ValueError, "samples", lambda: dl.rules.IMLE(1.0, samples=0)),
    (TypeError, "symmetric", lambda: dl.rules.IMLE(1.0, symmetric=1)),
    (ValueError, "beta", lambda: dl.rules.AdaptiveIMLE(beta=-1.0)),
    (ValueError, "decay", lambda: dl.rules.AdaptiveIMLE(decay=1.0)),
    (ValueError, "sigma", lambda: dl.rules.Perturbed(0.0)),
    (ValueError, "noise", lambda: dl.rules.Perturbed(noise="cauchy")),
    (ValueError, "samples", lambda: dl.rules.Perturbed(samples=1)),
    (ValueError, "samples", lambda: dl.rules.Perturbed(samples=3, antithetic=True)),
    (ValueError, "antithetic", lambda: dl.rules.Perturbed(noise="gumbel", antithetic=True)),
    (ValueError, "projection", lambda: dl.rules.Identity("simplex")),
    (TypeError, "projection", lambda: dl.rules.Identity(True)),
    (ValueError, "lam", lambda: dl.rules.FrankWolfe(-1.0)),
    (ValueError, "max_iterations", lambda: dl.rules.FrankWolfe(max_iterations=0)),
    (ValueError, "tau", lambda: dl.rules.LPGD(0.0)),
    (ValueError, "rho", lambda: dl.rules.LPGD(1.0, rho=-1.0)),
    (ValueError, "side", lambda: dl.rules.LPGD(1.0, side="up")),
]


@pytest.mark.parametrize(("error", "argument", "make"), BAD)
def test_bad_settings(error, argument, make):
    with pytest.raises(error, match=rf"^difflayers\.rules\.\w+: argument '{argument}' must be ") as caught:
        make()
    assert "\n" not in str(caught.value)
