"""The example that predicts and then optimises: its data, its problems, a quick run."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from .surrogates.polytopes import paths

for package in ("matplotlib", "tqdm", "scipy", "ortools"):
    pytest.importorskip(package)

FOLDER = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def example():
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    return importlib.import_module("predict_then_optimize")


@pytest.mark.parametrize("side", [2, 3, 5])
def test_paths_against_enumeration(example, side):
    problem, vertices = example.path(side), paths(side, side)
    costs = torch.randn(50, *problem.oracle.cost_shape, dtype=torch.float64)
    routes = problem.oracle.solve(costs)
    torch.testing.assert_close(routes, vertices.to(routes)[(costs @ vertices.to(costs).T).argmin(1)])
    A, b = problem.constraints["A_eq"], problem.constraints["b_eq"]
    np.testing.assert_array_equal(vertices.numpy() @ A.T, np.broadcast_to(b, (len(vertices), side * side)))


def test_packing_against_enumeration(example):
    problem = example.knapsack(10)
    choices = (torch.arange(2**10)[:, None] >> torch.arange(10) & 1).double()
    A, b = problem.constraints["A_ub"], problem.constraints["b_ub"]
    fits = choices[torch.from_numpy((choices.numpy() @ A.T <= b + 1e-9).all(1))]
    assert 10 < len(fits) < len(choices)
    profits = torch.randn(50, 10, dtype=torch.float64) + 0.5
    best = fits[(profits @ fits.T).argmax(1)]
    torch.testing.assert_close(problem.oracle.solve(problem.sign * profits), best)


@pytest.mark.parametrize("name", ["path", "knapsack"])
def test_data_follow_the_formula(example, name):
    problem = example.PROBLEMS[name](3)
    plain, noisy = (example.synthetic(400, 3, noise, problem, seed=5) for noise in (0.0, 0.5))
    root = (3.5**3 * problem.sign * plain.costs - 1).clamp(min=0) ** (1 / 3) - 3  # linear, with weights 0 and 1
    weight = torch.linalg.lstsq(plain.features, root).solution * 5**0.5
    torch.testing.assert_close(weight, weight.round(), atol=1e-3, rtol=0)
    assert set(weight.round().unique().tolist()) == {0.0, 1.0}
    ratio = noisy.costs / plain.costs
    assert 0.5 <= ratio.min() < 0.51
    assert 1.49 < ratio.max() <= 1.5
    torch.testing.assert_close((noisy.costs * noisy.decisions).sum(1), noisy.objectives)


def test_quick_run(example, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)  # main sets it for the whole process
    settings = "--quick --epochs 2 --days 40 --seeds 2"
    assert example.main([*settings.split(), "--out", str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / "predict_then_optimize.png").read_bytes()[:4] == b"\x89PNG"
    tables = capsys.readouterr().out.split("Knapsack")
    assert len(tables) == 2
    for table in tables:
        for name in ["untrained", *example.NAMES]:
            (line,) = [line for line in table.splitlines() if line[:24].strip() == name]
            assert 0 < float(line[36:46]) < 300


def test_seed_decides(example, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    shown = []
    for seed in "001":
        example.main(["--quick", "--problem", "knapsack", "--losses", "SPO+", "--seed", seed, "--out", str(tmp_path)])
        shown.append([line[:53] for line in capsys.readouterr().out.splitlines() if line.startswith("SPO+")])
    assert shown[0] == shown[1] != shown[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--epochs 0", "must be positive"),
        ("--noise 1", "--noise in [0, 1)"),
        ("--lr nan", "--lr must be positive"),
        ("--problem tour", "invalid choice"),
        ("--losses hinge", "invalid choice"),
        ("--losses", "--losses not empty"),
    ],
)
def test_bad_option_is_refused(example, arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        example.main(arguments.split())
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
