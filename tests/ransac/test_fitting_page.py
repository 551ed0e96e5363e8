"""docs/fitting.md: the guide's model of one's own, and figures that are what they say."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import difflayers as dl

PAGE = (Path(__file__).parents[2] / "docs" / "fitting.md").read_text()


def run(code: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(code, "docs/fitting.md", "exec"), names)
    return names


@pytest.fixture(scope="module")
def parabola() -> Any:
    """The guide's model of one's own."""
    code = PAGE[PAGE.index("class Parabola") :]
    return run(code[: code.index("\n\n\n")], {"dl": dl, "torch": torch})["Parabola"]()


def curves(dtype: torch.dtype) -> torch.Tensor:
    """Six problems of 80 points, half of them on y = 2 x^2 - x + 0.5."""
    torch.manual_seed(0)
    x = torch.rand(2, 3, 80, dtype=dtype)
    points = torch.stack([x, 2 * x**2 - x + 0.5 + 0.002 * torch.randn_like(x)], -1)
    points[..., 40:, 1] = 3 * torch.rand(2, 3, 40, dtype=dtype)
    return points


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [False, True])
def test_own_model(parabola: Any, dtype: torch.dtype, training: bool) -> None:
    layer = dl.ransac.RANSAC(parabola, threshold=0.01).train(training)
    result = layer(curves(dtype), generator=torch.Generator().manual_seed(0))
    assert result.model.dtype == dtype
    assert result.model.shape == (2, 3, 3)
    assert (result.model - torch.tensor([2.0, -1.0, 0.5], dtype=dtype)).abs().max() < 0.05
    assert result.inliers[..., :40].double().mean() > 0.98
    assert result.inliers[..., 40:].double().mean() < 0.1
    assert (result.status == dl.ransac.RansacStatus.FOUND).all()


def test_own_model_has_gradients(parabola: Any) -> None:
    sample = torch.rand(5, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: parabola.solve(x)[0], sample)
    with torch.no_grad():
        sample[0, 1] = sample[0, 0]
    models, valid = parabola.solve(sample)
    assert valid[:, 0].tolist() == [False, True, True, True, True]
    (gradient,) = torch.autograd.grad(models.sum(), sample)
    assert gradient.isfinite().all()

    points = curves(torch.float64).requires_grad_()
    layer = dl.ransac.RANSAC(parabola, threshold=0.01).eval()

    def model(at: torch.Tensor) -> torch.Tensor:
        return layer(at, generator=torch.Generator().manual_seed(0)).model

    (gradient,) = torch.autograd.grad(model(points)[..., 0].sum(), points)
    for i in range(3):
        step = torch.zeros_like(points)
        step[..., i, 1] = 1e-5
        # with a graph: models are polished to the very optimum only where a gradient is wanted
        slope = (model(points + step) - model(points - step)).detach()[..., 0] / 2e-5
        torch.testing.assert_close(gradient[..., i, 1], slope, rtol=1e-5, atol=1e-7)


def test_number_of_samples() -> None:
    rows = re.findall(
        r"^\| (0\.\d+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", PAGE, re.MULTILINE
    )
    assert len(rows) == 5
    for share, *counts in rows:
        for size, count in zip((2, 3, 4, 5, 7), counts, strict=True):
            needed = math.log(1 - 0.999) / math.log1p(-(float(share) ** size))
            assert abs(int(count.replace(",", "")) - needed) <= 1 + 2e-3 * needed


@pytest.mark.parametrize("what", ["threshold", "sigma", "module"])
def test_scores_teach_their_parameters(what: str) -> None:
    """The table of gradients: by threshold and a scorer's parameters, through scores and Softmax; against finite
    differences."""
    torch.manual_seed(0)
    x = torch.rand(2, 30, dtype=torch.float64)
    points = torch.stack([x, 0.5 * x + 0.01 * torch.randn_like(x)], -1)
    value = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    class Soft(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = value

        def forward(self, ratio: torch.Tensor) -> torch.Tensor:
            return (-self.value * ratio).exp().sum(-1)

    threshold = value if what == "threshold" else 0.1
    scorers = {"threshold": None, "sigma": dl.ransac.GaussianUniform(sigma=value), "module": dl.ransac.Learned(Soft())}
    layer = dl.ransac.RANSAC(dl.ransac.Line2D(), threshold=threshold, scorer=scorers[what], hypotheses=8).train()

    def loss() -> torch.Tensor:
        hypotheses = layer(points, generator=torch.Generator().manual_seed(0)).hypotheses
        losses = dl.ransac.residual_loss(layer.model, hypotheses.models, points, limit=0.05)
        return dl.ransac.expected_loss(hypotheses, losses, dl.ransac.Softmax(0.5)).sum()

    loss().backward()
    with torch.no_grad():
        value += 1e-6
        after = loss()
        value -= 2e-6
        slope = (after - loss()) / 2e-6
    assert value.grad is not None
    assert abs(slope) > 1e-6
    torch.testing.assert_close(value.grad, slope, rtol=1e-4, atol=1e-8)
