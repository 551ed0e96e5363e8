"""MaxCut and IndependentSet against enumeration."""

import itertools

import numpy as np
import pytest
import torch

from difflayers.oracles import IndependentSet, MaxCut, Status, max_cut

from .enumeration import SCALES, assert_anytime, assert_optimal, integer_points


def random_edges(random, n, density=0.5):
    return np.array([edge for edge in itertools.combinations(range(n), 2) if random.random() < density]).reshape(-1, 2)


def cuts(edges, n):
    sides = integer_points([1] * n)
    return (sides[:, edges[:, 0]] != sides[:, edges[:, 1]]).astype(float)


@pytest.mark.parametrize("few", [13, 0])
@pytest.mark.parametrize("seed", range(4))
def test_cuts_equal_enumeration(seed, few, monkeypatch):
    monkeypatch.setattr(max_cut, "FEW_NODES", few)
    random = np.random.default_rng(seed)
    n = 3 + seed
    edges = random_edges(random, n)
    for oracle, own in ((MaxCut(edges, num_nodes=n), edges), (MaxCut(n), np.stack(np.triu_indices(n, 1), 1))):
        points = cuts(own, n)
        assert_optimal(oracle, points, random.normal(size=(4, len(own))))
        assert_optimal(oracle, points, np.ones((1, len(own))))
        for scale in SCALES:
            assert_optimal(oracle, points, random.normal(size=(1, len(own))) * scale)


def test_cuts_of_a_larger_graph():
    random = np.random.default_rng(0)
    n = 15
    points = cuts(np.stack(np.triu_indices(n, 1), 1), n)
    assert_optimal(MaxCut(n), points, random.normal(size=(2, 105)))


def test_cuts_in_time():
    costs = np.random.default_rng(0).normal(size=(1, 45 * 44 // 2))
    result = assert_anytime(MaxCut(45, time_limit=0.5), costs)
    assert result.objective < -100
    assert assert_anytime(MaxCut(45, time_limit=1e-9), costs).status == Status.FEASIBLE


def test_few_nodes():
    assert MaxCut(0).solve(torch.zeros(2, 0)).shape == (2, 0)
    assert MaxCut(1).solve(torch.zeros(0)).shape == (0,)
    assert MaxCut([(0, 1)]).solve(torch.tensor([[-1.0], [1.0]])).tolist() == [[1.0], [0.0]]
    assert MaxCut([(0, 1), (1, 0)]).solve(torch.tensor([-1.0, 0.5])).tolist() == [1.0, 1.0]
    assert IndependentSet([], 0).solve(torch.zeros(2, 0)).shape == (2, 0)
    assert IndependentSet([], 1).solve(torch.tensor([[-1.0], [1.0]])).tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize("seed", range(6))
def test_sets_equal_enumeration(seed):
    random = np.random.default_rng(seed)
    n = 3 + seed
    edges = random_edges(random, n, 0.2 + 0.1 * seed)
    points = integer_points([1] * n)
    points = points[(points[:, edges[:, 0]] + points[:, edges[:, 1]] <= 1).all(1)]
    oracle = IndependentSet(edges, n)
    assert_optimal(oracle, points, random.normal(size=(4, n)) - 0.5)
    assert_optimal(oracle, points, -np.ones((1, n)))
    assert_optimal(oracle, points, np.ones((1, n)))
    for scale in SCALES:
        assert_optimal(oracle, points, -random.random((1, n)) * scale)
    assert not IndependentSet(edges, n).solve(torch.zeros(n)).any()


def test_sets_equal_networkx():
    networkx = pytest.importorskip("networkx")
    random = np.random.default_rng(0)
    graph = networkx.gnp_random_graph(24, 0.3, seed=0)
    weights = random.integers(1, 20, 24)
    complement = networkx.complement(graph)
    networkx.set_node_attributes(complement, dict(enumerate(weights.tolist())), "weight")
    expected = networkx.max_weight_clique(complement, "weight")[1]
    result = IndependentSet(list(graph.edges), 24).solve_batch(-torch.from_numpy(weights).double())
    assert result.objective.item() == -expected
    assert result.status == Status.OPTIMAL


def test_sets_in_time():
    random = np.random.default_rng(0)
    oracle = IndependentSet(random_edges(random, 120, 0.15), 120, time_limit=0.3)
    assert_anytime(oracle, -random.random((1, 120)))
    oracle.time_limit = 1e-9
    assert assert_anytime(oracle, -random.random((1, 120))).status == Status.FEASIBLE


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: MaxCut([(0, 0)]), ValueError, "must join different nodes"),
        (lambda: MaxCut([(0, 3)], num_nodes=3), ValueError, "nodes in"),
        (lambda: MaxCut([(0, -1)]), ValueError, "must not be negative"),
        (lambda: MaxCut([(0, 1, 2)]), ValueError, "must have shape"),
        (lambda: MaxCut([(0.5, 1.5)]), TypeError, "must hold integers"),
        (lambda: MaxCut(-1), ValueError, "at least 0"),
        (lambda: MaxCut(3, num_nodes=4), ValueError, "'num_nodes' must be 3"),
        (lambda: IndependentSet([(0, 3)], 3), ValueError, "nodes in"),
        (lambda: IndependentSet([(1, 1)], 3), ValueError, "must join different nodes"),
    ],
)
def test_bad_arguments(make, error, match):
    with pytest.raises(error, match=match):
        make()
