"""Batches on threads, on processes that may die, and on executors, Dask's among them."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import torch

from difflayers.errors import SolverError, SolverTimeout
from difflayers.oracles import FromCallable, Permutation, ShortestPath, Status, TopK, grid_edges


def cheapest(cost):
    return np.eye(len(cost))[cost.argmin()]


def where(cost):
    """Marks the process that solved it."""
    return np.full(len(cost), float(os.getpid()))


def deadly(cost):
    if cost[0] > 0.9:
        os._exit(3)
    return cheapest(cost)


def stuck(cost):
    if cost[0] > 0.9:
        time.sleep(600)
    return cheapest(cost)


class Counting:
    """Counts the calls of this very copy."""

    def __init__(self):
        self.calls = 0

    def __call__(self, cost):
        self.calls += 1
        return np.array([os.getpid(), self.calls], dtype=np.float64)


class Unpicklable(Exception):
    def __init__(self, lock):
        super().__init__("no")
        self.lock = lock


def raises(costs):
    raise KeyError("a batched function that raises")


def raises_oddly(costs):
    raise Unpicklable(threading.Lock())


def costs_of(oracle, *lead):
    return torch.rand(*lead, *oracle.cost_shape, dtype=torch.float64)


PATHS = {"edges": grid_edges(4, 4), "source": 0, "target": 15, "num_nodes": 16}


@pytest.mark.parametrize(
    "make",
    [
        lambda **settings: TopK(5, 2, **settings),
        lambda **settings: Permutation(4, **settings),
        lambda **settings: ShortestPath(**PATHS, **settings),
        lambda **settings: FromCallable(cheapest, (3,), **settings),
    ],
)
def test_processes_give_what_is_computed_here(make):
    here, there = make(), make(workers=2)
    for lead in ((), (1,), (2,), (17,), (3, 5), (0,)):
        costs = costs_of(here, *lead)
        for mine, theirs in zip(here.solve_batch(costs), there.solve_batch(costs), strict=True):
            assert torch.equal(mine, theirs)


def test_parameters_travel_with_their_rows():
    k = torch.arange(12) % 5
    costs = torch.rand(12, 4)
    here = TopK(4, 1, on_failure="nan").with_parameters(k=k).solve_batch(costs)
    for workers in (2, ThreadPoolExecutor(2)):
        result = TopK(4, 1, on_failure="nan", workers=workers).with_parameters(k=k).solve_batch(costs)
        assert torch.equal(result.solutions.nan_to_num(-1), here.solutions.nan_to_num(-1))
        assert torch.equal(result.status, here.status)


def test_processes_are_others_and_threads_are_not():
    costs = torch.rand(16, 2, dtype=torch.float64)
    pids = set(FromCallable(where, (2,), workers=2).solve(costs)[:, 0].tolist())
    assert 1 <= len(pids) <= 2
    assert os.getpid() not in pids
    threads = FromCallable(where, (2,), workers=2)
    threads.releases_gil = True
    assert set(threads.solve(costs)[:, 0].tolist()) == {os.getpid()}


def test_oracles_stay_in_their_workers_between_batches():
    oracle = FromCallable(Counting(), (2,), workers=2)
    counts = {}
    for _ in range(3):
        for pid, calls in oracle.solve(torch.rand(8, 2, dtype=torch.float64)).tolist():
            counts.setdefault(pid, []).append(calls)
    assert sum(map(len, counts.values())) == 24
    for calls in counts.values():
        assert sorted(calls) == list(range(1, len(calls) + 1))


def test_a_worker_that_dies_costs_its_row_only():
    oracle = FromCallable(deadly, (3,), workers=2)
    costs = 0.8 * torch.rand(20, 3)
    costs[[4, 13], 0] = 1.0
    with pytest.raises(SolverError, match=r"rows 4, 13, the first is FAILED \(its worker died with exit code 3\)") as e:
        oracle.solve(costs)
    assert e.value.rows == [4, 13]
    rest = [i for i in range(20) if i not in (4, 13)]
    assert torch.equal(e.value.solutions[rest], TopK(3, 1).solve(costs[rest]))
    assert torch.equal(oracle.solve(costs[rest]), TopK(3, 1).solve(costs[rest]))  # the pool has been rebuilt


def test_a_worker_that_dies_between_batches_is_replaced():
    oracle = FromCallable(where, (2,), workers=2)
    pids = set(oracle.solve(torch.rand(8, 2, dtype=torch.float64))[:, 0].int().tolist())
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    assert pids.isdisjoint(oracle.solve(torch.rand(8, 2, dtype=torch.float64))[:, 0].int().tolist())


def test_a_solver_that_ignores_its_time_limit_is_killed(monkeypatch):
    monkeypatch.setattr("difflayers.oracles.processes.PATIENCE", 0.5)
    oracle = FromCallable(stuck, (3,), workers=2, time_limit=0.5)
    costs = 0.8 * torch.rand(8, 3)
    costs[5, 0] = 1.0
    with pytest.raises(SolverTimeout, match=r"rows 5, the first is TIMEOUT \(its worker did not stop"):
        oracle.solve(costs)


def test_a_solver_that_always_kills_its_worker_is_given_up(monkeypatch):
    monkeypatch.setattr("difflayers.oracles.processes.DEATHS", 2)
    result = FromCallable(deadly, (3,), workers=2, on_failure="nan").solve_batch(torch.ones(16, 3))
    assert (result.status == Status.FAILED).all()


@pytest.mark.parametrize("workers", ["processes", "threads"])
def test_what_the_function_raises_comes_back(workers):
    settings = {"batched": True, "workers": 2 if workers == "processes" else ThreadPoolExecutor(2)}
    with pytest.raises(KeyError, match="a batched function that raises"):
        FromCallable(raises, (3,), **settings).solve(torch.rand(6, 3))
    with pytest.raises(RuntimeError if workers == "processes" else Unpicklable, match="no"):
        FromCallable(raises_oddly, (3,), **settings).solve(torch.rand(6, 3))
    assert FromCallable(cheapest, (3,), workers=settings["workers"]).solve(torch.rand(6, 3)).sum() == 6


def test_bad_workers():
    for workers, error in ((0, ValueError), (True, TypeError), (1.5, TypeError)):
        with pytest.raises(error, match="argument 'workers' must be"):
            TopK(3, 1, workers=workers)
    with pytest.raises(TypeError, match=r"must be picklable, .*ThreadPoolExecutor"):
        FromCallable(lambda cost: cost, (3,), workers=2).solve(torch.rand(4, 3))


def test_threads_or_processes_as_asked_for():
    here, costs = os.getpid(), torch.rand(16, 2, dtype=torch.float64)
    assert set(FromCallable(where, (2,), workers="threads:2").solve(costs)[:, 0].tolist()) == {here}
    assert here not in FromCallable(where, (2,), workers="processes:2").solve(costs)[:, 0].tolist()
    assert FromCallable(where, (2,), workers="processes:2").solve(costs[0])[0] != here  # a single row, too
    free = FromCallable(where, (2,), workers="processes:2")
    free.releases_gil = True  # for a number it would be threads
    assert here not in free.solve(costs)[:, 0].tolist()
    names = set()
    oracle = FromCallable(lambda cost: names.add(threading.current_thread().name) or cost, (2,), workers="threads:2")
    assert torch.equal(oracle.solve(costs), costs)
    assert all(name.startswith("difflayers") for name in names)
    oracle.thread_safe = False
    with pytest.raises(ValueError, match="not thread-safe"):
        oracle.solve(costs)


@pytest.mark.parametrize("workers", ["threads", "processes:", "threads:0", "threads:-1", "gpu:2", "threads:2.5", ""])
def test_bad_strings_of_workers(workers):
    with pytest.raises(ValueError, match=r"'workers' as a string must be 'threads:N' or 'processes:N'.*got"):
        TopK(3, 1, workers=workers)


def test_a_small_cache_under_many_threads():
    """Rows that one thread finds remembered must not vanish under it when another pushes them out."""
    oracle = TopK(4, 2, cache=3)
    batches = [torch.rand(4, 4, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    expected = [TopK(4, 2).solve(batch) for batch in batches]
    with ThreadPoolExecutor(8) as threads:
        order = [i % 6 for i in range(600)]
        for i, found in zip(order, threads.map(lambda i: oracle.solve(batches[i]), order), strict=True):
            assert torch.equal(found, expected[i])


def test_a_function_cannot_change_the_callers_costs():
    def spoils(costs):
        costs *= 0.0
        return costs + 1.0

    for batched in (False, True):
        costs = torch.rand(3, 2, dtype=torch.float64)
        before = costs.clone()
        result = FromCallable(spoils, (2,), batched=batched).solve_batch(costs)
        assert torch.equal(costs, before)
        assert torch.equal(result.objective, before.sum(1))


class Lossy(Executor):
    """Runs at once, and loses every third task."""

    def __init__(self):
        self.count = 0

    def submit(self, function, /, *arguments, **keywords):
        future = Future()
        self.count += 1
        if self.count % 3 == 0:
            future.set_exception(OSError("connection reset"))
        else:
            future.set_result(function(*arguments, **keywords))
        return future


def test_any_executor_and_what_it_loses():
    costs = torch.rand(6, 4)
    result = TopK(4, 1, workers=Lossy(), on_failure="nan").solve_batch(costs)
    assert result.status.tolist() == [0, 0, Status.FAILED, 0, 0, Status.FAILED]
    good = [0, 1, 3, 4]
    assert torch.equal(result.solutions[good], TopK(4, 1).solve(costs[good]))
    with pytest.raises(SolverError, match="its worker was lost, OSError: connection reset"):
        TopK(4, 1, workers=Lossy()).solve(costs)
    closed = ThreadPoolExecutor(1)
    closed.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        TopK(4, 1, workers=closed).solve(costs)


@pytest.mark.slow
def test_a_process_pool_of_the_user_that_breaks():
    import multiprocessing

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        oracle = FromCallable(deadly, (3,), workers=executor, on_failure="nan")
        assert (oracle.solve_batch(torch.zeros(6, 3)).status == Status.OPTIMAL).all()
        costs = torch.zeros(6, 3)
        costs[5, 0] = 1.0
        status = oracle.solve_batch(costs).status
        assert status[5] == Status.FAILED
        again = oracle.solve_batch(torch.zeros(6, 3))  # it stays broken; only its owner could replace it
        assert (again.status == Status.FAILED).all()


def dask_cluster(**settings):
    distributed = pytest.importorskip("distributed")
    return distributed.LocalCluster(n_workers=2, dashboard_address=None, silence_logs=50, **settings)


def on_dask(cluster):
    from distributed import Client

    costs = torch.rand(40, 24)
    with Client(cluster) as client:
        executor = client.get_executor()
        oracle = ShortestPath(**PATHS, workers=executor)
        assert torch.equal(oracle.solve(costs), ShortestPath(**PATHS).solve(costs))
        assert (FromCallable(cheapest, (24,), workers=executor).solve(costs).sum(1) == 1).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_dask_cluster_of_threads():
    with dask_cluster(processes=False) as cluster:
        on_dask(cluster)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_dask_cluster_of_processes():
    with dask_cluster(processes=True, threads_per_worker=1) as cluster:
        on_dask(cluster)


SCRIPT = """
import time, torch
import numpy as np
from difflayers.oracles import FromCallable

def sleepy(cost):
    time.sleep(300 if cost[0] > 0.5 else 0)
    return cost

if __name__ == "__main__":
    oracle = FromCallable(sleepy, (2,), workers=1)
    oracle.solve(torch.zeros(4, 2))
    print("ready", flush=True)
    try:
        oracle.solve(torch.ones(4, 2))
    except KeyboardInterrupt:
        print("interrupted", oracle.solve(torch.zeros(4, 2)).sum().item(), flush=True)
"""


@pytest.mark.slow
def test_ctrl_c_stops_the_workers_and_the_pool_lives_on(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout.readline().strip() == "ready"
    time.sleep(1.0)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does, to the workers too
    assert process.communicate(timeout=60)[0].strip() == "interrupted 0.0"
    assert process.returncode == 0


@pytest.mark.slow
def test_a_script_without_its_guard_is_told_so(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace('if __name__ == "__main__":', "if True:"))
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    assert "put what runs under if __name__ == '__main__'" in result.stderr.strip().splitlines()[-1]


def test_no_warning_is_needed():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TopK(3, 1, workers=2).solve(torch.rand(6, 3))
