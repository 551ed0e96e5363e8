"""docs/fitting.md: peers' calls and ours side by side find the same, and its figures are what they say."""

from __future__ import annotations

import importlib
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import difflayers as dl

PAGE = (Path(__file__).parents[2] / "docs" / "fitting.md").read_text()
COMING_FROM = PAGE[PAGE.index("\n## Coming from") :]
FOCAL = 1000.0
CAMERA = np.array([[FOCAL, 0.0, 640.0], [0.0, FOCAL, 480.0], [0.0, 0.0, 1.0]])


def blocks(peer: str) -> tuple[str, str]:
    """The peer's code and ours."""
    section = COMING_FROM[COMING_FROM.index(f"**{peer}**") :]
    theirs, ours = re.findall(r"^```py\n(.*?)^```", section, re.DOTALL | re.MULTILINE)[:2]
    return theirs, ours


def scene(n: int = 300, good: int = 200, *, plane: bool = False) -> dict[str, Any]:
    """Pixels of a scene in two images, of which the first are right, and its pose."""
    generator = np.random.default_rng(0)
    space = generator.uniform([-2, -2, 4], [2, 2, 8], (n, 3))
    if plane:
        space[:, 2] = 6 + 0.2 * space[:, 0]
    turn = dl.ransac.manifolds.rotation(torch.tensor([0.02, -0.1, 0.05], dtype=torch.float64)).numpy()
    shift = np.array([1.0, 0.2, 0.1])
    seen = [space, space @ turn.T + shift]
    first, second = (points[:, :2] / points[:, 2:] * FOCAL + CAMERA[:2, 2] for points in seen)
    first, second = (points + generator.normal(0, 0.2, points.shape) for points in (first, second))
    second[good:] = generator.uniform(0, 1000, (n - good, 2))
    return {"first": first, "second": second, "space": space, "K": CAMERA, "f": FOCAL, "turn": turn, "shift": shift}


def of_good(names: dict[str, Any], found: Any) -> float:
    """The share of the first 200 points that are among the inliers."""
    return float(np.asarray(found).reshape(-1)[:200].astype(float).mean())


def degrees(names: dict[str, Any], rotation: Any, translation: Any) -> float:
    """How far a pose is off."""
    pose = [torch.as_tensor(np.asarray(x), dtype=torch.float64) for x in (rotation, translation)]
    truth = [torch.as_tensor(names[name]) for name in ("turn", "shift")]
    return float(dl.ransac.pose_error(pose[0], pose[1].flatten(), *truth).largest)


def run(code: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(code, "docs/fitting.md", "exec"), names)
    return names


def peer(name: str, code: str, names: dict[str, Any]) -> dict[str, Any] | None:
    try:
        importlib.import_module(name)
    except ImportError:
        return None
    return run(code, dict(names))


def ours(code: str, names: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    return run(code, {"dl": dl, "torch": torch, **names})


def test_kornia() -> None:
    names = {key: torch.as_tensor(x) if key in ("first", "second") else x for key, x in scene().items()}
    for found in (peer("kornia.geometry", blocks("kornia")[0], names), ours(blocks("kornia")[1], names)):
        if found is not None:
            assert of_good(names, found["inliers"]) > 0.95
            assert found["matrix"].shape == (3, 3)


def test_opencv() -> None:
    flat, names = scene(plane=True), scene()
    planar = blocks("OpenCV")[1]
    matrix = ours(planar[: planar.index("\n\n")], flat)["matrix"]
    mapped = np.c_[flat["first"], np.ones(300)] @ matrix.numpy().T
    assert np.median(np.abs(mapped[:200, :2] / mapped[:200, 2:] - flat["second"][:200])) < 0.5
    found = ours(planar, names)
    assert degrees(names, found["R"], found["t"]) < 0.5
    theirs = peer("cv2", blocks("OpenCV")[0], names)
    if theirs is not None:
        assert degrees(names, theirs["R"], theirs["t"]) < 5


def test_poselib() -> None:
    names = scene()
    relative = ours(blocks("OpenCV")[1], names)  # the page's "as above"
    found = ours(blocks("PoseLib")[1], {**names, "pairs": relative["pairs"]})
    # the first camera is at the origin, and all of its points are right
    assert (found["R"] - torch.eye(3)).abs().max() < 1e-3
    assert found["t"].abs().max() < 1e-2
    theirs = peer("poselib", blocks("PoseLib")[0], names)
    if theirs is not None:
        assert np.abs(theirs["pose"].R - np.eye(3)).max() < 1e-3


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
