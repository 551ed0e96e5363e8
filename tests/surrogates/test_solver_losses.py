"""Losses that solve: values and gradients against enumeration, convexity, bounds, failures."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch

import difflayers as dl
from difflayers import surrogates

from ..tolerances import assert_near
from .polytopes import (
    SETS,
    assert_convex,
    enumerated,
    finite_difference,
    gradient,
    minimiser,
    rows_of,
    subsets,
    values,
)

BATCH = 7
every_set = pytest.mark.parametrize("vertices", SETS.values(), ids=SETS.keys())


def draw_like(vertices):
    return lambda seed: rows_of(vertices, BATCH, seed)[0]


# --- SPO+ ---


@every_set
def test_spo_plus_is_its_definition(vertices):
    predicted, true, best = rows_of(vertices, BATCH)
    loss = surrogates.SPOPlus(enumerated(vertices), reduction="none")
    inner = values(vertices, true - 2 * predicted).max(1).values
    expected = inner + 2 * (predicted * best).flatten(1).sum(1) - values(vertices, true).min(1).values
    assert_near(loss(predicted, true), expected)
    assert_near(loss(predicted, true, best), expected)
    objective = (true * best).flatten(1).sum(1)
    assert_near(loss(predicted, true, best, objective - 1.5), expected + 1.5)
    found = minimiser(vertices, 2 * predicted - true)
    assert_near(gradient(lambda p: loss(p, true), predicted), 2 * (best - found))


@every_set
def test_spo_plus_bounds_the_regret_and_is_zero_at_the_truth(vertices):
    predicted, true, _ = rows_of(vertices, 100)
    oracle = enumerated(vertices)
    loss = surrogates.SPOPlus(oracle, reduction="none")
    assert (loss(predicted, true) >= surrogates.regret(predicted, true, oracle, reduction="none") - 1e-12).all()
    assert_near(loss(true, true), torch.zeros(100, dtype=torch.float64))
    assert_convex(lambda p: loss(p, true[:BATCH]), draw_like(vertices))


def test_spo_plus_solves_each_truth_once():
    calls = []

    def f(costs):
        calls.append(len(costs))
        return np.eye(3)[costs.argmin(1)]

    loss = surrogates.SPOPlus(dl.oracles.FromCallable(f, (3,), batched=True))
    predicted, true = torch.randn(2, 5, 3)
    first = loss(predicted, true)
    assert calls == [5, 5]
    assert loss(predicted.flip(0), true.flip(0)) == pytest.approx(first.item())
    assert calls == [5, 5, 5]
    loss(predicted, true + 1)
    assert calls == [5, 5, 5, 5, 5]
    for other in (
        copy.deepcopy(loss),
        pickle.loads(pickle.dumps(copy.deepcopy(surrogates.SPOPlus(dl.oracles.TopK(3, 1))))),
    ):
        assert other(predicted, true) == pytest.approx(first.item())


def test_spo_plus_remembers_by_instance():
    oracle = dl.oracles.TopK(3, 1)
    loss = surrogates.SPOPlus(oracle.with_parameters(k=np.array([1, 2])), reduction="none")
    predicted, true = torch.randn(2, 3, dtype=torch.float64), torch.tensor([[1.0, 2, 3]] * 2, dtype=torch.float64)
    for _ in range(2):
        rows = loss(predicted, true)
        for i, k in enumerate((1, 2)):
            alone = surrogates.SPOPlus(dl.oracles.TopK(3, k))
            assert_near(rows[i], alone(predicted[i], true[i]))


def test_spo_plus_on_nonnegative_costs_stays_a_lower_bound():
    vertices = subsets(4, 2)
    seen = []

    def f(costs):
        seen.append(costs)
        return vertices.numpy()[(costs @ vertices.numpy().T).argmin(1)]

    oracle = dl.oracles.FromCallable(f, (4,), batched=True, cost_domain="nonnegative")
    predicted, true = torch.rand(2, 200, 4, dtype=torch.float64)
    rows = surrogates.SPOPlus(oracle, reduction="none")(predicted, true)
    full = surrogates.SPOPlus(enumerated(vertices), reduction="none")(predicted, true)
    assert min(costs.min() for costs in seen) >= 0
    assert (rows >= 0).all()
    assert (rows <= full + 1e-12).all()
    inside = (2 * predicted - true >= 0).all(1)
    assert inside.any()
    assert_near(rows[inside], full[inside])


def test_heuristic_oracle_keeps_spo_plus_non_negative():
    worst = dl.oracles.FromCallable(lambda c: np.eye(4)[c.argmax(1)], (4,), batched=True, exact=False)
    predicted, true = torch.randn(2, 50, 4, dtype=torch.float64)
    best = torch.eye(4, dtype=torch.float64)[true.argmin(1)]
    rows = surrogates.SPOPlus(worst, reduction="none")(predicted, true, best)
    assert (rows >= 0).all()


# --- Fenchel-Young ---


@pytest.mark.parametrize("perturbation", ["additive", "multiplicative"])
@every_set
def test_perturbed_fenchel_young_is_its_definition(vertices, perturbation):
    predicted, _, best = rows_of(vertices, BATCH)
    loss = surrogates.FenchelYoung(
        enumerated(vertices), perturbation=perturbation, samples=5, sigma=0.7, reduction="none"
    )
    noise = torch.randn(5, *predicted.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected, direction = torch.zeros(BATCH, dtype=torch.float64), torch.zeros_like(predicted)
    for z in noise:
        factor = torch.ones_like(z) if perturbation == "additive" else (0.7 * z - 0.245).exp()
        costs = predicted + 0.7 * z if perturbation == "additive" else predicted * factor
        expected += ((predicted * best).flatten(1).sum(1) - values(vertices, costs).min(1).values) / 5
        direction += (best - factor * minimiser(vertices, costs)) / 5

    def f(p):
        return loss(p, best, generator=torch.Generator().manual_seed(3))

    assert_near(f(predicted), expected)
    assert_near(gradient(f, predicted), direction)
    assert_near(finite_difference(f, predicted, 1e-7), direction, factor=1e5)  # piecewise linear: rounding alone
    assert_convex(f, draw_like(vertices), trials=5)


def test_perturbed_fenchel_young_vanishes_with_the_noise_at_the_truth():
    vertices = SETS["paths"]
    _, true, best = rows_of(vertices, 200)
    for sigma, bound in ((1e-3, 2e-3), (1e-6, 2e-6)):
        loss = surrogates.FenchelYoung(enumerated(vertices), sigma=sigma, samples=4, antithetic=True, reduction="none")
        rows = loss(true, best)
        assert (rows >= -1e-12).all()  # antithetic noise has mean zero
        assert rows.mean() < bound


def test_antithetic_noise_comes_in_pairs():
    seen = []

    def f(costs):
        seen.append(costs)
        return np.zeros_like(costs)

    oracle = dl.oracles.FromCallable(f, (3,), batched=True)
    predicted = torch.randn(2, 3, dtype=torch.float64)
    surrogates.FenchelYoung(oracle, samples=4, antithetic=True)(predicted, torch.zeros(2, 3))
    noise = torch.from_numpy(seen[0]).reshape(4, 2, 3) - predicted
    assert_near(noise[:2], -noise[2:])


class Quadratic:
    """argmin over the simplex of c.x + lam / 2 |x|^2, by sorting: the projection of -c / lam."""

    def __init__(self, lam):
        self.lam = lam

    def __call__(self, oracle, costs, *, generator=None):
        v = -costs / self.lam
        u = v.sort(-1, descending=True).values
        k = torch.arange(1, v.shape[-1] + 1, dtype=v.dtype)
        threshold = (u.cumsum(-1) - 1) / k
        size = (u > threshold).sum(-1, keepdim=True)
        return (v - threshold.gather(-1, size - 1)).clamp(min=0)

    def regulariser(self, x):
        return self.lam / 2 * x.square().sum(-1)


def test_regularised_fenchel_young():
    oracle = enumerated(SETS["one of four"])
    predicted, _, best = rows_of(SETS["one of four"], 50)
    loss = surrogates.FenchelYoung(oracle, regularisation=Quadratic(0.8), reduction="none")
    rows = loss(predicted, best)
    found = Quadratic(0.8)(oracle, predicted)
    conjugate = (predicted * found).sum(1) + 0.4 * found.square().sum(1)
    assert_near(rows, (predicted * best).sum(1) + 0.4 * best.square().sum(1) - conjugate)
    assert (rows >= -1e-12).all()
    assert_near(gradient(lambda p: loss(p, best), predicted), best - found)
    finite = finite_difference(lambda p: loss(p, best), predicted)
    assert_near(finite, best - found, factor=1e5)  # of central differences
    assert_convex(lambda p: loss(p, best[:BATCH]), draw_like(SETS["one of four"]))
    assert_near(loss(10 * (1 - best), best), torch.zeros(50, dtype=torch.float64))  # the solution is best itself
    with pytest.raises(ValueError, match="one number a row"):
        surrogates.FenchelYoung(oracle, regularisation=Quadratic(1.0), regulariser=torch.square)(predicted, best)


# --- structured SVM ---


@pytest.mark.parametrize("name", ["one of four", "two of five", "any of three", "paths", "assignments"])
def test_structured_svm_is_its_definition(name):
    vertices = SETS[name]
    predicted, _, best = rows_of(vertices, BATCH)
    loss = surrogates.StructuredSVM(enumerated(vertices), margin=0.6, reduction="none")
    distance = (vertices[None] - best[:, None]).abs().flatten(2).sum(2)
    each = 0.6 * distance + (predicted * best).flatten(1).sum(1, keepdim=True) - values(vertices, predicted)
    assert_near(loss(predicted, best), each.max(1).values)
    assert_near(gradient(lambda p: loss(p, best), predicted), best - vertices[each.argmax(1)])
    assert_convex(lambda p: loss(p, best), draw_like(vertices))
    assert (loss(predicted, best) >= 0).all()
    assert_near(loss(0.6 * (1 - 2 * best), best), torch.zeros(BATCH, dtype=torch.float64))  # exactly the margin
    assert (loss(0.5 * (1 - 2 * best), best) > 0).all()


# --- perturbation gradient ---


@every_set
def test_perturbation_gradient_is_its_definition(vertices):
    predicted, true, _ = rows_of(vertices, 40)
    oracle, h = enumerated(vertices), 0.3

    def optimum(costs):
        return values(vertices, costs).min(1).values

    backward = surrogates.PerturbationGradient(oracle, width=h, reduction="none")
    central = surrogates.PerturbationGradient(oracle, width=h, side="central", reduction="none")
    assert_near(backward(predicted, true), (optimum(predicted) - optimum(predicted - h * true)) / h)
    assert_near(central(predicted, true), (optimum(predicted + h * true) - optimum(predicted - h * true)) / (2 * h))
    for loss in (backward, central):
        slope = gradient(lambda p, loss=loss: loss(p, true), predicted)
        finite = finite_difference(lambda p, loss=loss: loss(p, true), predicted, 1e-7)
        assert_near(finite, slope, factor=1e5)  # piecewise linear: rounding alone
    decision = (true * minimiser(vertices, predicted)).flatten(1).sum(1)
    assert (backward(predicted, true) >= decision - 1e-12).all()
    small = surrogates.PerturbationGradient(oracle, width=1e-7, side="central", reduction="none")
    assert_near(small(predicted, true), decision, factor=1e6)  # a difference over 2e-7


# --- all of them ---

LOSSES = {
    "spo": (surrogates.SPOPlus, "costs"),
    "fenchel-young": (surrogates.FenchelYoung, "solutions"),
    "fenchel-young-multiplicative": (
        lambda oracle, **s: surrogates.FenchelYoung(oracle, perturbation="multiplicative", **s),
        "solutions",
    ),
    "svm": (surrogates.StructuredSVM, "solutions"),
    "perturbation gradient": (surrogates.PerturbationGradient, "costs"),
}


@pytest.mark.parametrize(("make", "needs"), LOSSES.values(), ids=LOSSES.keys())
def test_shapes_dtypes_and_reductions(make, needs):
    oracle = dl.oracles.TopK(4, 2)
    other = torch.rand(2, 3, 4) if needs == "costs" else oracle.solve(torch.rand(2, 3, 4))
    predicted = torch.rand(2, 3, 4)

    def call(reduction, p):
        torch.manual_seed(0)
        return make(oracle, reduction=reduction)(p, other)

    rows = call("none", predicted)
    assert rows.shape == (2, 3)
    assert_near(call("mean", predicted), rows.mean())
    assert_near(call("sum", predicted), rows.sum())
    strided = predicted.transpose(0, 2).contiguous().transpose(0, 2)
    assert_near(call("none", strided), rows)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        p = predicted.to(dtype, copy=True).requires_grad_()
        value = call("mean", p)
        assert value.dtype == dtype
        value.backward()
        assert p.grad.dtype == dtype
        assert p.grad.isfinite().all()
    single = make(oracle)(predicted[0, 0], other[0, 0])
    assert single.shape == ()
    empty = make(oracle, reduction="sum")(predicted[:0], other[:0])
    assert empty.item() == 0


@pytest.mark.parametrize(("make", "needs"), LOSSES.values(), ids=LOSSES.keys())
def test_row_without_a_solution_is_nan_and_passes_no_gradient(make, needs):
    def f(cost):
        return None if abs(cost[0]) > 50 else np.eye(3)[cost.argmin()]

    oracle = dl.oracles.FromCallable(f, (3,), on_failure="nan")
    predicted = torch.tensor([[1.0, 2, 3], [300.0, 1, 2], [3.0, 2, 1]], requires_grad=True)
    other = torch.tensor([[1.0, 2, 3]] * 3) if needs == "costs" else torch.eye(3)
    rows = make(oracle, reduction="none")(predicted, other)
    assert rows.isnan().tolist() == [False, True, False]
    rows.nansum().backward()
    assert predicted.grad.isfinite().all()
    assert (predicted.grad[1] == 0).all()
    with pytest.raises(dl.InfeasibleError, match="row"):
        make(dl.oracles.FromCallable(f, (3,)))(predicted, other)


@pytest.mark.parametrize(("make", "needs"), LOSSES.values(), ids=LOSSES.keys())
def test_bad_input_is_refused(make, needs):
    oracle = dl.oracles.TopK(3, 1)
    good, other = torch.rand(2, 3), torch.eye(3)[:2]
    with pytest.raises(TypeError, match="'oracle' must be an oracle, got function"):
        make(lambda c: c)
    with pytest.raises(ValueError, match="'reduction' must be one of"):
        make(oracle, reduction="median")
    loss = make(oracle)
    for predicted, second, error, message in (
        (good.long(), other, TypeError, "'predicted_costs' must have a floating-point dtype, got int64"),
        (good.numpy(), other, TypeError, "'predicted_costs' must be a torch.Tensor, got ndarray"),
        (good * math.nan, other, ValueError, "'predicted_costs' must be finite"),
        (good / 0, other, ValueError, "'predicted_costs' must be finite"),
        (good[:, :2], other, ValueError, r"'predicted_costs' must have shape \[..., 3\], got \(2, 2\)"),
        (good, other[:1], ValueError, r"must have shape \(2, 3\), as the predicted costs say, got \(1, 3\)"),
        (good, other * math.nan, ValueError, "'true_.*' must be finite"),
        (good, [1, 2], TypeError, "'true_.*' must be a torch.Tensor, got list"),
    ):
        with pytest.raises(error, match=message):
            loss(predicted, second)
    with pytest.raises(dl.UnsupportedOperationError, match="cannot be traced"):
        torch.func.grad(lambda p: loss(p, other))(good)


def test_bad_settings_are_refused():
    oracle = dl.oracles.TopK(3, 1)
    for make, error, message in (
        (lambda: surrogates.FenchelYoung(oracle, samples=0), ValueError, "'samples' must be at least 1, got 0"),
        (lambda: surrogates.FenchelYoung(oracle, sigma=0), ValueError, "'sigma' must be a finite number in"),
        (lambda: surrogates.FenchelYoung(oracle, samples=3, antithetic=True), ValueError, "must be even"),
        (lambda: surrogates.FenchelYoung(oracle, perturbation="other"), ValueError, "'additive', 'multiplicative'"),
        (lambda: surrogates.FenchelYoung(oracle, regularisation=len), TypeError, "must be a rule that has a method"),
        (
            lambda: surrogates.FenchelYoung(oracle, regularisation=Quadratic(1.0), perturbation="additive"),
            ValueError,
            "either 'perturbation' or 'regularisation'",
        ),
        (lambda: surrogates.StructuredSVM(oracle, margin=-1), ValueError, "'margin' must be"),
        (lambda: surrogates.PerturbationGradient(oracle, width=0), ValueError, "'width' must be"),
        (lambda: surrogates.PerturbationGradient(oracle, side="left"), ValueError, "'backward', 'central'"),
        (
            lambda: surrogates.StructuredSVM(oracle)(torch.rand(3), torch.tensor([0.5, 0.5, 0.0])),
            ValueError,
            "'true_solutions' must be 0-1",
        ),
    ):
        with pytest.raises(error, match=message):
            make()


@pytest.mark.parametrize(("make", "needs"), LOSSES.values(), ids=LOSSES.keys())
def test_compile_breaks_the_graph_or_refuses(make, needs):
    oracle = dl.oracles.TopK(3, 1)
    predicted, other = torch.rand(2, 3), torch.eye(3)[:2]
    loss = make(oracle)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    def f(p):
        return loss(2 * p, other) + 1

    compiled, values = torch.compile(f, backend=backend), []
    for function in (compiled, f):
        torch.manual_seed(0)
        values.append(function(predicted))
    assert_near(*values)
    assert len(graphs) <= 2  # before and after, nothing of the solver
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="difflayers: a solver runs on the host"):
        torch.compile(f, backend="eager", fullgraph=True)(predicted)


def test_fenchel_young_with_the_frank_wolfe_rule():
    """Omega = lam / 2 |x|^2: the loss is the Fenchel-Young gap, its gradient the solution minus the regularised one."""
    oracle, lam = dl.oracles.TopK(5, 2), 1.7
    rule = dl.rules.FrankWolfe(lam)
    loss = dl.losses.FenchelYoung(oracle, regularisation=rule, reduction="none")
    costs = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    truth = oracle.solve(torch.randn(4, 5, dtype=torch.float64))
    value = loss(costs, truth)
    regularised = rule(oracle, costs.detach())
    omega = lambda x: lam / 2 * x.square().sum(-1)  # noqa: E731
    lowest = (costs.detach() * regularised).sum(-1) + omega(regularised)
    torch.testing.assert_close(value, (costs * truth).sum(-1) + omega(truth) - lowest)
    assert (value >= 0).all()
    (gradient,) = torch.autograd.grad(value.sum(), costs)
    torch.testing.assert_close(gradient, truth - regularised)
