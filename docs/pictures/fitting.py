"""Pictures of docs/fitting.md."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

import difflayers as dl


def ransac() -> Figure:
    """A line and a circle among points of which most are wrong, beside least squares."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
    x = torch.rand(150, dtype=torch.float64)
    points = torch.stack([x, 0.25 + 0.5 * x + 0.01 * torch.randn(150).double()], -1)
    points[60:] = torch.rand(90, 2).double()
    layer = dl.ransac.RANSAC(dl.ransac.Line2D(), threshold=0.03, hypotheses=40)
    hypotheses = layer.train()(points).hypotheses.models.flatten(0, -2)
    found = layer.eval()(points)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for model in hypotheses:
        a, b, c = model.tolist()
        if abs(b) > 1e-9:
            left.plot(ends, -(a * ends + c) / b, color="0.85", linewidth=0.7, zorder=0)
    a, b, c = found.model.tolist()
    left.plot(ends, -(a * ends + c) / b, color="C0", label="RANSAC, refined")
    design = torch.stack([points[:, 0], torch.ones(150).double()], -1)
    slope, height = torch.linalg.lstsq(design, points[:, 1:]).solution.flatten().tolist()
    left.plot(ends, slope * ends + height, color="C1", linestyle="--", label="least squares")
    left.scatter(*points[~found.inliers].T, s=6, color="0.5", label="outliers, 60 %")
    left.scatter(*points[found.inliers].T, s=6, color="C0", label="inliers found")
    left.set(title="Line2D, with 40 hypotheses in grey", xlim=(0, 1), ylim=(0, 1))
    left.legend(fontsize=8, loc="lower right", frameon=True, framealpha=0.9)

    angle = 2 * math.pi * torch.rand(120, dtype=torch.float64)
    points = 0.5 + 0.35 * torch.stack([angle.cos(), angle.sin()], -1) + 0.008 * torch.randn(120, 2).double()
    points[50:] = torch.rand(70, 2).double()
    found = dl.ransac.RANSAC(dl.ransac.Circle2D(), threshold=0.025).eval()(points)
    right.add_patch(plt.Circle(found.model[:2].tolist(), float(found.model[2]), fill=False, color="C0"))
    right.scatter(*points[~found.inliers].T, s=6, color="0.5")
    right.scatter(*points[found.inliers].T, s=6, color="C0")
    right.set(title="Circle2D", aspect="equal", xlim=(0, 1), ylim=(0, 1))
    return figure
