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
    value.step(
        at, (oracle.solve(costs) * weights).sum(-1).detach(), where="mid", color="black", label="the loss itself"
    )
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


def surco() -> Figure:
    """SurCo on routes whose turns cost, too: the best value so far, and the routes."""
    side = 8
    edges = dl.oracles.grid_edges(side, side)
    count, last = len(edges), side * side - 1
    oracle = dl.oracles.ShortestPath(edges, 0, last, num_nodes=side * side)
    times = torch.rand(count, generator=torch.Generator().manual_seed(1))
    right = edges[:, 1] - edges[:, 0] == 1
    follows = edges[:, 1, None] == edges[None, :, 0]
    turns = 0.5 * (follows & (right[:, None] != right[None, :])).float()

    def duration(x: Tensor) -> Tensor:
        return x @ times + (x @ turns * x).sum(-1)

    result = dl.SurCo(oracle).solve(duration, oracle_calls=400, generator=torch.Generator().manual_seed(1))
    fastest = oracle.solve(times)

    # the optimum: a shortest path whose nodes are the streets, from `count` to `count + 1`
    steps = [(a, b, float(times[b] + turns[a, b])) for a, b in follows.nonzero().tolist()]
    steps += [(count, e, float(times[e])) for e in range(count) if edges[e, 0] == 0]
    steps += [(e, count + 1, 0.0) for e in range(count) if edges[e, 1] == last]
    pairs = torch.tensor([step[:2] for step in steps])
    exact = dl.oracles.ShortestPath(pairs, count, count + 1, num_nodes=count + 2)
    optimum = float(exact.solve_batch(torch.tensor([step[2] for step in steps])).objective)
    print(f"fastest streets {float(duration(fastest)):.3f}, SurCo {float(result.objective):.3f}, optimum {optimum:.3f}")

    figure, (trace, plan) = plt.subplots(1, 2, figsize=(9.5, 3.1), layout="constrained", width_ratios=(1.6, 1))
    calls = [record.oracle_calls for record in result.history]
    trace.plot(calls, [record.current for record in result.history], ".", color="C0", markersize=3, alpha=0.5)
    trace.step(calls, [record.objective for record in result.history], where="post", label="SurCo, best so far")
    trace.axhline(float(duration(fastest)), color="C1", linestyle="--", label="shortest path without the turns")
    trace.axhline(optimum, color="black", linewidth=0.8, linestyle=":", label="optimum")
    trace.set(title="duration with turns; dots: what each start tried", xlabel="oracle calls")
    trace.legend(fontsize=8, loc="upper right")
    _route(plan, torch.ones(count), edges, side, color="0.9", linewidth=1)
    _route(plan, fastest, edges, side, color="C1", linewidth=3, linestyle="--")
    _route(plan, result.solution, edges, side, color="C0", linewidth=2)
    plan.set(aspect="equal", title="the two routes")
    plan.axis("off")
    return figure
