"""Layers in DataLoader workers, in forked and spawned processes, and in several Python threads at once."""

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import difflayers as dl
from tests.reliability.operators import CALLS

ROOT = Path(__file__).parent.parent
COUNT = 6
pytestmark = [
    # Python's own, from 3.12 on, and torch's: this process has threads, which is what is tested here
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning"),
]


def layers(seed: int) -> dict[str, torch.Tensor]:
    """A layer of each family on numbers that the seed gives, with gradients where there are any."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 9, generator=generator, requires_grad=True)
    results = {
        "sort": dl.sort(x),
        "permutation": dl.permutation(x, hard=True),
        "gumbel": dl.gumbel_softmax(x, 0.5, generator=generator),
        "simple": dl.subsets.simple(x, 3, generator=generator),
        "soft rank": dl.subsets.soft_rank(x, 0.3),
        "solver": dl.SolverLayer(dl.oracles.TopK(9, 3), rule=dl.Blackbox(5.0))(x),
    }
    sum((y * torch.linspace(0, 1, y.numel()).view_as(y)).sum() for y in results.values()).backward()
    fit = dl.ransac.RANSAC(dl.ransac.Line2D(), threshold=0.3, max_iterations=20).eval()
    points = torch.randn(30, 2, generator=generator)
    return {
        **{name: y.detach() for name, y in results.items()},
        "gradient": x.grad,
        "line": fit(points, generator=generator).model.detach(),
    }


class Layers(Dataset):
    """A layer of each family in every item, and an oracle that the parent has used already."""

    def __init__(self) -> None:
        self.oracle = dl.oracles.Assignment(4)
        self.oracle.solve(self.costs(0))

    def costs(self, index: int) -> torch.Tensor:
        return torch.rand(4, 4, generator=torch.Generator().manual_seed(index))

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {**layers(index), "assignment": self.oracle.solve(self.costs(index))}


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


@pytest.fixture(scope="module")
def dataset():
    return Layers()


@pytest.fixture(scope="module")
def expected(dataset):
    return [dataset[index] for index in range(COUNT)]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_of_a_data_loader(context, dataset, expected):
    workers = 2 if context == "fork" else 1  # a spawned one imports torch again
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context=context, timeout=120)
    for actual, wanted in zip(loader, expected, strict=True):
        assert_same(actual, wanted)


def test_threads_at_once(expected):
    with ThreadPoolExecutor(2) as threads:
        for actual, wanted in zip(threads.map(layers, [*range(COUNT)] * 2), [*expected] * 2, strict=True):
            assert_same(actual, {name: value for name, value in wanted.items() if name != "assignment"})


@pytest.mark.skipif(not dl.build_info()["compiled"], reason="the kernels are not compiled in")
def test_operators_from_threads_at_once():
    from tests.reliability import two_threads

    two_threads.first_calls()
    assert [name for name in CALLS if two_threads.disagreements(name, 10)] == []


FORK = """
import os, sys, torch
import difflayers as dl
torch.set_num_threads(2)
x = torch.randn(2000, 64)
before = dl.sort(x), dl.rank(x), dl.permutation(x[:200]), dl.subsets.soft_rank(x), dl.subsets.marginals(x, 5)
child = os.fork()
if child == 0:
    torch.set_num_threads(1)  # OpenMP's threads are gone: as for torch's own operators, see docs/reliability.md
    after = dl.sort(x), dl.rank(x), dl.permutation(x[:200]), dl.subsets.soft_rank(x), dl.subsets.marginals(x, 5)
    new = dl.sort(x[:, :37])  # a table that is in no cache yet
    os._exit(0 if all(map(torch.equal, before, after)) and new.isfinite().all() else 3)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_after_kernels_ran_on_threads():
    """With one thread in the child, as DataLoader's workers have; with more, torch's own operators wait for ever."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK], cwd=ROOT, capture_output=True, text=True,
        timeout=100, check=False, env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def solve_in_child(queue, oracle, costs) -> None:
    queue.put(oracle.solve(costs).tolist())


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_oracles_in_other_processes(context):
    """An oracle that has solved here, with the solver's own state, goes on in a child."""
    oracle, costs = dl.oracles.TravelingSalesman(6), torch.rand(15, generator=torch.Generator().manual_seed(1))
    wanted = oracle.solve(costs)
    processes = multiprocessing.get_context(context)
    queue = processes.SimpleQueue()
    child = processes.Process(target=solve_in_child, args=(queue, oracle, costs))
    child.start()
    child.join(100)
    assert child.exitcode == 0
    assert queue.get() == wanted.tolist()
