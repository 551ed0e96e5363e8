"""Certificates: a vertex that they prove optimal is as cheap as what a solve finds, and they prove enough of them."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from difflayers.oracles import LinearProgram, Status
from difflayers.oracles import _certificates as certificates_module
from difflayers.oracles._certificates import Certificate, certificate_of, normalised_rows

optimize = pytest.importorskip("scipy.optimize")
pytest.importorskip("ortools")


def packing(random, n=20):
    """Not degenerate, as a rule."""
    matrix = random.random((n // 2, n)) * (random.random((n // 2, n)) < 0.4)
    return {"A_ub": matrix, "b_ub": np.ones(n // 2), "bounds": (0, 1)}, -random.random(n)


def matching(random, n=5):
    """Highly degenerate, with a redundant equation."""
    rows = np.kron(np.eye(n), np.ones((1, n)))
    columns = np.kron(np.ones((1, n)), np.eye(n))
    return {"A_eq": np.concatenate([rows, columns]), "b_eq": np.ones(2 * n)}, random.random(n * n)


def path(random, n=4):
    """A grid's shortest path, by its incidence matrix."""
    from difflayers.oracles import grid_edges

    tails, heads = grid_edges(n, n).numpy().T
    incidence = np.zeros((n * n, len(tails)))
    incidence[tails, np.arange(len(tails))], incidence[heads, np.arange(len(tails))] = 1.0, -1.0
    supply = np.zeros(n * n)
    supply[0], supply[-1] = 1.0, -1.0
    return {"A_eq": incidence, "b_eq": supply}, random.random(len(tails))


def mixed(random, n=12):
    """Bounds of every kind, fixed and free variables, equations and inequalities."""
    matrix, inside = random.integers(-2, 3, (7, n)).astype(float), random.random(n)
    bounds = [[(-1, 2), (0, None), (None, 3), (inside[i], inside[i])][i % 4] for i in range(n)]
    bounds[0] = (None, None)
    return {
        "A_ub": np.concatenate([matrix[:4], np.eye(n), -np.eye(n)]),
        "b_ub": np.concatenate([matrix[:4] @ inside + 0.3, np.full(2 * n, 5.0)]),
        "A_eq": matrix[4:],
        "b_eq": matrix[4:] @ inside,
        "bounds": bounds,
    }, random.normal(size=n)


PROGRAMS = [packing, matching, path, mixed]


@pytest.fixture(autouse=True)
def every_vertex_that_comes_up_twice_is_learnt(monkeypatch):
    monkeypatch.setattr(certificates_module, "TRIALS", 10**9)


def drift(random, cost, steps, rows, size=0.01):
    """Costs as they come in training: every row walks away from its own start."""
    costs = cost + 0.1 * np.abs(cost).mean() * random.normal(size=(rows, len(cost)))
    for _ in range(steps):
        costs = costs + size * np.abs(cost).mean() * random.normal(size=costs.shape)
        yield torch.from_numpy(costs)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("seed", range(3))
def test_certified_answers_equal_solves(program, seed):
    random = np.random.default_rng(seed)
    arguments, cost = program(random)
    oracle, plain = LinearProgram(**arguments, certificates=64), LinearProgram(**arguments)
    total = 0
    for costs in drift(random, cost, 25, 6):
        result, expected = oracle.solve_batch(costs), plain.solve_batch(costs)
        assert (result.status == Status.OPTIMAL).all()
        assert torch.allclose(result.objective, expected.objective, rtol=1e-9, atol=1e-12)
        assert torch.allclose(result.solutions, expected.solutions, atol=1e-6)  # random costs: one optimum
        assert torch.equal(result.bound, result.objective)
        total += len(costs)
    assert oracle.certified > total / 4  # the rest is new vertices, not misses
    assert plain.certified == 0


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_same_costs_again_are_always_proved(program):
    random = np.random.default_rng(7)
    arguments, cost = program(random)
    oracle = LinearProgram(**arguments, certificates=100)
    costs = torch.from_numpy(cost + random.normal(size=(20, len(cost))) * 0.3 * np.abs(cost).mean())
    first = oracle.solve(costs)
    oracle.solve(costs)  # all vertices have come up before: their bases are learnt
    before = oracle.certified
    for scale in (1.0, 1e-300, 1e250):
        assert torch.allclose(oracle.solve(scale * costs), first, rtol=0.0, atol=1e-12)
    assert oracle.certified == before + 60
    assert torch.equal(oracle.solve(torch.zeros_like(costs[0])) * 0.0, torch.zeros_like(costs[0]))
    assert oracle.certified == before + 61  # every vertex is optimal where costs are zero


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_wrong_proof(program):
    """Against enumeration: every vertex that random costs reach, and whether it is the cheapest of them."""
    random = np.random.default_rng(3)
    arguments, cost = program(random)
    plain = LinearProgram(**arguments)
    costs = np.abs(cost).mean() * random.normal(size=(150, len(cost))) + cost
    solved = plain.__class__(**arguments, certificates=1000, on_failure="nan")
    solved.solve_batch(torch.from_numpy(costs))
    result = solved.solve_batch(torch.from_numpy(costs))
    entries = list(solved._certificates._entries.values())
    assert len(entries) >= 3
    good = (result.status == Status.OPTIMAL).numpy()
    scaled, optima = normalised_rows(costs[good]), result.objective.numpy()[good]
    for entry in entries:
        value = costs[good] @ entry.solution
        scale = np.abs(costs[good]).max(1)
        assert (value[entry.proves(scaled)] <= (optima + 1e-7 * scale)[entry.proves(scaled)]).all()
    proofs = np.stack([entry.proves(scaled) for entry in entries])
    assert proofs.any(0).all()  # each row by the basis that came of it
    assert not proofs.all()


def test_reduced_costs_by_hand():
    """min c x, x1 + 2 x2 <= 4, 0 <= x <= 3, at (3, 0.5): the cone of -(1, 2) and -(1, 0)."""
    oracle = LinearProgram([[1.0, 2.0]], [4.0], bounds=(0, 3), certificates=4)
    oracle.solve(torch.tensor([[-1.0, -1.0], [-1.0, -1.5]]))
    (entry,) = oracle._certificates._entries.values()
    assert entry.solution.tolist() == [3.0, 0.5]
    cases = [([-1, -1], True), ([-0.5, -1], True), ([-0.49, -1], False), ([-1, 0], True), ([-1, 0.01], False)]
    for cost, optimal in cases:
        assert entry.proves(np.array([cost], dtype=float)).tolist() == [optimal], cost


def test_infeasible_and_unbounded_rows_stay_so():
    oracle = LinearProgram(n=2, certificates=8, on_failure="nan")
    costs = torch.tensor([[1.0, 1.0], [-1.0, 0.0], [2.0, 3.0], [1.0, -2.0]])
    for _ in range(3):
        assert oracle.solve_batch(costs).status.tolist() == [0, 3, 0, 3]
    assert oracle.certified == 4  # solved in the first and third row, whose basis serves both from then on
    none = LinearProgram([[1.0]], [-1.0], certificates=8, on_failure="nan")
    assert none.solve_batch(torch.ones(3, 1)).status.tolist() == [2, 2, 2]
    assert LinearProgram(n=0, certificates=8).solve(torch.zeros(3, 0)).shape == (3, 0)


def test_each_row_its_own_sides():
    oracle = LinearProgram([[1.0, 1.0]], [1.0], bounds=(0, 5), certificates=8, on_failure="nan")
    costs = -torch.tensor([[2.0, 1.0]]).expand(3, 2)
    assert oracle.solve(costs).tolist() == [[1.0, 0.0]] * 3
    own = oracle.with_parameters(b_ub=torch.tensor([[4.0], [-1.0], [8.0]]))
    for _ in range(3):
        result = own.solve_batch(costs)
        assert result.status.tolist() == [Status.OPTIMAL, Status.INFEASIBLE, Status.OPTIMAL]
        assert result.solutions[[0, 2]].tolist() == [[4.0, 0.0], [5.0, 3.0]]
    assert own.certified == oracle.certified == 1 + 2  # copies share what they know, each row under its own sides
    assert oracle.solve(costs).tolist() == [[1.0, 0.0]] * 3
    two = LinearProgram([[1.0, 0.0]], [3.0], [[0.0, 1.0]], [3.0], certificates=8)
    one = torch.tensor([-1.0, 0.0])
    for _ in range(3):
        assert two.with_parameters(b_ub=np.array([2.0])).solve(one).tolist() == [2.0, 3.0]
        assert two.with_parameters(b_eq=np.array([2.0])).solve(one).tolist() == [3.0, 2.0]  # another side
    assert two.certified == 2


def test_memory_is_bounded(monkeypatch):
    random = np.random.default_rng(0)
    arguments, cost = packing(random)
    oracle = LinearProgram(**arguments, certificates=3)
    costs = torch.from_numpy(cost + 0.3 * random.normal(size=(40, len(cost))))
    expected = LinearProgram(**arguments).solve_batch(costs).objective
    for _ in range(2):
        assert torch.allclose(oracle.solve_batch(costs).objective, expected)
    assert len(oracle._certificates) == 3
    assert sum(map(len, oracle._certificates._of.values())) == 3
    size = max(entry.table.size for entry in oracle._certificates._entries.values())
    monkeypatch.setattr(certificates_module, "ENTRIES", 8 * size)
    many = LinearProgram(**arguments, certificates=1000)
    for _ in range(2):
        assert torch.allclose(many.solve_batch(costs).objective, expected)
    assert many._certificates._numbers == sum(e.table.size for e in many._certificates._entries.values())
    assert 4 <= len(many._certificates) < 40
    assert sum(entry.table.size for entry in many._certificates._entries.values()) <= 8 * size
    monkeypatch.setattr(certificates_module, "ENTRIES", 8)
    assert torch.allclose(LinearProgram(**arguments, certificates=9).solve_batch(costs).objective, expected)


def test_the_least_recently_used_is_forgotten():
    oracle = LinearProgram(A_eq=np.ones((1, 4)), b_eq=[1.0], certificates=2)
    first, second, third = -torch.eye(4)[:3]
    for cost in (first, first, second, second):  # solved, learnt, each
        oracle.solve(cost)
    for cost, hits in ((first, 1), (third, 1), (third, 1), (first, 2), (third, 3), (second, 3)):
        oracle.solve(cost)
        assert oracle.certified == hits


@pytest.mark.parametrize("workers", [2, "processes:2"])
def test_on_workers(workers):
    random = np.random.default_rng(0)
    arguments, cost = matching(random)
    oracle, plain = LinearProgram(**arguments, certificates=64, workers=workers), LinearProgram(**arguments)
    for costs in drift(random, cost, 5, 16):
        assert torch.allclose(oracle.solve_batch(costs).objective, plain.solve_batch(costs).objective)
    assert (oracle.certified > 20) if workers == 2 else (oracle.certified == 0)  # processes count their own


def test_many_threads():
    random = np.random.default_rng(0)
    arguments, cost = packing(random, 10)
    oracle = LinearProgram(**arguments, certificates=2)
    batches = list(drift(random, cost, 30, 4, 0.1))
    expected = LinearProgram(**arguments).solve_batch(torch.stack(batches)).objective
    with ThreadPoolExecutor(4) as threads:
        found = torch.stack([result.objective for result in threads.map(oracle.solve_batch, batches)])
    assert torch.allclose(found, expected)


def test_copies_and_pickles():
    oracle = LinearProgram([[1.0, 2.0]], [4.0], bounds=(0, 3), certificates=4)
    cost = torch.tensor([-1.0, -1.0])
    oracle.solve(cost.expand(2, 2))
    assert len(oracle._certificates) == 1
    for other in (copy.deepcopy(oracle), pickle.loads(pickle.dumps(oracle))):
        assert len(other._certificates) == 0
        assert torch.equal(other.solve(cost), oracle.solve(cost))
        assert other._certificates.size == 4


def test_what_proves_nothing():
    """A solution that is no vertex, and a basis near to singular, are not remembered."""
    program = LinearProgram([[1.0, 2.0]], [4.0], bounds=(0, 3)).constraints
    zero = np.zeros(2)
    assert certificate_of(program, np.array([4.0]), np.array([2.0, 1.0]), np.zeros(1), zero) is None
    assert isinstance(certificate_of(program, np.array([4.0]), zero, np.zeros(1), zero), Certificate)
    near = LinearProgram(A_eq=[[1.0, 1.0], [1.0, 1.0 + 1e-9]], b_eq=[1.0, 1.0], bounds=(-9, 9), certificates=4)
    near.solve(torch.tensor([1.0, 2.0]).expand(3, 2))
    assert len(near._certificates) == 0


def test_bad_arguments():
    for method in ("highs", "pdlp"):
        with pytest.raises(ValueError, match="'certificates' must be 0 with method="):
            LinearProgram(n=2, method=method, certificates=3)
    for bad, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="'certificates'"):
            LinearProgram(n=2, certificates=bad)  # pyright: ignore[reportArgumentType]


def test_what_does_not_pay_is_tried_seldom(monkeypatch):
    """Every vertex comes up twice, far apart, so that bases are learnt and forgotten again."""
    monkeypatch.setattr(certificates_module, "TRIALS", 4)
    oracle = LinearProgram(A_eq=np.ones((1, 50)), b_eq=[1.0], certificates=50)
    oracle._certificates.size = 49  # a round of 50 pushes each out just before it comes again
    for _ in range(6):
        oracle.solve(-torch.eye(50))
    memory = oracle._certificates
    assert memory._learnt <= 4 + memory.hits // 2 + 300 // 8
    assert len(memory._met) <= 49 * certificates_module.MET
