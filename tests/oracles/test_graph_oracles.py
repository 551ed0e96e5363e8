"""Shortest paths, assignments, permutations, flows and trees against enumeration, networkx and SciPy."""

import itertools
import pickle
import sys

import numpy as np
import pytest
import torch

from difflayers.errors import InfeasibleError
from difflayers.oracles import (
    Assignment,
    GridShortestPath,
    MinCostFlow,
    MinimumSpanningTree,
    Permutation,
    ShortestPath,
    Status,
    TopK,
    grid_edges,
)

networkx = pytest.importorskip("networkx")


def random(*shape, seed=0, low=0.0):
    generator = torch.Generator().manual_seed(seed)
    return low + (1 - low) * torch.rand(*shape, dtype=torch.float64, generator=generator)


def simple_paths(edges, num_nodes, source, target):
    """0/1 rows of all simple paths, by brute force over edge sequences."""
    found = []

    def extend(node, seen, used):
        if node == target:
            found.append(used)
            return
        for index, (tail, head) in enumerate(edges):
            if tail == node and head not in seen:
                extend(head, seen | {head}, [*used, index])

    extend(source, {source}, [])
    rows = torch.zeros(len(found), len(edges), dtype=torch.float64)
    for row, used in zip(rows, found, strict=True):
        row[used] = 1.0
    return rows


def check_path(solution, edges, source, target):
    """The marked edges are one walk from source to target."""
    edges = torch.as_tensor(edges)
    marked = edges[solution.bool()].tolist()
    nexts = dict(marked)
    assert len(nexts) == len(marked)  # no node left twice
    node, steps = source, 0
    while node != target:
        node, steps = nexts[node], steps + 1
    assert steps == len(marked)


def random_edges(num_nodes, count, seed, acyclic):
    generator = np.random.default_rng(seed)
    edges = generator.integers(0, num_nodes, (count, 2))
    if acyclic:
        edges = np.sort(edges, axis=1)
        edges = edges[edges[:, 0] < edges[:, 1]]
        edges = generator.permutation(num_nodes)[edges]  # so that numbers do not tell the order
    return edges


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["acyclic", "dijkstra", "bellman-ford"])
def test_paths_equal_enumeration(kind, seed):
    edges = random_edges(7, 16, seed, kind == "acyclic")  # with parallel edges, loops, unreachable nodes
    costs = random(20, len(edges), seed=seed, low=-1.0 if kind == "acyclic" else 0.0)
    costs[:5] = (4 * costs[:5]).round()  # ties and zeros
    if kind == "bellman-ford":  # negative costs without negative cycles: differences of potentials
        potentials = random(20, 7, seed=seed + 1)
        shift = potentials[:, edges[:, 0]] - potentials[:, edges[:, 1]]
        costs = costs + shift
    for source, target in itertools.product(range(0, 7, 2), range(0, 7, 3)):
        oracle = ShortestPath(
            edges, source, target, num_nodes=7, allow_negative=kind == "bellman-ford", on_failure="nan"
        )
        assert oracle._graph.acyclic == (kind == "acyclic")
        result = oracle.solve_batch(costs)
        paths = simple_paths(edges.tolist(), 7, source, target)
        if len(paths) == 0:
            assert (result.status == Status.INFEASIBLE).all()
            assert result.solutions.isnan().all()
            continue
        assert (result.status == Status.OPTIMAL).all()
        best = (costs @ paths.T).min(1).values
        torch.testing.assert_close(result.objective, best, rtol=0, atol=1e-12)
        assert torch.equal(result.bound, result.objective)
        for solution in result.solutions:
            check_path(solution, edges, source, target)


@pytest.mark.parametrize("n", [2, 5, 13])
def test_grid_equals_networkx_and_the_three_algorithms_agree(n):
    edges = grid_edges(n, n)
    costs = random(9, len(edges), seed=n)
    expected = []
    for row in costs.tolist():
        graph = networkx.DiGraph()
        graph.add_weighted_edges_from((a, b, c) for (a, b), c in zip(edges.tolist(), row, strict=True))
        expected.append(networkx.dijkstra_path_length(graph, 0, n * n - 1))
    expected = torch.tensor(expected, dtype=torch.float64)
    plain = ShortestPath(edges, 0, n * n - 1, num_nodes=n * n)
    # a loop that no path uses makes the graph cyclic
    looped, more = torch.cat([edges, torch.tensor([[0, 0]])]), torch.cat([costs, random(9, 1)], dim=1)
    solutions = plain.solve(costs)
    torch.testing.assert_close((solutions * costs).sum(1), expected, rtol=0, atol=1e-12)
    for allow_negative in (False, True):
        oracle = ShortestPath(looped, 0, n * n - 1, num_nodes=n * n, allow_negative=allow_negative)
        assert torch.equal(oracle.solve(more)[:, :-1], solutions)


def test_grid_edges_are_those_of_pyepo():
    model = pytest.importorskip("pyepo.model.ort")
    assert grid_edges(3, 4).tolist() == [list(arc) for arc in model.shortestPathModel((3, 4)).arcs]


def test_source_and_target_and_edges_may_differ_between_rows():
    edges = random_edges(8, 30, 3, acyclic=False)
    costs = random(40, len(edges))
    sources, targets = torch.arange(40) % 8, torch.arange(40) * 3 % 7
    available = random(40, len(edges), seed=5) < 0.7
    for allow_negative in (False, True):
        oracle = ShortestPath(edges, 0, 1, num_nodes=8, on_failure="nan", allow_negative=allow_negative)
        result = oracle.with_parameters(source=sources, target=targets, available=available).solve_batch(costs)
        statuses = set()
        for i in range(40):
            paths = simple_paths(edges.tolist(), 8, int(sources[i]), int(targets[i]))
            paths = paths[((paths > 0) & ~available[i]).sum(1) == 0]
            statuses.add(int(result.status[i]))
            if len(paths) == 0:
                assert result.status[i] == Status.INFEASIBLE
            else:
                torch.testing.assert_close(result.objective[i], (paths @ costs[i]).min())
        assert statuses == {Status.OPTIMAL, Status.INFEASIBLE}


def test_acyclic_sources_may_lie_on_any_level():
    edges = grid_edges(4, 4)
    oracle = ShortestPath(edges, 0, 15, num_nodes=16, on_failure="nan")
    costs = random(16, len(edges), low=-1.0)
    result = oracle.with_parameters(source=torch.arange(16)).solve_batch(costs)
    for i in range(16):
        best = (simple_paths(edges.tolist(), 16, i, 15) @ costs[i]).min()
        torch.testing.assert_close(result.objective[i], best)
    assert result.solutions[15].sum() == 0


@pytest.mark.parametrize("kind", ["acyclic", "dijkstra", "bellman-ford"])
def test_large_batches_are_solved_in_parts(kind, monkeypatch):
    edges = random_edges(8, 30, 3, kind == "acyclic")
    oracle = ShortestPath(edges, 0, 1, num_nodes=8, on_failure="nan", allow_negative=kind == "bellman-ford")
    costs, sources = random(300, len(edges)), torch.arange(300) * 7 % 8
    whole = oracle.with_parameters(source=sources).solve_batch(costs)
    monkeypatch.setattr("difflayers.oracles.graph.DOUBLES_AT_ONCE", 7 * len(edges))
    parts = oracle.with_parameters(source=sources).solve_batch(costs)
    assert torch.equal(whole.status, parts.status)
    assert torch.equal(whole.solutions.nan_to_num(), parts.solutions.nan_to_num())
    for i in range(8):  # sources come round every 8 rows
        alone = ShortestPath(edges, int(sources[i]), 1, num_nodes=8, on_failure="nan").solve_batch(costs[i::8])
        torch.testing.assert_close(whole.objective[i::8], alone.objective, equal_nan=True)


@pytest.mark.parametrize("scale", [1e-320, 1e308, 1.0])
def test_costs_at_the_ends_of_the_floating_point_range(scale):
    edges = [(0, 1), (1, 2), (2, 3), (0, 3)] if scale < 1 else [(0, 1), (1, 2), (2, 3), (0, 2)]
    costs = torch.tensor([1.0, 1.5, 0.5, 1.2], dtype=torch.float64) * scale
    for extra in ([], [(3, 3)]):
        oracle = ShortestPath(edges + extra, 0, 3, num_nodes=4)
        solution = oracle.solve(torch.cat([costs, costs[:1]])[: 4 + len(extra)])
        assert solution[:4].tolist() == ([0, 0, 0, 1] if scale < 1 else [0, 0, 1, 1])


def test_zero_cost_cycles_do_not_trap_the_path():
    ring = [(0, 1), (1, 2), (2, 1), (1, 0), (2, 3), (3, 2), (3, 4)]
    for allow_negative in (False, True):
        oracle = ShortestPath(ring, 0, 4, num_nodes=5, allow_negative=allow_negative)
        assert oracle.solve(torch.zeros(2, 7)).tolist() == [[1, 1, 0, 0, 1, 0, 1]] * 2
    tenths = torch.tensor([0.1, 0.3, -0.3, 0.2, 0.1, -0.1, 1.0], dtype=torch.float64)  # cycles of 0, but for rounding
    oracle = ShortestPath(ring, 0, 4, num_nodes=5, allow_negative=True)
    assert oracle.solve(tenths).tolist() == [1, 1, 0, 0, 1, 0, 1]


def test_negative_cycles_are_named_and_the_other_rows_survive():
    edges = [(0, 1), (1, 2), (2, 1), (2, 3), (4, 5), (5, 4), (0, 4)]
    costs = torch.ones(4, 7)
    costs[1, 2] = -2.0  # 1 -> 2 -> 1 costs -1
    costs[2, 4] = -2.0  # 4 -> 5 -> 4 too, but leads nowhere
    oracle = ShortestPath(edges, 0, 3, num_nodes=6, allow_negative=True)
    with pytest.raises(InfeasibleError, match=r"rows 1, .*UNBOUNDED \(negative cycle (1 -> 2 -> 1|2 -> 1 -> 2)\)") as e:
        oracle.solve(costs)
    assert e.value.rows == [1]
    assert e.value.solutions[[0, 2, 3]].tolist() == [[1, 1, 0, 1, 0, 0, 0]] * 3
    with pytest.raises(ValueError, match="must not be negative"):
        ShortestPath(edges, 0, 3, num_nodes=6).solve(costs)


def test_long_negative_cycle():
    n = 50
    edges = [(i, (i + 1) % n) for i in range(n)]
    costs = torch.ones(2, n)
    costs[0, 7] = -n
    result = ShortestPath(edges, 0, n - 1, num_nodes=n, allow_negative=True, on_failure="nan").solve_batch(costs)
    assert result.status.tolist() == [Status.UNBOUNDED, Status.OPTIMAL]


def brute_grid(costs, neighbors):
    """Cheapest path over cells, by networkx."""
    rows, columns = costs.shape
    graph = networkx.DiGraph()
    for r, c in itertools.product(range(rows), range(columns)):
        for dr, dc in itertools.product((-1, 0, 1), repeat=2):
            if (dr or dc) and (neighbors == 8 or not (dr and dc)) and 0 <= r + dr < rows and 0 <= c + dc < columns:
                graph.add_edge((r, c), (r + dr, c + dc), weight=float(costs[r + dr, c + dc]))
    return graph


@pytest.mark.parametrize("neighbors", [4, 8])
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (5, 1), (5, 4), (12, 12)])
def test_grid_paths_equal_networkx(shape, neighbors):
    costs = random(6, *shape, seed=neighbors)
    costs[0] = 0.0
    costs[1] = (3 * costs[1]).round()
    result = GridShortestPath(shape, neighbors=neighbors).solve_batch(costs)
    for cost, solution, objective in zip(costs, result.solutions, result.objective, strict=True):
        end = (shape[0] - 1, shape[1] - 1)
        graph = brute_grid(cost, neighbors)
        length = networkx.dijkstra_path_length(graph, (0, 0), end) if end != (0, 0) else 0.0
        torch.testing.assert_close(objective.item(), length + cost[0, 0].item())
        assert solution[0, 0] == solution[-1, -1] == 1
        cells = [tuple(cell) for cell in solution.nonzero().tolist()]
        assert len(cells) == 1 or networkx.is_weakly_connected(graph.subgraph(cells))


def test_grid_cells_may_be_blocked_and_ends_differ_between_rows():
    oracle = GridShortestPath((3, 3), on_failure="nan")
    walls = torch.tensor([[1, 0, 1], [1, 0, 1], [1, 1, 1]]).bool()
    costs = torch.ones(3, 3, 3)
    result = oracle.with_parameters(available=walls, target=torch.tensor([[0, 2], [0, -2], [2, 2]])).solve_batch(costs)
    assert result.solutions[0].tolist() == walls.tolist()
    assert result.status.tolist() == [Status.OPTIMAL, Status.INFEASIBLE, Status.OPTIMAL]
    blocked = torch.ones(3, 3).bool()
    blocked[0, 0] = False
    assert oracle.with_parameters(available=blocked).solve_batch(costs[0]).status == Status.INFEASIBLE


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_assignment_equals_enumeration(n):
    matrices = torch.stack([torch.eye(n, dtype=torch.float64)[list(p)] for p in itertools.permutations(range(n))])
    costs = random(7, n, n, low=-1.0)
    result = Assignment(n).solve_batch(costs)
    best = torch.einsum("bij,pij->bp", costs, matrices).min(1).values
    torch.testing.assert_close(result.objective, best)
    assert (result.solutions.sum(1) == 1).all()
    assert (result.solutions.sum(2) == 1).all()


def test_assignment_of_available_pairs():
    oracle = Assignment(3, on_failure="nan")
    available = torch.ones(2, 3, 3).bool()
    available[0, 0, 0] = False
    available[1, :2, :2] = False
    result = oracle.with_parameters(available=available).solve_batch(-torch.eye(3).expand(2, 3, 3))
    assert result.objective[0] == -1
    assert result.status.tolist() == [Status.OPTIMAL, Status.INFEASIBLE]
    assert Assignment(2).solve(1e308 * torch.tensor([[1.0, -1], [1, 1]], dtype=torch.float64)).tolist() == [
        [0, 1],
        [1, 0],
    ]


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_permutation_equals_enumeration(n):
    ranks = torch.tensor(list(itertools.permutations(range(1, n + 1))), dtype=torch.float64)
    costs = random(7, n, low=-1.0)
    result = Permutation(n).solve_batch(costs)
    torch.testing.assert_close(result.objective, (costs @ ranks.T).min(1).values)
    assert (result.solutions.sort(1).values == torch.arange(1, n + 1)).all()


@pytest.mark.parametrize("seed", range(5))
def test_trees_equal_enumeration(seed):
    generator = np.random.default_rng(seed)
    edges = generator.integers(0, 5, (9, 2))  # with parallel edges and loops
    costs = random(12, 9, seed=seed, low=-1.0)
    costs[:6] = (2 * costs[:6]).round()
    costs[0] = 0.0
    trees = []
    for chosen in itertools.combinations(range(9), 4):
        graph = networkx.MultiGraph()
        graph.add_nodes_from(range(5))
        graph.add_edges_from(edges[list(chosen)].tolist())
        if networkx.is_connected(graph):
            trees.append(torch.zeros(9, dtype=torch.float64).index_fill(0, torch.tensor(chosen), 1.0))
    result = MinimumSpanningTree(edges, 5, on_failure="nan").solve_batch(costs)
    if not trees:
        assert (result.status == Status.INFEASIBLE).all()
        return
    trees = torch.stack(trees)
    torch.testing.assert_close(result.objective, (costs @ trees.T).min(1).values)
    assert (result.solutions[:, None] == trees).all(2).any(1).all()


def test_trees_of_available_edges_and_of_one_node():
    edges = list(itertools.combinations(range(6), 2))
    available = random(30, 15, seed=3) < 0.4
    costs = random(30, 15, low=-1.0)
    result = MinimumSpanningTree(edges, 6, on_failure="nan").with_parameters(available=available).solve_batch(costs)
    for i in range(30):
        graph = networkx.Graph()
        graph.add_nodes_from(range(6))
        graph.add_weighted_edges_from(
            (*edge, c) for edge, c, here in zip(edges, costs[i].tolist(), available[i].tolist(), strict=True) if here
        )
        if networkx.is_connected(graph):
            expected = networkx.minimum_spanning_tree(graph).size(weight="weight")
            torch.testing.assert_close(result.objective[i].item(), expected)
        else:
            assert result.status[i] == Status.INFEASIBLE
    assert set(result.status.tolist()) == {Status.OPTIMAL, Status.INFEASIBLE}
    assert MinimumSpanningTree([], 1).solve(torch.zeros(2, 0)).shape == (2, 0)
    assert MinimumSpanningTree([], 2, on_failure="nan").solve_batch(torch.zeros(2, 0)).status.tolist() == [2, 2]


ort = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__:DeprecationWarning")


@ort
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("unit", [1, 0.25])
def test_flows_equal_linear_programs(seed, unit):
    optimize = pytest.importorskip("scipy.optimize")
    generator = np.random.default_rng(seed)
    edges = generator.integers(0, 6, (20, 2))
    capacities = unit * generator.integers(0, 9, 20)
    supplies = unit * np.array([2, 1, 0, 0, -1, -2])
    incidence = np.zeros((6, 20))
    for e, (tail, head) in enumerate(edges):
        incidence[tail, e] += 1
        incidence[head, e] -= 1
    for low in (0.0, -1.0):  # negative costs: cycles are filled up to their capacities
        costs = random(5, 20, seed=seed, low=low)
        result = MinCostFlow(edges, capacities, supplies, num_nodes=6, on_failure="nan").solve_batch(costs)
        for cost, solution, status in zip(costs, result.solutions, result.status, strict=True):
            reference = optimize.linprog(
                cost.numpy(), A_eq=incidence, b_eq=supplies, bounds=list(zip([0] * 20, capacities, strict=True))
            )
            assert (status == Status.OPTIMAL) == (reference.status == 0)
            if reference.status == 0:
                torch.testing.assert_close(float(cost @ solution), reference.fun, rtol=1e-9, atol=1e-9)
                np.testing.assert_array_equal(incidence @ solution.numpy(), supplies)
                assert ((solution.numpy() >= 0) & (solution.numpy() <= capacities)).all()
                assert (solution / unit == (solution / unit).round()).all()


@ort
def test_flow_parameters_differ_between_rows():
    oracle = MinCostFlow([(0, 1), (0, 1)], [1, 1], [1, -1], num_nodes=2, on_failure="nan")
    capacities = torch.tensor([[2, 1], [1, 2], [1, 0]])
    supplies = torch.tensor([[2, -2], [2, -2], [2, -2]])
    result = oracle.with_parameters(capacities=capacities, supplies=supplies).solve_batch(
        torch.tensor([[1.0, 2.0]]).expand(3, 2)
    )
    assert result.solutions[:2].tolist() == [[2, 0], [1, 1]]
    assert result.status.tolist() == [Status.OPTIMAL, Status.OPTIMAL, Status.INFEASIBLE]


@ort
def test_scaling_of_flow_costs_is_honest():
    edges, capacities, supplies = [(0, 1), (0, 1), (1, 2), (0, 2)], [5, 5, 9, 3], [7, 0, -7]
    oracle = MinCostFlow(edges, capacities, supplies, num_nodes=3)
    exact = oracle.solve_batch(torch.tensor([1.0, 1e-300, 3e-300, 2e-300], dtype=torch.float64) * 1e-8)
    assert exact.status == Status.FEASIBLE  # 308 orders of magnitude do not fit into 64 bits
    assert exact.bound <= exact.objective
    for scale in (1e-300, 1e-7, 1.0, 1e13, 1e300):
        result = oracle.solve_batch(scale * torch.tensor([0.3, 0.1, 0.7, 0.2], dtype=torch.float64))
        assert result.status == Status.OPTIMAL
        assert result.solutions.tolist() == [0, 4, 4, 3]
    wide = oracle.solve_batch(torch.tensor([1e30, 0.1, 0.7, 0.2], dtype=torch.float64))
    assert wide.status == Status.FEASIBLE
    best = 4 * 0.1 + 4 * 0.7 + 3 * 0.2
    assert wide.bound <= best <= wide.objective


@ort
@pytest.mark.parametrize("n", [3, 10, 20])
def test_flow_costs_with_all_their_bits(n):
    """float64 costs in larger graphs, which OR-Tools refuses where they are scaled too far."""
    optimize = pytest.importorskip("scipy.optimize")
    edges = torch.cat([grid_edges(n, n), grid_edges(n, n).flip(1)])
    tails, heads = edges.numpy().T
    supplies = np.zeros(n * n)
    supplies[0], supplies[-1] = 3.0, -3.0
    incidence = np.zeros((n * n, len(edges)))
    np.add.at(incidence, (tails, np.arange(len(edges))), 1.0)
    np.add.at(incidence, (heads, np.arange(len(edges))), -1.0)
    for low in (0.0, -0.2):
        costs = random(8, len(edges), seed=n, low=low) * 3.7
        result = MinCostFlow(edges, [2] * len(edges), supplies, num_nodes=n * n).solve_batch(costs)
        assert (result.status == Status.OPTIMAL).all()
        reference = optimize.linprog(costs[0].numpy(), A_eq=incidence, b_eq=supplies, bounds=(0, 2))
        torch.testing.assert_close(result.objective[0].item(), reference.fun, rtol=1e-9, atol=1e-9)


@ort
@pytest.mark.parametrize(
    ("capacities", "supplies", "message"),
    [
        ([2.0**61, 1], [1, -1], "do not fit into 64-bit"),
        ([2.0**40, 0.1], [1, -1], "do not fit into 64-bit"),
        ([1.0, 5e-324], [1, -1], "do not fit into 64-bit"),
        ([1, -1], [1, -1], "must not be negative"),
        ([1, 1], [1, -2], "must add up to 0"),
        ([1, float("inf")], [1, -1], "must be finite"),
        ([1], [1, -1], "must have shape"),
    ],
)
def test_amounts_that_flows_refuse(capacities, supplies, message):
    with pytest.raises(ValueError, match=message):
        MinCostFlow([(0, 1), (1, 0)], capacities, supplies, num_nodes=2)
    if "shape" not in message:
        oracle = MinCostFlow([(0, 1), (1, 0)], [1, 1], [1, -1], num_nodes=2)
        with pytest.raises(ValueError, match=message):
            oracle.with_parameters(capacities=np.array(capacities), supplies=np.array(supplies))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ShortestPath([(0, 5)], 0, 1, num_nodes=2), ValueError, r"in \[0, 1\].*got \(0, 5\) in edge 0"),
        (lambda: ShortestPath([(0.0, 1.0)], 0, 1, num_nodes=2), TypeError, "must hold integers"),
        (lambda: ShortestPath([0, 1], 0, 1, num_nodes=2), ValueError, r"shape \[E, 2\]"),
        (lambda: ShortestPath([(0, 1)], 0, 2, num_nodes=2), ValueError, "'target' must be in"),
        (lambda: ShortestPath([(0, 1)], 0, 1, num_nodes=0), ValueError, "'num_nodes' must be at least 1"),
        (lambda: ShortestPath([(0, 1)], 0, 1, num_nodes=2, allow_negative=1), TypeError, "True or False"),
        (lambda: GridShortestPath((3, 3), neighbors=6), ValueError, "must be 4 or 8"),
        (lambda: GridShortestPath(3), TypeError, "must be two integers"),
        (lambda: GridShortestPath((3, 3), source=(3, 0)), ValueError, "'source' must be in"),
        (lambda: grid_edges(0, 3), ValueError, "at least 1"),
        (lambda: Assignment(-1), ValueError, "at least 0"),
        (lambda: Permutation(2.0), TypeError, "must be an integer"),
        (lambda: MinimumSpanningTree([(0, 1)], 1), ValueError, "must name nodes"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_bad_parameters_and_costs():
    oracle = ShortestPath([(0, 1), (1, 0)], 0, 1, num_nodes=2)
    with pytest.raises(ValueError, match=r"'source' must be in \[0, 1\], got 2"):
        oracle.with_parameters(source=torch.tensor([0, 2]))
    with pytest.raises(TypeError, match="'target' must hold integers"):
        oracle.with_parameters(target=torch.tensor(1.0))
    with pytest.raises(TypeError, match="'available' must be boolean"):
        oracle.with_parameters(available=torch.ones(2))
    with pytest.raises(ValueError, match="rows 1"):
        oracle.solve(torch.tensor([[1.0, 1.0], [float("nan"), 1.0]]))
    grid = GridShortestPath((2, 2))
    with pytest.raises(ValueError, match="must name cells"):
        grid.with_parameters(source=torch.tensor([2, 0]))
    with pytest.raises(ValueError, match="must not be negative"):
        grid.solve(-torch.ones(2, 2))


def test_the_disconnected_row_is_named():
    oracle = ShortestPath([(0, 1), (2, 1)], 0, 1, num_nodes=3).with_parameters(target=torch.tensor([1, 2]))
    with pytest.raises(InfeasibleError, match=r"rows 1, the first is INFEASIBLE \(no path from node 0 to node 2\)"):
        oracle.solve(torch.ones(2, 2))


def test_oracles_are_picklable_and_results_keep_the_dtype():
    costs = torch.rand(3, 24, dtype=torch.float32)
    for oracle in (ShortestPath(grid_edges(4, 4), 0, 15, num_nodes=16), MinimumSpanningTree(grid_edges(4, 4), 16)):
        oracle.solve(costs)
        copy = pickle.loads(pickle.dumps(oracle))
        assert torch.equal(copy.solve(costs), oracle.solve(costs))
        assert oracle.solve(costs).dtype == torch.float32
        assert oracle.solve(costs[0]).shape == (24,)
        assert oracle.solve(costs[:0]).shape == (0, 24)


@pytest.mark.parametrize(
    ("module", "oracle"),
    [
        ("scipy.optimize", Assignment(3)),
        ("scipy.sparse", MinimumSpanningTree([(0, 1)], 2)),
        ("scipy.sparse", GridShortestPath((2, 2))),
        ("ortools.graph.python.min_cost_flow", MinCostFlow([(0, 1)], [1], [1, -1], num_nodes=2)),
    ],
)
def test_a_missing_solver_says_what_to_install(module, oracle, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"needs {module.split('.')[0]}; install it .*'difflayers\[solvers\]'"):
        oracle.solve(torch.ones(2, *oracle.cost_shape))


def test_time_limit_of_the_batch():
    oracle = ShortestPath([(0, 1), (1, 0)], 0, 1, num_nodes=2, time_limit=1e-12, on_failure="nan")
    assert (oracle.solve_batch(torch.ones(3, 2)).status == Status.TIMEOUT).all()


def test_with_parameters_keeps_the_settings():
    oracle = TopK(4, 2, on_failure="nan", time_limit=3.0, workers=2, cache=5)
    other = oracle.with_parameters(k=torch.tensor([1, 3]))
    for name in ("on_failure", "time_limit", "workers", "cache"):
        assert getattr(other, name) == getattr(oracle, name)
    assert oracle.parameters == {}


def test_no_rows_need_no_solver():
    assert GridShortestPath((3, 4), neighbors=8).solve(torch.zeros(2, 0, 3, 4)).shape == (2, 0, 3, 4)
