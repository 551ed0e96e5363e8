"""The examples of the fitting family run, learn, and refuse bad options and data in one line."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import difflayers as dl
from tests.test_examples import load, python

ROOT = Path(__file__).parents[1]
DATA = next(
    (folder for folder in (ROOT.parent / "shared/data/robust", ROOT / "shared/data/robust") if folder.is_dir()), None
)
real_data = pytest.mark.skipif(DATA is None, reason="the folder shared/data/robust is not there")


@pytest.fixture(scope="module")
def learned() -> ModuleType:
    return load("learned_ransac")


@pytest.fixture(scope="module")
def pairs() -> ModuleType:
    return load("image_pairs")


@pytest.fixture(scope="module")
def scans() -> ModuleType:
    return load("register_scans")


def run(name: str, *arguments: str | Path):
    return python(ROOT / "examples" / f"{name}.py", *arguments)


def figures(output: str) -> dict[str, list[str]]:
    """The rows of the tables that are printed: name -> its other columns, of the last row with that name."""
    return {line[:28].strip(): line[28:].split() for line in output.splitlines() if len(line) > 60}


def test_quick_lines(tmp_path: Path) -> None:
    result = run("fit_lines", "--quick", "--steps", "3", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "fit_lines.png").read_bytes()[:4] == b"\x89PNG"
    table = figures(result.stdout)
    assert table["search, confidence 0.9999"][:3] == ["4", "/", "4"]
    assert {"learned, score function", "learned, relaxed", "learned, straight through"} <= table.keys()


def test_quick_learned(tmp_path: Path) -> None:
    short = ["--warm", "2", "--steps", "2", "--every", "60", "--matches", "100", "--seeds", "2"]
    result = run("learned_ransac", "--quick", *short, "--peers", "--out", tmp_path / "new" / "folder")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "new" / "folder" / "learned_ransac.png").read_bytes()[:4] == b"\x89PNG"
    table = figures(result.stdout)
    assert "+-" in table["learned end to end"]
    rates = {name: float(table[name][0]) for name in ("uniform", "Lowe's ratio, times 10", "learned end to end")}
    assert 0 <= rates["uniform"] < rates["Lowe's ratio, times 10"] <= 100
    for name in ("cv2", "poselib"):
        found = any(line.startswith(f"{name} is not installed") for line in result.stdout.splitlines())
        assert found or ("OpenCV" if name == "cv2" else "PoseLib") in result.stdout


@real_data
def test_quick_learned_on_real_pairs(tmp_path: Path) -> None:
    short = ["--warm", "2", "--steps", "2", "--every", "40", "--data", str(DATA)]
    result = run("learned_ransac", "--quick", *short, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "177 pairs to learn from, 6 held out with 2000 matches" in result.stdout


@pytest.mark.parametrize("data", [False, pytest.param(True, marks=real_data)])
def test_quick_scans(data: bool, tmp_path: Path) -> None:
    short = ["--quick", "--runs", "1", "--inliers", "0.3"]
    result = run("register_scans", *short, "--out", tmp_path, *(["--data", DATA] if data else []))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "register_scans.png").read_bytes()[:4] == b"\x89PNG"
    rows = [line for line in result.stdout.splitlines() if line.startswith(("RANSAC  ", "least squares"))]
    assert len(rows) == (6 if data else 4)
    # both kinds of made problems: wrong matches turn the motion of least squares, and not that of RANSAC
    for baseline, row in zip(rows[-4::2], rows[-3::2], strict=True):
        degrees = [float(line[28:].split()[0]) for line in (baseline, row)]
        assert row.split()[-1] == "1/1"
        assert degrees[1] < 0.5 < 2 < degrees[0]


def test_scorer_starts_from_the_ratios_and_knows_no_order(learned: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    points, ratios = torch.rand(2, 40, 4, generator=generator), torch.rand(2, 40, generator=generator)
    scorer = learned.Scorer(7.0)
    torch.testing.assert_close(scorer(points, ratios), -7 * ratios)
    torch.nn.init.normal_(scorer.last.weight, generator=generator)
    order = torch.randperm(40, generator=generator)
    logits = scorer(points, ratios)
    assert (logits + 7 * ratios).std() > 0.1
    torch.testing.assert_close(scorer(points[:, order], ratios[:, order]), logits[:, order], atol=1e-4, rtol=1e-4)


def test_batches_are_two_views_still(learned: ModuleType, pairs: ModuleType) -> None:
    """Mirrored and swapped: the true matches of a pair still lie on one essential matrix."""
    data = pairs.synthetic_pairs(6, 400, 0)
    batch = next(learned.batches(data, learned.parse(["--batch", "6", "--matches", "300"]), torch.Generator()))
    layer = dl.ransac.RANSAC(dl.ransac.EssentialMatrix(), threshold=1 / data.focal).eval()
    logits = torch.where(batch.inliers, 0.0, -torch.inf)
    enough = batch.inliers.sum(-1) > 20
    found = layer(batch.points, logits, generator=torch.Generator().manual_seed(0)).inliers
    share = (found & batch.inliers).sum(-1) / batch.inliers.sum(-1)
    assert enough.sum() >= 3
    assert (share[enough] > 0.7).all()


def test_synthetic_pairs(pairs: ModuleType) -> None:
    data = pairs.synthetic_pairs(20, 500, 3)
    share = data.inliers.float().mean(-1)
    assert 0.02 < share.min() < share.median() < 0.6
    assert data.ratios[data.inliers].mean() < data.ratios[~data.inliers].mean() - 0.1
    again = pairs.synthetic_pairs(20, 500, 3)
    assert all(torch.equal(a, b) for a, b in zip(data[:-1], again[:-1], strict=True))


def test_learning_draws_better_samples(learned: ModuleType, pairs: ModuleType) -> None:
    """A few steps through RANSAC on few scenes: more samples of inliers only, on others."""
    options = learned.parse(["--warm", "1", "--batch", "4", "--steps", "30", "--matches", "150", "--lr", "0.005"])
    training, held_out = pairs.synthetic_pairs(40, 300, 1), pairs.synthetic_pairs(12, 300, 2)
    _, scorer, _ = learned.learn(training, options, 0)
    with torch.no_grad():
        before = learned.judge(held_out, -options.prior * held_out.ratios, options, 0)
        after = learned.judge(held_out, scorer(held_out.points, held_out.ratios), options, 0)
    assert after.right > before.right + 5


def test_ctrl_c_ends_a_training(learned: ModuleType) -> None:
    def loss(scorer: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(0)
        return scorer.last.weight.sum()

    seen: list[int] = []
    curve = learned.train(learned.Scorer(1.0), loss, iter(torch.zeros(9, 1)), 9, 1e-3, "test")
    assert len(curve) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a child")
def test_ctrl_c_at_once_is_no_traceback(tmp_path: Path) -> None:
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    command = [
        sys.executable,
        "-u",
        str(ROOT / "examples" / "register_scans.py"),
        "--runs",
        "500",
        "--out",
        str(tmp_path),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        child.stdout.readline()  # the first search has begun
        child.send_signal(signal.SIGINT)
        _, error = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Traceback" not in error


def test_ply(scans: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "shape.ply"
    head = "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    path.write_text(head + "1 2 3 9\n4 5 6 9\n")
    assert scans.read_ply(path).tolist() == [[1, 2, 3], [4, 5, 6]]
    for content in (
        "",
        "ply\n",
        "nonsense",
        head + "1 2 3\n",
        head + "1 2 x\n1 2 3\n",
        head.replace("ascii", "binary"),
    ):
        path.write_text(content)
        with pytest.raises(OSError, match=r"shape\.ply"):
            scans.read_ply(path)


@pytest.mark.parametrize(
    ("name", "file"), [("learned_ransac", "two_view_castle.npz"), ("register_scans", "rigid_3d3d.npz")]
)
def test_bad_data_is_named(name: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = load(name)
    arguments = ["--quick", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    for write in (
        lambda: None,
        lambda: (tmp_path / file).write_bytes(b"no archive"),
        lambda: np.savez(tmp_path / file, x=0),
    ):
        write()
        assert module.main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{name}.py: ")
        assert file in line


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fit_lines", ["--lines", "0"]),
        ("fit_lines", ["--sigma", "inf"]),
        ("fit_lines", ["--threshold", "inf"]),
        ("fit_lines", ["--seed", "-1"]),
        ("learned_ransac", ["--steps", "0"]),
        ("learned_ransac", ["--matches", "4"]),
        ("learned_ransac", ["--lr", "nan"]),
        ("learned_ransac", ["--prior", "-1"]),
        ("learned_ransac", ["--seed", "-1"]),
        ("register_scans", ["--inliers", "0"]),
        ("register_scans", ["--confidence", "1"]),
        ("register_scans", ["--noise", "nan"]),
        ("register_scans", ["--seed", "-1"]),
        ("register_scans", ["--matches", "9"]),
    ],
)
def test_bad_options(name: str, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load(name).main(options)
    assert caught.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_errors_of_a_known_motion(scans: ModuleType) -> None:
    cloud = scans.spoiled("x", scans.spring(500), 0.5, 0, scans.parse([]))
    assert scans.errors(cloud, cloud.truth) == (pytest.approx(0, abs=1e-6), pytest.approx(0, abs=1e-9))
    turn = math.radians(10)
    about_z = torch.tensor([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
    turned = torch.cat([cloud.truth[:, :3] @ about_z.double() * 2, cloud.truth[:, 3:]], -1)
    assert scans.errors(cloud, turned)[0] == pytest.approx(10, abs=1e-4)
