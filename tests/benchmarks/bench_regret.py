"""Trains with each decision-focused loss and with PyEPO's same loss, and compares the regrets; prints Markdown tables.

    python tests/benchmarks/bench_regret.py [--seeds 10] [--epochs N] [--quick]

The data are those of PyEPO's generators (Tang, Khalil, arXiv 2206.14234): the shortest path on a 5x5 grid, and the
knapsack of 16 items and two constraints of its tutorial; degree 4, multiplicative noise of half-width 0.5, 5 features,
100 rows to learn from and 1000 to judge by. A seed gives new data and new initial weights. Both sides get the same
rows, true solutions, linear model, order of batches (of 32) and steps of Adam, and are judged by one exact oracle. A
loss that draws noise draws it itself, so that there the two sides differ by chance.

The figures are normalised regrets in percent, the sum of the regrets over the sum of the optima. The interval is that
of Student's t (95 %) for the difference of the two, seed by seed. PyEPO solves with GLOP (paths) and SCIP (knapsacks).
Without PyEPO (MIT, `pip install pyepo==2.2.7`) only our regrets are printed.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from measure import machine
from pyepo_tasks import FEATURES, PYEPO, Data, Task, knapsack, path
from torch import Tensor, nn

import difflayers as dl

BATCH = 32
LAM, SIGMA, WIDTH = 10.0, 1.0, 0.1  # PyEPO's defaults
FRANK_WOLFE_STEPS = 20  # at most, for PyEPO: it takes all of them, each a solve of every row


Loss = Callable[[Tensor, Data], Tensor]  # of predicted costs (PyEPO's sign) and a batch
Pair = tuple[Loss, Loss | None]  # ours, and PyEPO's


def peer_loss(it: Task, name: str, **settings: Any) -> Any:
    """A loss or layer of PyEPO, with the pool of the training solutions where it takes one."""
    if it.peer is None:
        return None
    import pyepo.func  # pyright: ignore[reportMissingImports]
    from pyepo.data.dataset import optDataset  # pyright: ignore[reportMissingImports]

    if name in ("NCE", "CMAP", "ptLTR", "prLTR", "lsLTR"):
        settings["dataset"] = dataset = object.__new__(optDataset)  # its constructor would solve again, less exactly
        dataset.sols = it.train.solutions
    return getattr(pyepo.func, name)(it.peer, **settings)


def noise_of_imle(it: Task) -> Any:
    """PyEPO's, seeded."""
    if it.peer is None:
        return None
    from pyepo.func.utils import sumGammaDistribution  # pyright: ignore[reportMissingImports]

    return sumGammaDistribution(kappa=5, seed=it.seed)


def by_costs(it: Task, own: Any, peer: Any) -> Pair:
    """Losses of predicted and true costs."""

    def ours(p: Tensor, batch: Data) -> Tensor:
        return own(it.sign * p, it.sign * batch.costs)

    return ours, None if peer is None else lambda p, batch: peer(p, batch.costs)


def by_solutions(it: Task, own: Any, peer: Any) -> Pair:
    """Losses of predicted costs and true solutions."""

    def ours(p: Tensor, batch: Data) -> Tensor:
        return own(it.sign * p, batch.solutions)

    return ours, None if peer is None else lambda p, batch: peer(p, batch.solutions)


def by_cone(it: Task, projection: str, **settings: Any) -> Pair:
    """CaVE: ours knows the constraints, PyEPO's gets the normals."""
    own, peer = dl.losses.CaVE(**it.constraints, projection=projection), peer_loss(it, "CaVE", **settings)
    return by_solutions(it, own, None)[0], None if peer is None else lambda p, batch: peer(p, batch.normals)


def by_regret(it: Task, rule: Any, peer: Any) -> Pair:
    """Layers that return a solution, under its regret."""
    layer = dl.SolverLayer(it.oracle, rule=rule)

    def ours(p: Tensor, batch: Data) -> Tensor:
        return it.regret(layer(it.sign * p), batch)

    return ours, None if peer is None else lambda p, batch: it.regret(peer(p), batch)


def by_imitation(it: Task, rule: Any, peer: Any) -> Pair:
    """Layers that return a solution, under its squared distance from the true one."""
    layer = dl.SolverLayer(it.oracle, rule=rule)

    def ours(p: Tensor, batch: Data) -> Tensor:
        return (layer(it.sign * p) - batch.solutions).square().mean()

    return ours, None if peer is None else lambda p, batch: (peer(p) - batch.solutions).square().mean()


def least_squares(it: Task) -> Pair:
    """Two stages; needs neither library."""
    return lambda p, batch: (p - batch.costs).square().mean(), None


def spo_plus(it: Task) -> Pair:
    own, peer = dl.losses.SPOPlus(it.oracle), peer_loss(it, "SPOPlus")

    def ours(p: Tensor, batch: Data) -> Tensor:
        return own(it.sign * p, it.sign * batch.costs, batch.solutions, it.sign * batch.objectives)

    return ours, None if peer is None else lambda p, batch: peer(
        p, batch.costs, batch.solutions, batch.objectives[:, None]
    )


def pool(it: Task, kind: Any, name: str) -> tuple[Any, Any]:
    """A loss over a pool that begins with the training solutions and may grow by those for the predictions."""
    settings = {"solve_ratio": it.solve_ratio}
    return kind(it.oracle, pool=it.train.solutions, **settings), peer_loss(it, name, **settings)


def fenchel_young(it: Task, kind: str) -> Pair:
    own = dl.losses.FenchelYoung(it.oracle, perturbation=kind, samples=it.samples, sigma=SIGMA)
    name = "PFY" if kind == "additive" else "PFYMul"
    return by_solutions(it, own, peer_loss(it, name, n_samples=it.samples, sigma=SIGMA, seed=it.seed))


def imle(it: Task) -> Pair:
    rule = dl.rules.IMLE(LAM, k=5, sigma=SIGMA, samples=it.samples)
    settings = {"n_samples": it.samples, "sigma": SIGMA, "distribution": noise_of_imle(it)}
    return by_regret(it, rule, peer_loss(it, "IMLE", lambd=LAM, **settings))


def adaptive_imle(it: Task) -> Pair:
    rule = dl.rules.AdaptiveIMLE(step=1e-3, k=5, sigma=SIGMA, samples=it.samples)  # PyEPO's step
    settings = {"n_samples": it.samples, "sigma": SIGMA, "distribution": noise_of_imle(it)}
    return by_regret(it, rule, peer_loss(it, "AIMLE", **settings))


def frank_wolfe(it: Task) -> tuple[Any, Any]:
    return dl.rules.FrankWolfe(1.0), {"lambd": 1.0, "max_iter": FRANK_WOLFE_STEPS}


def frank_wolfe_layer(it: Task) -> Pair:
    rule, settings = frank_wolfe(it)
    return by_imitation(it, rule, peer_loss(it, "RFWO", **settings))


def frank_wolfe_loss(it: Task) -> Pair:
    rule, settings = frank_wolfe(it)
    own = dl.losses.FenchelYoung(it.oracle, regularisation=rule)
    return by_solutions(it, own, peer_loss(it, "RFY", **settings))


LOSSES: dict[str, Callable[[Task], Pair]] = {
    "least squares": least_squares,
    "SPO+": spo_plus,
    "perturbation gradient": lambda it: by_costs(
        it, dl.losses.PerturbationGradient(it.oracle, width=WIDTH), peer_loss(it, "PG", sigma=WIDTH)
    ),
    "Blackbox": lambda it: by_regret(it, dl.Blackbox(LAM), peer_loss(it, "DBB", lambd=LAM)),
    "Identity without projection": lambda it: by_regret(it, dl.rules.Identity(projection=None), peer_loss(it, "NID")),
    "Identity": lambda it: by_regret(it, dl.rules.Identity(), peer_loss(it, "NID")),
    "perturbed optimizer": lambda it: by_imitation(
        it,
        dl.rules.Perturbed(SIGMA, samples=it.samples),
        peer_loss(it, "DPO", n_samples=it.samples, sigma=SIGMA, seed=it.seed),
    ),
    "perturbed Fenchel-Young": lambda it: fenchel_young(it, "additive"),
    "multiplicative Fenchel-Young": lambda it: fenchel_young(it, "multiplicative"),
    "IMLE": imle,
    "AdaptiveIMLE": adaptive_imle,
    "regularised Frank-Wolfe": frank_wolfe_layer,
    "regularised Fenchel-Young": frank_wolfe_loss,
    "NCE": lambda it: by_solutions(it, *pool(it, dl.losses.NCE, "NCE")),
    "contrastive MAP": lambda it: by_solutions(it, *pool(it, dl.losses.ContrastiveMAP, "CMAP")),
    "pointwise ranking": lambda it: by_costs(it, *pool(it, dl.losses.PointwiseRanking, "ptLTR")),
    "pairwise ranking": lambda it: by_costs(it, *pool(it, dl.losses.PairwiseRanking, "prLTR")),
    "listwise ranking": lambda it: by_costs(it, *pool(it, dl.losses.ListwiseRanking, "lsLTR")),
    "CaVE, exact": lambda it: by_cone(it, "exact", max_iter=200),
    "CaVE, inner": lambda it: by_cone(it, "inner"),
    "structured SVM": lambda it: by_solutions(it, dl.losses.StructuredSVM(it.oracle, margin=0.1), None),
    "optimality margin": lambda it: by_solutions(
        it, dl.losses.MaximumOptimalityMargin(**it.constraints, margin=0.1), None
    ),
}
# PyEPO solves a program a step for each row, which SCIP makes too long a wait
SLOW = {"knapsack": ("regularised Frank-Wolfe", "regularised Fenchel-Young")}
NOTES = """
"identical": the regrets agree to 0.0005 points for every seed; "equal": the interval of the difference contains 0;
"lower" and "higher": it does not, which one in twenty such intervals does by chance. "Identity" stands beside PyEPO's
NID, which leaves out the method's projection; "Identity without projection" is what PyEPO computes. PyEPO's IMLE and
AdaptiveIMLE add the sum-of-gamma noise to costs that are minimised, ours subtract it, as perturb-and-MAP asks; the
noise is not symmetric. PyEPO's AdaptiveIMLE compares the *fraction* of changed entries with 1, so that its step only
grows; ours counts entries. "CaVE, exact" projects to convergence on both sides; "inner" is our mixture with the mean
normal, beside PyEPO's three steps of an interior-point method. The losses over pools solve for every batch of paths,
so that the pool grows, and for none of knapsacks; in "pairwise ranking" PyEPO counts pairs that tie in truth, ours
does not, and integer profits tie. PyEPO's regularised losses are stopped after 20 steps of Frank-Wolfe, each a solve
of every row; ours are exact, and on knapsacks PyEPO's are left out for their time. PyEPO's SCIP stops within 1e-4 of
the optimum: where it misses a solution, the trainings part ways. On paths "structured SVM" and "optimality margin"
are one loss. On knapsacks the observed solutions are not those of the linear program, which the optimality margin
takes them for.
"""
PROBLEMS: dict[str, tuple[str, Callable[..., Task], int]] = {
    "path": ("Shortest path, 5x5", path, 10),
    "knapsack": ("Knapsack, 16 items, 2 constraints", knapsack, 5),
}


def train(it: Task, loss: Loss, epochs: int) -> float:
    """Returns the normalised regret in percent on the test rows."""
    torch.manual_seed(it.seed)
    model = nn.Linear(FEATURES, it.train.costs.shape[1], dtype=torch.float64)
    with torch.no_grad():
        model.bias.add_(it.train.costs.mean())  # some losses learn no scale
    order = torch.Generator().manual_seed(it.seed)
    optimiser = torch.optim.Adam(model.parameters(), it.rate)
    for _ in range(epochs):
        for chosen in torch.randperm(len(it.train.costs), generator=order).split(BATCH):
            batch = Data(*(part[chosen] for part in it.train))
            optimiser.zero_grad()
            loss(model(batch.features), batch).backward()
            optimiser.step()
    with torch.no_grad():
        predicted = it.sign * model(it.test.features)
    share = dl.surrogates.normalized_regret(
        predicted, it.sign * it.test.costs, it.oracle, true_objective=it.sign * it.test.objectives
    )
    return 100 * share.item()


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean and half the width of its 95 % interval."""
    from scipy.stats import t  # pyright: ignore[reportMissingImports]

    count = len(values)
    if count < 2:
        return values[0], math.nan
    return statistics.fmean(values), float(t.ppf(0.975, count - 1)) * statistics.stdev(values) / math.sqrt(count)


def verdict(differences: list[float]) -> str:
    """What the interval of the paired difference says."""
    mean, half = interval(differences)
    if max(map(abs, differences)) < 5e-4:
        return "identical"
    return "equal" if not abs(mean) > half else "lower" if mean < 0 else "higher"


def table(problem: str, names: Sequence[str], options: argparse.Namespace, noise: float = 0.5) -> str:
    """Trains, all seeds of a loss after each other, and shows each loss as a line."""
    _, make, epochs = PROBLEMS[problem]
    epochs = options.epochs or epochs
    tasks = [make(seed, options.rows, noise) for seed in range(options.seeds)]
    lines = ["| loss | ours, % | PyEPO, % | ours - PyEPO | our regret is |", "|---|---|---|---|---|"]
    for name in names:
        ours, theirs = [], []
        for it in tasks:
            own, peer = LOSSES[name](it)
            ours.append(train(it, own, epochs))
            if peer is not None and name not in SLOW.get(problem, ()):
                theirs.append(train(it, peer, epochs))
        cells = [name, "{:.2f} +- {:.2f}".format(*interval(ours)), "-", "-", "-"]
        if theirs:
            differences = [a - b for a, b in zip(ours, theirs, strict=True)]
            cells[2:] = ["{:.2f} +- {:.2f}".format(*interval(theirs)),
                         "{:+.3f} +- {:.3f}".format(*interval(differences)), verdict(differences)]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seeds", type=int, default=10, help="(default 10)")
    add("--epochs", type=int, help="passes over the rows (default 10 for paths, 5 for knapsacks)")
    add("--rows", type=int, default=100, help="to learn from (default 100)")
    add("--problem", choices=(*PROBLEMS, "both"), default="both")
    add("--losses", nargs="*", choices=LOSSES, default=list(LOSSES), metavar="NAME", help="which")
    add("--quick", action="store_true", help="2 seeds, 2 epochs")
    options = parser.parse_args(argv)
    if options.quick:
        options.seeds, options.epochs = 2, 2
    if options.seeds < 1 or options.rows < 1 or (options.epochs is not None and options.epochs < 1):
        parser.error("--seeds, --rows and --epochs must be positive")
    torch.set_num_threads(1)
    about = [*machine(("pyepo", "ortools", "scipy")), f"{options.seeds} seeds"]
    if not PYEPO:
        about.append("PyEPO is not installed, so that only our regrets are shown: pip install pyepo==2.2.7")
    print("\n".join(f"- {line}" for line in about), flush=True)
    for problem in PROBLEMS if options.problem == "both" else [options.problem]:
        print(f"\n### {PROBLEMS[problem][0]}\n\n{table(problem, options.losses, options)}", flush=True)
        exact = [name for name in ("least squares", "SPO+", "optimality margin") if name in options.losses]
        if exact:
            print(f"\nWithout noise in the costs, and so in the observed solutions:\n\n"
                  f"{table(problem, exact, options, 0.0)}", flush=True)  # fmt: skip
    print(NOTES)


if __name__ == "__main__":
    main()
