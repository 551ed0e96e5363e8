"""SurCo against enumeration; budgets, interruption, determinism, undefined objectives, black boxes."""

from __future__ import annotations

import builtins
import itertools
import math

import pytest
import torch

import difflayers as dl
from difflayers.errors import InfeasibleError, SolverError
from difflayers.oracles import FromCallable, TopK
from difflayers.surrogates import ObjectiveError, SurCo
from tests.surrogates.problems import GridRoutes, quadratic, subsets


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Counting:
    """An objective that counts the solutions it was called with."""

    def __init__(self, f):
        self.f, self.rows, self.seen = f, 0, []

    def __call__(self, x):
        self.rows += len(x)
        self.seen.extend(x.detach().clone())
        return self.f(x)


class CountingOracle(TopK):
    """A TopK that counts the rows it solves."""

    rows = 0

    def _solve_row(self, cost, instance, deadline):
        CountingOracle.rows += 1
        return super()._solve_row(cost, instance, deadline)


@pytest.mark.parametrize("convex", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_finds_the_enumerated_optimum(convex, seed):
    f, every = quadratic(10, seed, convex=convex), subsets(10, 4)
    best = f(every).min()
    result = SurCo(TopK(10, 4)).solve(f, iterations=80, generator=seeded(seed), dtype=torch.float64)
    assert ((every - result.solution).abs().sum(1) == 0).any()  # feasible
    torch.testing.assert_close(result.objective, best, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(f(result.solution), result.objective)


@pytest.mark.parametrize("seed", range(3))
def test_nonnegative_costs_and_the_best_route(seed):
    grid = GridRoutes(4)
    generator = seeded(seed)
    mean, variance = torch.rand(2, grid.edges, generator=generator, dtype=torch.float64) + 0.1
    deadline = 0.9 * (grid.all() @ mean).min()

    def late(x):
        return -torch.special.ndtr((deadline - x @ mean) / (x @ variance).sqrt())

    result = SurCo(grid.oracle()).solve(late, costs=mean, oracle_calls=400, generator=generator)
    assert float(result.objective) == pytest.approx(float(late(grid.all()).min()), abs=1e-12)
    assert result.costs is not None
    assert bool((result.costs >= 0).all())
    torch.testing.assert_close(grid.oracle().solve(result.costs), result.solution)


@pytest.mark.parametrize("given", ["start", "costs", "neither"])
def test_never_worse_than_the_linearisation_at_the_start(given):
    oracle = TopK(12, 5)
    for seed in range(8):
        f = quadratic(12, seed, convex=True)
        first = torch.randn(12, generator=seeded(seed), dtype=torch.float64)
        x0 = oracle.solve(first).requires_grad_()
        (slope,) = torch.autograd.grad(f(x0), x0)
        bound = min(f(x0), f(oracle.solve(slope))).item()
        arguments = {"start": {"start": x0.detach()}, "costs": {"costs": first}, "neither": {}}[given]
        result = SurCo(oracle).solve(f, iterations=1, generator=seeded(seed), dtype=torch.float64, **arguments)
        assert given == "neither" or float(result.objective) <= bound
        assert float(result.objective) == result.history[-1].objective <= result.history[0].objective


def test_linearisation_alone_solves_a_linear_objective():
    weights = torch.randn(9, generator=seeded(3), dtype=torch.float64)
    result = SurCo(TopK(9, 3), starts=1).solve(
        lambda x: x @ weights, iterations=1, generator=seeded(), dtype=torch.float64
    )
    torch.testing.assert_close(result.solution, TopK(9, 3).solve(weights))


@pytest.mark.parametrize("limit", [1, 7, 45])
@pytest.mark.parametrize("gradient", ["autograd", "score", "fitted"])
def test_budgets_are_respected_exactly(limit, gradient):
    f = Counting(quadratic(16, 0, convex=True))
    result = SurCo(TopK(16, 6), objective_gradient=gradient).solve(
        f, evaluations=limit, generator=seeded(), dtype=torch.float64
    )
    assert f.rows == result.history[-1].evaluations == limit
    assert result.status == "evaluations"

    CountingOracle.rows, f.rows = 0, 0
    search = SurCo(CountingOracle(16, 6), objective_gradient=gradient)
    result = search.solve(f, oracle_calls=limit, generator=seeded(), dtype=torch.float64)
    assert CountingOracle.rows == result.history[-1].oracle_calls == limit
    assert result.status == "oracle_calls"
    assert f.rows == result.history[-1].evaluations

    result = search.solve(f, iterations=limit, generator=seeded(), dtype=torch.float64)
    assert result.history[-1].iteration == limit
    assert result.status == "iterations"


def test_the_best_of_everything_evaluated_is_returned():
    f = Counting(quadratic(14, 5, convex=True))
    result = SurCo(TopK(14, 6)).solve(f, evaluations=60, generator=seeded(), dtype=torch.float64)
    values = f.f(torch.stack(f.seen))
    assert float(result.objective) == pytest.approx(values.min().item(), abs=1e-12)
    assert len(torch.stack(f.seen).unique(dim=0)) == 60  # no solution twice
    assert all(float(x.sum()) == 6 for x in f.seen)
    # the backward pass's solves are incumbents too: some solutions were found with no forward solve of their own
    assert result.history[-1].oracle_calls > 60


def test_solutions_of_every_solve_are_seen():
    solved = []

    def solve(costs):
        rows = TopK(8, 3).solve(torch.as_tensor(costs)).numpy()
        solved.extend(map(tuple, rows))
        return rows

    f = Counting(quadratic(8, 1, convex=True))
    result = SurCo(FromCallable(solve, (8,), batched=True)).solve(
        f, iterations=12, generator=seeded(), dtype=torch.float64
    )
    assert {tuple(x.tolist()) for x in f.seen} == set(solved)
    assert float(result.objective) == pytest.approx(
        f.f(torch.tensor(solved, dtype=torch.float64)).min().item(), abs=1e-12
    )


def test_seconds_end_the_search():
    result = SurCo(TopK(30, 10)).solve(
        quadratic(30, 0, convex=True), seconds=0.2, generator=seeded(), dtype=torch.float64
    )
    assert result.status == "seconds"
    assert result.history[-1].seconds >= 0.2


def test_a_small_feasible_set_ends_the_search():
    f = Counting(lambda x: (x * torch.arange(4.0)).sum(-1).sin())
    result = SurCo(TopK(4, 1)).solve(f, evaluations=1000, generator=seeded())  # only four solutions exist
    assert result.status == "converged"
    assert f.rows <= 4
    assert float(result.objective) == pytest.approx(0.0)
    result = SurCo(TopK(4, 1), restarts=0).solve(f, evaluations=1000, generator=seeded())
    assert result.status == "converged"
    assert result.history[-1].restarts == 0


def test_interrupt_returns_the_incumbent():
    f, calls = quadratic(12, 0, convex=True), [0]

    def interrupted(x):
        calls[0] += 1
        if calls[0] > 6:
            raise KeyboardInterrupt
        return f(x)

    result = SurCo(TopK(12, 4)).solve(interrupted, iterations=100, generator=seeded(), dtype=torch.float64)
    assert result.status == "interrupted"
    assert float(f(result.solution)) == pytest.approx(float(result.objective)) == result.history[-1].objective
    calls[0] = 6
    with pytest.raises(KeyboardInterrupt):
        SurCo(TopK(12, 4)).solve(interrupted, generator=seeded(), dtype=torch.float64)


def test_interrupt_in_the_backward_solve():
    f, rows = quadratic(12, 0, convex=True), [0]

    def solve(costs):
        rows[0] += 1
        if rows[0] > 25:
            raise KeyboardInterrupt
        return TopK(12, 4).solve(torch.as_tensor(costs)).numpy()

    result = SurCo(FromCallable(solve, (12,), batched=True)).solve(
        f, iterations=100, generator=seeded(), dtype=torch.float64
    )
    assert result.status == "interrupted"
    assert float(f(result.solution)) == pytest.approx(float(result.objective))


def test_history_and_callback():
    seen = []

    def callback(record, solution):
        seen.append((record, solution))
        return record.iteration == 5

    f = quadratic(12, 2, convex=True)
    result = SurCo(TopK(12, 4), starts=3).solve(f, callback=callback, generator=seeded(), dtype=torch.float64)
    assert result.status == "callback"
    assert [record for record, _ in seen] == result.history
    assert [record.iteration for record in result.history] == list(range(6))
    for (record, solution), (later, _) in itertools.pairwise(seen):
        assert float(f(solution)) == pytest.approx(record.objective)
        assert later.objective <= record.objective
        assert later.evaluations >= record.evaluations == record.distinct
        assert later.oracle_calls > record.oracle_calls
        assert len(record.current) == len(record.phases) == 3
        assert min(value for value in record.current if not math.isnan(value)) >= record.objective


@pytest.mark.parametrize("gradient", ["autograd", "score", "fitted"])
def test_the_generator_decides(gradient):
    f = quadratic(15, 3, convex=True)

    def run(seed):
        result = SurCo(TopK(15, 5), objective_gradient=gradient).solve(f, iterations=15, generator=seeded(seed))
        return [record._replace(seconds=0.0) for record in result.history], result.solution.tolist()

    assert str(run(1)) == str(run(1))
    assert str(run(1)[0]) != str(run(2)[0])


@pytest.mark.parametrize("gradient", ["score", "fitted", "callable"])
def test_black_boxes(gradient):
    every = subsets(9, 3)
    for seed in range(2):
        f = quadratic(9, seed, convex=True)

        def black(x, f=f):
            return torch.tensor([float(f(row)) for row in x.detach()], dtype=torch.float64)

        def slope(x, f=f):
            x = x.clone().requires_grad_()
            with torch.enable_grad():
                return torch.autograd.grad(f(x).sum(), x)[0]

        search = SurCo(TopK(9, 3), objective_gradient=slope if gradient == "callable" else gradient)
        result = search.solve(black, evaluations=45, generator=seeded(seed), dtype=torch.float64)
        values = f(every).sort().values
        worst = values[4 if gradient == "score" else 1]  # noise on the costs alone knows less than a slope
        assert float(result.objective) <= float(worst) + 1e-12
        with pytest.raises(ValueError, match="objective_gradient='score'"):
            SurCo(TopK(9, 3)).solve(black, generator=seeded(seed))


def test_nan_is_reported():
    def f(x):
        return torch.where(x[..., 0] > 0, torch.nan, x.sum(-1) - x[..., 1])

    with pytest.raises(
        ObjectiveError, match=r"SurCo.solve: the objective is NaN at a solution .* on_nan='skip'"
    ) as caught:
        SurCo(TopK(6, 3)).solve(f, start=torch.tensor([0.0, 0, 0, 1, 1, 1]), generator=seeded())
    assert caught.value.solution[0] == 1
    assert float(caught.value.result.objective) <= 3.0
    result = SurCo(TopK(6, 3), on_nan="skip").solve(f, iterations=30, generator=seeded())
    assert result.history[-1].undefined > 0
    assert float(result.objective) == 2.0
    assert result.solution[0] == 0
    with pytest.raises(ObjectiveError, match="got NaN at all"):
        SurCo(TopK(6, 3), on_nan="skip").solve(lambda x: x.sum(-1) * torch.nan, iterations=3, generator=seeded())


def test_nan_gradient_is_reported_and_reaches_no_solver():
    def f(x):
        return x[..., 0].sqrt() + x @ torch.arange(6.0)  # infinite slope at 0

    with pytest.raises(ObjectiveError, match="its gradient is NaN or infinite"):
        SurCo(TopK(6, 3)).solve(f, generator=seeded())
    result = SurCo(TopK(6, 3), on_nan="skip").solve(f, iterations=20, generator=seeded())
    assert result.history[-1].undefined > 0
    assert result.solution.tolist() == [1, 1, 1, 0, 0, 0]


def test_infinite_values_are_values():
    def f(x):
        return torch.where(x[..., 0] > 0, torch.inf, x @ torch.arange(6.0))

    result = SurCo(TopK(6, 2)).solve(f, iterations=30, generator=seeded())
    assert result.solution.tolist() == [0, 1, 1, 0, 0, 0]
    assert result.history[-1].undefined == 0


def test_unsolved_rows_are_passed_over():
    calls = [0]

    def solve(cost):
        calls[0] += 1
        return None if calls[0] % 3 == 0 else TopK(8, 3).solve(torch.as_tensor(cost)).numpy()

    f = quadratic(8, 0, convex=False)
    result = SurCo(FromCallable(solve, (8,), on_failure="nan")).solve(
        f, iterations=30, generator=seeded(), dtype=torch.float64
    )
    assert result.history[-1].failed > 0
    torch.testing.assert_close(result.objective, f(subsets(8, 3)).min())
    with pytest.raises(InfeasibleError, match="rows have no solution"):
        SurCo(FromCallable(solve, (8,))).solve(f, iterations=30, generator=seeded(), dtype=torch.float64)
    never = FromCallable(lambda cost: None, (8,), on_failure="nan")
    with pytest.raises(InfeasibleError, match="must find a solution, got none"):
        SurCo(never).solve(f, oracle_calls=50, generator=seeded(), dtype=torch.float64)


def test_polish_stays_in_the_budget():
    f = Counting(quadratic(12, 1, convex=True))

    def polish(solution, evaluate):
        ones, zeros = solution.nonzero().flatten(), (solution == 0).nonzero().flatten()
        swaps = solution.repeat(len(ones) * len(zeros), 1)
        pairs = torch.cartesian_prod(ones, zeros)
        swaps[torch.arange(len(swaps)), pairs[:, 0]] = 0.0
        swaps[torch.arange(len(swaps)), pairs[:, 1]] = 1.0
        values = evaluate(swaps)
        torch.testing.assert_close(values, f.f(swaps))

    result = SurCo(TopK(12, 4), polish=polish).solve(f, evaluations=77, generator=seeded(), dtype=torch.float64)
    assert f.rows == 77
    assert result.history[-1].evaluations == 77
    assert float(result.objective) == pytest.approx(f.f(torch.stack(f.seen)).min().item(), abs=1e-12)
    with pytest.raises(ValueError, match="polish must evaluate candidates"):
        SurCo(TopK(12, 4), polish=lambda x, evaluate: evaluate(x)).solve(f, generator=seeded(), dtype=torch.float64)


def test_dtype_and_start_are_the_users():
    x0 = TopK(7, 3).solve(torch.randn(7, dtype=torch.float64))
    dtypes = set()

    def f(x):
        dtypes.add(x.dtype)
        return (x @ torch.arange(7, dtype=x.dtype) - 8).square()

    result = SurCo(TopK(7, 3)).solve(f, start=x0, iterations=3, generator=seeded())
    assert dtypes == {torch.float64}
    assert result.solution.dtype == result.objective.dtype == torch.float64
    result = SurCo(TopK(7, 3)).solve(f, iterations=3, generator=seeded())
    assert result.solution.dtype == torch.float32
    result = SurCo(TopK(7, 3)).solve(lambda x: x.sum(-1) * 0, start=x0, iterations=1, generator=seeded())
    assert result.costs is None  # nothing was better than the start
    assert torch.equal(result.solution, x0)


class AverageRule:
    """A rule whose solutions are averages of perturbed ones: not feasible, so never incumbents."""

    def __call__(self, oracle, costs, *, generator=None):
        noise = torch.randn(5, *costs.shape, generator=generator, dtype=costs.dtype)
        return oracle.solve(costs + noise).mean(0) + (costs - costs.detach())


def test_any_rule_will_do_and_averages_are_no_solutions():
    f = Counting(quadratic(10, 0, convex=True))
    result = SurCo(TopK(10, 4), rule=AverageRule()).solve(f, iterations=40, generator=seeded(), dtype=torch.float64)
    assert any(((x > 0) & (x < 1)).any() for x in f.seen)
    assert result.history[-1].evaluations == f.rows > result.history[-1].distinct
    torch.testing.assert_close(result.objective, f.f(subsets(10, 4)).min())
    with pytest.raises(ValueError, match="must return solutions with a gradient"):
        SurCo(TopK(10, 4), rule=lambda oracle, costs, generator: oracle.solve(costs)).solve(
            f, generator=seeded(), dtype=torch.float64
        )


def test_several_dimensions_of_costs():
    matrix = torch.randn(4, 4, generator=seeded(1), dtype=torch.float64)

    def assign(cost):
        from scipy.optimize import linear_sum_assignment

        result = torch.zeros(4, 4)
        result[linear_sum_assignment(cost)] = 1.0
        return result

    def f(x):
        return (x * matrix).sum((-1, -2)).exp()

    result = SurCo(FromCallable(assign, (4, 4))).solve(f, iterations=5, generator=seeded(), dtype=torch.float64)
    assert float(result.objective) == pytest.approx(float(f(assign(matrix.numpy()).double())))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"start": torch.zeros(5)}, ValueError, r"argument 'start' must have shape \(6,\)"),
        ({"start": torch.zeros(9, 6)}, ValueError, "m <= starts = 4"),
        ({"costs": torch.full((6,), torch.nan)}, ValueError, "argument 'costs' must be finite"),
        ({"costs": torch.zeros(6, dtype=torch.int64)}, TypeError, "floating-point"),
        ({"costs": torch.zeros(6), "start": torch.zeros(6)}, ValueError, "exclude each other"),
        ({"iterations": 0}, ValueError, "argument 'iterations' must be at least 1"),
        ({"evaluations": 2.5}, TypeError, "argument 'evaluations' must be an integer"),
        ({"seconds": -1.0}, ValueError, "argument 'seconds'"),
        ({"callback": 3}, TypeError, "argument 'callback' must be callable"),
        ({"generator": 3}, TypeError, "argument 'generator' must be a torch.Generator"),
        ({"dtype": torch.int64}, TypeError, "floating dtype"),
    ],
)
def test_bad_arguments_of_solve(arguments, error, message):
    with pytest.raises(error, match=message):
        SurCo(TopK(6, 2)).solve(lambda x: x.sum(-1), **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"oracle": 3}, TypeError, "FromCallable"),
        ({"rule": 3}, TypeError, "argument 'rule' must be a rule"),
        ({"objective_gradient": "magic"}, ValueError, "argument 'objective_gradient' must be one of"),
        ({"starts": 0}, ValueError, "argument 'starts' must be at least 1"),
        ({"learning_rate": 0.0}, ValueError, "argument 'learning_rate'"),
        ({"noise": math.nan}, ValueError, "argument 'noise'"),
        ({"memory": 3}, ValueError, "argument 'memory' must be at least 64"),
        ({"polish": 3}, TypeError, "argument 'polish' must be callable"),
        ({"on_nan": "hide"}, ValueError, "argument 'on_nan' must be one of"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        SurCo(**{"oracle": TopK(6, 2), **arguments})


@pytest.mark.parametrize("values", [lambda x: 3.0, lambda x: x, lambda x: x.sum()])
def test_objective_of_the_wrong_shape(values):
    with pytest.raises(ValueError, match=r"one value per solution, shape"):
        SurCo(TopK(6, 2)).solve(values, generator=seeded())


def test_negative_costs_of_the_user_are_refused():
    with pytest.raises(ValueError, match="must not be negative"):
        SurCo(GridRoutes(3).oracle()).solve(lambda x: x.sum(-1), costs=-torch.ones(12))


def test_errors_of_the_oracle_reach_the_user():
    def broken(costs):
        raise RuntimeError("licence expired")

    with pytest.raises((SolverError, RuntimeError), match="licence expired"):
        SurCo(FromCallable(broken, (4,))).solve(lambda x: x.sum(-1))


def test_memory_is_bounded():
    f = Counting(quadratic(40, 0, convex=True))
    result = SurCo(TopK(40, 20), memory=64).solve(f, evaluations=400, generator=seeded(), dtype=torch.float64)
    assert float(result.objective) == pytest.approx(f.f(torch.stack(f.seen)).min().item(), abs=1e-9)


def test_plot_and_missing_packages(monkeypatch):
    result = SurCo(TopK(6, 2)).solve(lambda x: x @ torch.arange(6.0), iterations=5, generator=seeded(), progress=False)
    pytest.importorskip("matplotlib")
    axes = result.plot("oracle_calls")
    assert axes.get_xlabel() == "oracle calls"
    assert axes.lines[-1].get_ydata()[-1] == float(result.objective)
    with pytest.raises(ValueError, match="argument 'x' must be one of"):
        result.plot("time")
    found = builtins.__import__

    def missing(name, *arguments, **keywords):
        if name.split(".")[0] in ("tqdm", "matplotlib"):
            raise ImportError(name)
        return found(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"pip install 'difflayers\[examples\]'"):
        result.plot()
    with pytest.raises(ImportError, match=r"pip install 'difflayers\[examples\]'"):
        SurCo(TopK(6, 2)).solve(lambda x: x.sum(-1), progress=True)


def test_progress(capsys):
    pytest.importorskip("tqdm")
    SurCo(TopK(6, 2)).solve(lambda x: x @ torch.arange(6.0), iterations=5, generator=seeded(), progress=True)
    assert "best 1" in capsys.readouterr().err


def test_the_oracle_is_left_as_it_was():
    oracle = TopK(6, 2)
    before = dict(oracle.__dict__)
    SurCo(oracle).solve(lambda x: x @ torch.arange(6.0), iterations=5, generator=seeded())
    assert oracle.__dict__ == before
    assert dl.SolverLayer(oracle, rule=dl.Blackbox(1.0))(torch.arange(6.0)).tolist() == [1, 1, 0, 0, 0, 0]
