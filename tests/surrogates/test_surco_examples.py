"""The examples of SurCo run, and hold what they promise."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

for package in ("scipy", "matplotlib", "tqdm"):
    pytest.importorskip(package)

EXAMPLES = str(Path(__file__).parents[2] / "examples")


def load(name):
    if EXAMPLES not in sys.path:
        sys.path.append(EXAMPLES)
    return importlib.import_module(name)


def test_routes_are_enumerated_and_planned(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)  # main sets it for the whole process
    example = load("route_planning")
    assert [len(example.Grid(size).routes()) for size in (2, 3, 4)] == [2, 12, 184]
    grid = example.Grid(4)
    mean, variance = example.city(grid, 0.2, torch.Generator().manual_seed(1))
    oracle, routes = grid.oracle(), grid.routes()
    assert (oracle.solve(mean) @ mean).item() == pytest.approx((routes @ mean).min().item())
    for factor in (0.9, 1.1):
        instance = example.Instance(mean, variance, factor * float((routes @ mean).min()))
        found = example.surco(oracle, instance, example.parse(["--calls", "60"]))
        assert ((routes - found).abs().sum(1) == 0).any()
        assert float(instance.late(found)) <= float(instance.late(routes).min()) + 1e-4
        assert float(instance.late(found)) <= float(instance.late(oracle.solve(mean)))
    monkeypatch.setattr(example, "SETTINGS", {"3x3": (3, 0.2)})
    assert example.main(["--cities", "2", "--calls", "6", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "route_planning.png").read_bytes()[:4] == b"\x89PNG"
    assert capsys.readouterr().out.count("3x3") == 3


def test_tables_are_placed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    example = load("table_sharding")
    arguments = ["--tables", "8", "--devices", "3", "--models", "1", "--evaluations", "150", "--calls", "12"]
    assert example.main([*arguments, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "table_sharding.png").read_bytes()[:4] == b"\x89PNG"
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("T =")]
    assert len(lines) == 5
    tables = example.model(8, 3, torch.Generator().manual_seed(0))
    evaluate = example.Counted(tables, 5)
    placements = torch.eye(3, dtype=torch.float64)[torch.randint(3, (4, 8))]
    assert torch.equal(evaluate(placements), tables.latency(placements))
    with pytest.raises(example.Spent):
        evaluate(torch.eye(3, dtype=torch.float64)[torch.randint(3, (9, 8))])
    assert evaluate.left == 0
    with pytest.raises(SystemExit):
        example.main(["--evaluations", "10"])
