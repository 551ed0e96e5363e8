"""Pictures of docs/optimising.md."""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import difflayers as dl


def blackbox() -> Figure:
    """A loss of the solution along a line of costs, and the slopes that gradient rules put in place of zero."""
    edges = dl.oracles.grid_edges(4, 4)
    oracle = dl.oracles.ShortestPath(edges, 0, 15, num_nodes=16)
    start, end, weights = torch.rand(3, len(edges), dtype=torch.float64)
    at = torch.linspace(0, 1, 401, dtype=torch.float64)
    costs = (start + at[:, None] * (end - start)).requires_grad_()
    figure, (value, slope) = plt.subplots(1, 2, figsize=(9.5, 2.9), layout="constrained")
    value.step(at, (oracle.solve(costs) * weights).sum(-1).detach(), where="mid", color="black", label="the loss itself")
    smooth = dl.SolverLayer(oracle, rule=dl.rules.Perturbed(0.1, samples=400))
    mean = (smooth(costs, generator=torch.Generator().manual_seed(0)) * weights).sum(-1)
    value.plot(at, mean.detach(), color="C1", linewidth=1, label="its mean under noise, Perturbed(0.1)")
    value.set(title="a loss of the shortest path", xlabel="from one set of costs to another")
    value.legend(fontsize=8)
    rules = {"Blackbox(0.5)": dl.Blackbox(0.5), "Perturbed(0.1)": dl.rules.Perturbed(0.1, samples=400)}
    for number, (name, rule) in enumerate(rules.items()):
        generator = torch.Generator().manual_seed(0)
        settings = {"generator": generator} if name.startswith("Perturbed") else {}
        loss = (dl.SolverLayer(oracle, rule=rule)(costs, **settings) * weights).sum()
        (gradient,) = torch.autograd.grad(loss, costs)
        slope.plot(at, (gradient * (end - start)).sum(-1), color=f"C{number}", linewidth=1, label=name)
    slope.axhline(0, color="black", linewidth=0.8, label="the true derivative")
    slope.set(title="slope along the line", xlabel="from one set of costs to another")
    slope.legend(fontsize=8)
    return figure


def _route(axis: Axes, path: Tensor, edges: Tensor, side: int, **style: object) -> None:
    for number, (tail, head) in enumerate(edges.tolist()):
        ends = [(node % side, -(node // side)) for node in (tail, head)]
        if path[number] > 0.5:
            axis.plot(*zip(*ends, strict=True), **style)
            style.pop("label", None)


def surco() -> Figure:
    """SurCo on a stochastic shortest path: the best route so far, and the two routes themselves."""
    side = 8
    edges = dl.oracles.grid_edges(side, side)
    oracle = dl.oracles.ShortestPath(edges, 0, side * side - 1, num_nodes=side * side)
    generator = torch.Generator().manual_seed(3)
    means = torch.rand(len(edges), generator=generator)
    variances = 0.3 * torch.rand(len(edges), generator=generator)
    plain = oracle.solve(means)
    deadline = (plain @ means) * 1.2

    def lateness(x: Tensor) -> Tensor:
        return -torch.special.ndtr((deadline - x @ means) / (x @ variances).sqrt())

    result = dl.SurCo(oracle).solve(lateness, oracle_calls=300, generator=generator)
    figure, (trace, plan) = plt.subplots(1, 2, figsize=(9.5, 3.1), layout="constrained", width_ratios=(1.6, 1))
    calls = [record.oracle_calls for record in result.history]
    trace.step(calls, [-record.best for record in result.history], where="post", label="SurCo, best so far")
    trace.axhline(-float(lateness(plain)), color="C1", linestyle="--", label="the route of least mean")
    trace.set(title="probability to arrive in time", xlabel="oracle calls")
    trace.legend(fontsize=8, loc="lower right")
    _route(plan, torch.ones(len(edges)), edges, side, color="0.9", linewidth=1)
    _route(plan, plain, edges, side, color="C1", linewidth=3, linestyle="--", label="least mean")
    _route(plan, result.solution, edges, side, color="C0", linewidth=2, label="SurCo")
    plan.set(aspect="equal", title="the routes")
    plan.axis("off")
    return figure
