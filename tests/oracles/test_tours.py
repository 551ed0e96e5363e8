"""TravelingSalesman and VehicleRouting against enumeration."""

import itertools

import numpy as np
import pytest
import torch

from difflayers.errors import InfeasibleError
from difflayers.oracles import Status, TravelingSalesman, VehicleRouting
from difflayers.oracles import traveling_salesman as module

from .enumeration import SCALES, assert_anytime, assert_optimal, least


def used_edges(n, routes):
    """How often routes through node 0 use each edge."""
    used = np.zeros((n, n))
    for route in routes:
        for tail, head in itertools.pairwise([0, *route, 0]):
            used[min(tail, head), max(tail, head)] += 1
    return used[np.triu_indices(n, 1)]


def tours(n):
    return np.array([used_edges(n, [order]) for order in itertools.permutations(range(1, n))])


def fleets(n, vehicles, demands, capacity):
    """All sets of at most `vehicles` routes that hold the demands."""
    found = set()
    for order in itertools.permutations(range(1, n)):
        for cuts in itertools.product((False, True), repeat=n - 2):
            routes = [[order[0]]]
            for node, cut in zip(order[1:], cuts, strict=True):
                if cut:
                    routes.append([node])
                else:
                    routes[-1].append(node)
            loads = [sum(demands[node - 1] for node in route) for route in routes]
            if len(routes) <= vehicles and max(loads) <= capacity + 1e-9:
                found.add(tuple(used_edges(n, routes)))
    return np.array(sorted(found))


def euclidean(random, batch, n):
    points = random.random((batch, n, 2))
    distances = np.linalg.norm(points[:, :, None] - points[:, None], axis=-1)
    first, second = np.triu_indices(n, 1)
    return distances[:, first, second]


@pytest.mark.parametrize("few", [12, 0])
@pytest.mark.parametrize("n", [4, 5, 7])
def test_tours_equal_enumeration(n, few, monkeypatch):
    monkeypatch.setattr(module, "FEW_NODES", few)
    random = np.random.default_rng(n)
    edges = n * (n - 1) // 2
    oracle, points = TravelingSalesman(n), tours(n)
    assert_optimal(oracle, points, euclidean(random, 4, n))
    assert_optimal(oracle, points, random.normal(size=(4, edges)))
    assert_optimal(oracle, points, np.ones((1, edges)))
    for scale in SCALES:
        assert_optimal(oracle, points, random.normal(size=(1, edges)) * scale)


def test_dynamic_program_equals_cp_sat(monkeypatch):
    costs = torch.from_numpy(np.random.default_rng(0).normal(size=(70, 55)))
    first = TravelingSalesman(11).solve_batch(costs)
    monkeypatch.setattr(module, "FEW_NODES", 0)
    second = TravelingSalesman(11).solve_batch(costs[-6:])
    assert torch.allclose(first.objective[-6:], second.objective, rtol=1e-12)


def test_few_nodes():
    assert TravelingSalesman(0).solve(torch.zeros(3, 0)).shape == (3, 0)
    assert TravelingSalesman(1).solve(torch.zeros(0)).shape == (0,)
    assert TravelingSalesman(2).solve(torch.tensor([[-1.0]])).tolist() == [[2.0]]
    assert TravelingSalesman(3).solve(torch.randn(2, 3)).tolist() == [[1.0] * 3] * 2
    assert TravelingSalesman(6).solve(torch.zeros(0, 15)).shape == (0, 15)


def test_tours_in_time():
    random = np.random.default_rng(0)
    costs = random.random((1, 80 * 79 // 2))
    result = assert_anytime(TravelingSalesman(80, time_limit=1.5), costs)
    assert result.status <= Status.FEASIBLE  # a fast machine proves it
    by_routing = assert_anytime(TravelingSalesman(80, time_limit=0.5, method="routing"), costs - 0.5)
    assert by_routing.status == Status.FEASIBLE


@pytest.mark.parametrize("scale", SCALES)
def test_routing_finds_the_optimum_of_small_problems(scale):
    random = np.random.default_rng(0)
    costs = random.normal(size=(2, 21)) * scale
    result = assert_anytime(TravelingSalesman(7, method="routing", time_limit=0.15), costs)
    for cost, objective in zip(costs, result.objective, strict=True):
        assert objective.item() / scale == pytest.approx(least(tours(7), cost / scale), rel=1e-9)
    assert (result.status == Status.FEASIBLE).all()


@pytest.mark.parametrize("seed", range(4))
def test_fleets_equal_enumeration(seed):
    random = np.random.default_rng(seed)
    n, vehicles = 6, 3
    demands, capacity = random.integers(1, 5, n - 1), 7
    if seed == 1:
        demands, capacity = demands / 10, capacity / 10
    points = fleets(n, vehicles, demands, capacity)
    oracle = VehicleRouting(n, vehicles, demands, capacity)
    assert_optimal(oracle, points, euclidean(random, 2, n))
    assert_optimal(oracle, points, random.normal(size=(2, 15)))
    for scale in SCALES:
        assert_optimal(oracle, points, random.normal(size=(1, 15)) * scale)


def test_each_row_its_own_demands():
    random = np.random.default_rng(0)
    demands, capacity = np.array([[1, 2, 3, 1], [9, 1, 1, 1], [2, 2, 2, 2]]), np.array([5, 5, 4])
    costs = euclidean(random, 3, 5)
    oracle = VehicleRouting(5, 2, [1, 1, 1, 1], 4, on_failure="nan")
    result = oracle.with_parameters(demands=demands, capacity=capacity).solve_batch(torch.from_numpy(costs))
    assert result.status.tolist() == [Status.OPTIMAL, Status.INFEASIBLE, Status.OPTIMAL]
    for row in (0, 2):
        points = fleets(5, 2, demands[row], capacity[row])
        assert result.objective[row].item() == pytest.approx(least(points, costs[row]), rel=1e-9)


def test_fleets_without_solution():
    with pytest.raises(InfeasibleError, match="do not hold the demands"):
        VehicleRouting(3, 1, [3, 3], 5).solve(torch.zeros(3))
    packing = VehicleRouting(4, 2, [2, 2, 2], 3)  # enough capacity in all, but no two fit together
    with pytest.raises(InfeasibleError):
        packing.solve(torch.zeros(6))


def test_fleets_in_time():
    random = np.random.default_rng(0)
    costs = euclidean(random, 1, 26)
    demands = random.integers(1, 9, 25)
    assert_anytime(VehicleRouting(26, 6, demands, 30, time_limit=1.5), costs)
    result = assert_anytime(VehicleRouting(26, 6, demands, 30, time_limit=0.5, method="routing"), costs)
    assert result.status == Status.FEASIBLE


def test_depot_alone():
    assert VehicleRouting(1, 1, [], 1).solve(torch.zeros(2, 0)).shape == (2, 0)
    assert VehicleRouting(2, 1, [1], 1).solve(torch.tensor([3.0])).tolist() == [2.0]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: TravelingSalesman(-1), "'n' must be at least 0"),
        (lambda: TravelingSalesman(5, method="greedy"), "'method' must be one of"),
        (lambda: VehicleRouting(0, 1, [], 1), "'n' must be at least 1"),
        (lambda: VehicleRouting(3, -1, [1, 1], 1), "'vehicles' must be at least 0"),
        (lambda: VehicleRouting(3, 1, [1, 1, 1], 1), "'demands' must have shape"),
        (lambda: VehicleRouting(3, 1, [1, -1], 1), "'demands' must not be negative"),
        (lambda: VehicleRouting(3, 1, [1, 1], [1]), "'capacity' be one number"),
        (lambda: TravelingSalesman(4).solve(torch.zeros(4)), "must have shape"),
    ],
)
def test_bad_arguments(make, match):
    with pytest.raises(ValueError, match=match):
        make()
