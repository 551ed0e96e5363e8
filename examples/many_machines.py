"""One and the same solver job on one core, on threads, on processes, and on a Dask cluster of any size.

A dispatcher assigns jobs to machines of limited capacity (generalised assignment, one integer program a row). The job
has two parts: to solve a batch of such problems, and to train a linear model for one epoch through the solver as a
layer, which predicts the costs so that the assignments are good. Nothing in it changes with the place where the
programs are solved: `workers=` of the oracle says that, and takes any `concurrent.futures.Executor`. All places must
give the same assignments and the same trained weights, bit by bit; the seconds of each are printed as they come.

Without --scheduler a cluster of processes is started on this machine; with it the programs go to a cluster that runs
already, `dask scheduler` and on every machine `dask worker tcp://HOST:8786 --nthreads 1`, where difflayers is
installed. --kill ends one worker with SIGKILL in the middle of the batch (of that cluster, too): its rows must come out
all the same, from the others and from the worker that is started in its place.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import command
import numpy as np
import torch
from torch import Tensor, nn

import difflayers as dl

try:
    from distributed import Client, LocalCluster, get_task_stream
    from matplotlib.figure import Figure  # without pyplot: it draws with Agg and needs no display
    from tqdm import tqdm
except ImportError as error:
    sys.exit(f"many_machines.py: {error}; run: pip install 'difflayers[examples,dask]'")

FEATURES, BATCH, SLACK = 8, 32, 1.15
TIMEOUT = 10  # seconds until a scheduler has to answer
PLACES = ("threads", "processes", "dask")
GAIN = 1.2  # times as fast as one core: below that it may be chance


class Job(NamedTuple):
    """What is to be done: the sizes of the problem, a batch to solve, and data to learn from."""

    weights: np.ndarray
    capacities: np.ndarray
    batch: Tensor
    features: Tensor
    costs: Tensor

    def oracle(self, workers: Any, *, threads: bool = True) -> dl.oracles.GeneralizedAssignment:
        """The solver at its place. A number of workers means threads where solving releases the interpreter's lock.

        It does here; `releases_gil = False` asks for processes all the same, which a crash of the solver cannot harm.
        """
        oracle = dl.oracles.GeneralizedAssignment(self.weights, self.capacities, workers=workers)
        oracle.releases_gil = threads
        return oracle

    def train(self, oracle: dl.oracles.GeneralizedAssignment) -> Tensor:
        """One epoch through the solver: two programs a row, one forward and one backward; returns the weights."""
        torch.manual_seed(0)
        model = nn.Linear(FEATURES, self.costs[0].numel(), dtype=torch.float64)
        layer = dl.SolverLayer(oracle, rule=dl.Blackbox(5.0))
        optimiser = torch.optim.Adam(model.parameters(), 0.01)
        for features, costs in zip(self.features.split(BATCH), self.costs.split(BATCH), strict=True):
            optimiser.zero_grad()
            solutions = layer(model(features).reshape(costs.shape))
            (solutions * costs).sum((1, 2)).mean().backward()
            optimiser.step()
        return model.weight.detach()


def draw_job(options: Namespace) -> Job:
    """Random sizes, and costs that depend on features through a polynomial."""
    random = np.random.default_rng(options.seed)
    shape = (options.items, options.bins)
    weights = random.integers(5, 30, options.items)
    capacities = np.full(options.bins, int(weights.sum() / options.bins * SLACK) + 1)
    features = random.normal(size=(options.samples, FEATURES))
    through = random.normal(size=(FEATURES, options.items * options.bins)) / FEATURES**0.5
    costs = (1 + (features @ through) ** 2).reshape(-1, *shape)
    batch = random.random((options.rows, *shape))
    return Job(weights, capacities, *map(torch.from_numpy, (batch, features, costs)))


class Place(NamedTuple):
    """Where programs are solved; `kill` ends one of its workers, `client` is Dask's."""

    name: str
    workers: Any
    threads: bool = True
    kill: Callable[[], bool] | None = None
    client: Client | None = None


class Task(NamedTuple):
    """Some rows that a worker of Dask solved, from when to when."""

    worker: str
    start: float
    stop: float


class Result(NamedTuple):
    """Seconds at one place; rows lost when a worker was killed (None: none was), when that was, and Dask's tasks."""

    name: str
    starting: float
    solving: float
    training: float
    solutions: Tensor
    learned: Tensor
    lost: int | None
    killed: float | None
    tasks: list[Task]


def kill_process() -> bool:
    """Ends one of difflayers' own solver processes, as the kernel does when memory runs out; False if there is none."""
    for process in multiprocessing.active_children():
        if process.name == "difflayers-solver" and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
            return True
    return False


def end_itself() -> None:
    """Runs on a worker of Dask."""
    os.kill(os.getpid(), signal.SIGKILL)


def several(count: int, what: str) -> str:
    """2 processes, 1 thread."""
    return f"{count} {what}{'' if count == 1 else 'es' if what.endswith('s') else 's'}"


def open_places(options: Namespace, stack: ExitStack) -> list[Callable[[], Place]]:
    """The places, each opened when its turn comes."""

    def dask() -> Place:
        if options.scheduler:
            client = stack.enter_context(Client(options.scheduler, timeout=TIMEOUT))
        else:
            settings: dict[str, Any] = {"dashboard_address": None, "silence_logs": 50}
            cluster = LocalCluster(n_workers=options.workers, threads_per_worker=1, **settings)
            client = stack.enter_context(Client(stack.enter_context(cluster)))
        client.wait_for_workers(1, timeout=60)
        count = len(client.scheduler_info(n_workers=-1)["workers"])

        def kill() -> bool:
            first = next(iter(client.scheduler_info(n_workers=-1)["workers"]))
            return not client.run(end_itself, workers=[first], on_error="ignore")  # the dead do not answer

        return Place(f"Dask, {several(count, 'worker')}", client.get_executor(), kill=kill, client=client)

    count = options.workers
    places = {
        "threads": lambda: Place(several(count, "thread"), count),
        "processes": lambda: Place(several(count, "process"), count, threads=False, kill=kill_process),
        "dask": dask,
    }
    return [lambda: Place("here", None), *(places[name] for name in PLACES if name in options.places)]


def watched(place: Place, work: Callable[[], Any]) -> tuple[Any, list[Task]]:
    """What the work returns, and which tasks Dask did for it."""
    if place.client is None:
        return work(), []
    stream: Any = get_task_stream(place.client)
    with stream:
        done = work()
    spans = [(task["worker"], span) for task in stream.data for span in task["startstops"]]
    return done, [Task(worker, span["start"], span["stop"]) for worker, span in spans if span["action"] == "compute"]


def measure(open_place: Callable[[], Place], job: Job, options: Namespace, bar: Any) -> Result:
    """Opens a place, does the job there, and once more while a worker is killed."""

    def stage(name: str) -> float:
        bar.set_description(name)
        return time.perf_counter()

    begun = stage("starting")
    place = open_place()
    oracle = job.oracle(place.workers, threads=place.threads)
    oracle.solve(job.batch[: 4 * options.workers])  # until the workers have started and built their models
    job._replace(features=job.features[:2], costs=job.costs[:2]).train(oracle)  # torch loads its optimisers
    bar.update()
    ready = stage(f"{place.name}: solving")
    solutions, tasks = watched(place, lambda: oracle.solve(job.batch))
    bar.update()
    solved = stage(f"{place.name}: training")
    learned = job.train(oracle)
    bar.update()
    trained = time.perf_counter()
    result = Result(place.name, ready - begun, solved - ready, trained - solved, solutions, learned, None, None, tasks)
    if not options.kill or place.kill is None:
        return result
    moments: list[float] = []

    def strike(kill: Callable[[], bool] = place.kill) -> None:
        now = time.time()
        if kill():
            moments.append(now)

    bar.set_description(f"{place.name}: solving, and a worker is killed")
    oracle.on_failure = "nan"  # lost rows are to be counted
    timer = threading.Timer(0.3 * result.solving, strike)
    timer.start()
    again, tasks = watched(place, lambda: oracle.solve(job.batch))
    ended = time.time()
    timer.join()
    if not moments or moments[0] > ended:  # the batch was too short to hit somebody at work
        return result
    lost = int((again != solutions).flatten(1).any(1).sum())  # NaN differs from everything
    return result._replace(lost=lost, killed=moments[0], tasks=tasks)


def draw(results: list[Result], path: Path) -> None:
    """The seconds of each place, and who solved which rows when on the cluster."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    bars, line = figure.subplots(1, 2)
    places = np.arange(len(results))
    for shift, label, colour in ((-0.2, "solving", "#0969da"), (0.2, "training", "#bf8700")):
        bars.barh(places + shift, [getattr(result, label) for result in results], 0.38, label=label, color=colour)
    bars.set_yticks(places, [result.name for result in results])
    bars.invert_yaxis()
    bars.set(xlabel="seconds", title="the same job at each place")
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18), "ncols": 2, "frameon": False}
    bars.legend(**below)
    cluster = results[-1]  # where Dask is left out, nothing is known
    first = min((task.start for task in cluster.tasks), default=0.0)
    names = list(dict.fromkeys(task.worker for task in sorted(cluster.tasks, key=lambda task: task.start)))
    for task in cluster.tasks:
        line.barh(
            names.index(task.worker), task.stop - task.start, 0.6, left=task.start - first, color="#1a7f37", ec="white"
        )
    line.set_yticks(range(len(names)), [f"worker {i + 1}" for i in range(len(names))])
    line.invert_yaxis()
    line.set(xlabel="seconds", title="rows over the workers of the cluster")
    if cluster.killed is not None:
        line.axvline(cluster.killed - first, color="#cf222e", linestyle="--", label="a worker is killed")
        line.legend(**below)
    for axes in (bars, line):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def parse(argv: Sequence[str] | None) -> Namespace:
    parser = command.Parser(
        __file__,
        __doc__,
        seed="of the data",
        quick={"items": 16, "bins": 3, "rows": 32, "samples": 32},
        takes="seconds",
    )
    add = parser.add_argument
    add("--scheduler", metavar="ADDRESS", help="of a Dask cluster that runs, tcp://host:port; else one is started here")
    add("--workers", type=int, default=2, help="threads, processes, and workers of the cluster that is started here")
    add("--places", nargs="*", choices=PLACES, default=PLACES, metavar="NAME", help="beside here: threads, ...")
    add("--kill", action="store_true", help="solve once more, and kill a worker meanwhile")
    add("--items", type=int, default=30, help="of one problem")
    add("--bins", type=int, default=4, help="that the items go into")
    add("--rows", type=int, default=128, help="problems in the batch")
    add("--samples", type=int, default=64, help="to train with")
    options = parser.options(argv)
    if min(options.workers, options.items, options.bins, options.rows, options.samples) < 1:
        parser.error("--workers, --items, --bins, --rows and --samples must be positive")
    if options.scheduler and "dask" not in options.places:
        parser.error("--scheduler needs dask among the --places")
    if options.scheduler is not None and "://" not in options.scheduler:
        parser.error(f"--scheduler must be an address such as tcp://localhost:8786, got {options.scheduler!r}")
    return options


def verdict(results: list[Result]) -> str:
    """Whether more workers helped, said plainly."""
    here = results[0].solving + results[0].training
    if len(results) == 1:
        return "Nothing to compare with: no --places."
    best = min(results[1:], key=lambda result: result.solving + result.training)
    ratio = here / (best.solving + best.training)
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    machine = f"this machine has {cores} cores, at a load of {load:.1f}"
    if ratio >= GAIN:
        return f"{best.name}: {ratio:.1f} times as fast as one core ({machine})."
    return f"Nothing gained here: {best.name} comes to {ratio:.2f} times the speed of one core ({machine})."


def run(options: Namespace) -> Path:
    """Prints the table, draws the picture."""
    job = draw_job(options)
    print(f"{options.items} items into {options.bins} bins: {options.rows} problems to solve, then one epoch of")
    print(f"{options.samples} samples, two programs each.\n")
    print(f"{'':20}{'start s':>9}{'solve s':>9}{'rows/s':>9}{'epoch s':>9}{'same':>7}{'lost rows':>11}", flush=True)
    results: list[Result] = []
    with ExitStack() as stack:
        for place in open_places(options, stack):
            with tqdm(total=3, dynamic_ncols=True, leave=False, disable=None) as bar:
                result = measure(place, job, options, bar)
            results.append(result)
            same = torch.equal(result.solutions, results[0].solutions) and torch.equal(
                result.learned, results[0].learned
            )
            lost = "-" if result.lost is None else str(result.lost)
            print(f"{result.name:20}{result.starting:9.2f}{result.solving:9.2f}", end="")
            print(f"{options.rows / result.solving:9.1f}{result.training:9.2f}", end="")
            print(f"{'yes' if same else 'NO':>7}{lost:>11}", flush=True)
            if not same or result.lost:
                raise command.Failed(f"{result.name}: not what one core gives", status=1)
    print("\nSame: solutions and trained weights equal those of one core, bit by bit.", end="")
    print(" Lost: of a batch during which a worker was killed." if options.kill else "")
    print(verdict(results))
    draw(results, options.out / "many_machines.png")
    return options.out / "many_machines.png"


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(1)  # the programs need the cores
    return command.run(__file__, run, options)


if __name__ == "__main__":
    sys.exit(main())
