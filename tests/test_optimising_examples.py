"""The example of many machines runs, agrees with one core, survives a death, and refuses bad options in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.test_examples import load, python

pytest.importorskip("distributed")
pytest.importorskip("ortools")

SCRIPT = Path(__file__).parents[1] / "examples" / "many_machines.py"
SMALL = ("--quick", "--items", "12", "--rows", "24", "--samples", "8")


def table(output: str) -> dict[str, list[str]]:
    """Place -> start, solve, rows/s, epoch, same, lost."""
    rows = (line for line in output.splitlines() if line[:20].strip() and line[20:].split()[-2:-1] == ["yes"])
    return {row[:20].strip(): row[20:].split() for row in rows}


def test_quick_run_and_a_death(tmp_path: Path) -> None:
    result = python(SCRIPT, *SMALL, "--workers", "1", "--kill", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert (tmp_path / "many_machines.png").read_bytes()[:4] == b"\x89PNG"
    rows = table(result.stdout)
    assert list(rows) == ["here", "1 thread", "1 process", "Dask, 1 worker"]
    assert [row[-1] for row in rows.values()] == ["-", "-", "0", "0"]
    assert all(float(cell) > 0 for row in rows.values() for cell in row[:4])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_cluster_that_runs_already(tmp_path: Path) -> None:
    from distributed import LocalCluster

    settings = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": None}
    with LocalCluster(**settings, protocol="tcp", silence_logs=50) as cluster:
        address = cluster.scheduler_address
        result = python(SCRIPT, *SMALL, "--places", "dask", "--scheduler", address, "--out", tmp_path / "new")
    assert result.returncode == 0, result.stderr
    assert list(table(result.stdout)) == ["here", "Dask, 1 worker"]
    assert (tmp_path / "new" / "many_machines.png").stat().st_size > 0


def test_disagreement_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    example = load("many_machines")
    solve = example.dl.oracles.GeneralizedAssignment.solve

    def wrong(self, costs: torch.Tensor) -> torch.Tensor:
        return solve(self, costs) if self.workers is None else solve(self, -costs)

    monkeypatch.setattr(example.dl.oracles.GeneralizedAssignment, "solve", wrong)
    assert example.main([*SMALL, "--places", "threads", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "many_machines.py: 2 threads: not what one core gives\n"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--items", "1", "--rows", "2"], 2, "2 of 2 rows have no solution"),
        (["--out", str(SCRIPT / "below")], 2, "Not a directory"),
    ],
)
def test_failures_are_named(
    options: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load("many_machines").main(["--places", "threads", "--out", str(tmp_path), *options]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("many_machines.py: ")
    assert message in line


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    example = load("many_machines")
    monkeypatch.setattr(example, "TIMEOUT", 1)
    options = ["--places", "dask", "--scheduler", "tcp://127.0.0.1:9", "--out", str(tmp_path)]
    assert example.main([*SMALL, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "tcp://127.0.0.1:9" in line


@pytest.mark.parametrize(
    "options",
    [
        ["--workers", "0"],
        ["--rows", "-3"],
        ["--places", "moon"],
        ["--scheduler", "localhost"],
        ["--scheduler", "tcp://localhost:8786", "--places", "threads"],
        ["--seed", "-1"],
    ],
)
def test_bad_options(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load("many_machines").main(options)
    assert caught.value.code == 2
    assert options[0] in capsys.readouterr().err
