"""The examples of the choosing family run, learn, and refuse bad options in one line."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.test_examples import load, mnist, python

ROOT = Path(__file__).parents[1]
NAMES = ("categorical_vae", "select_experts")
each = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def autoencoder() -> ModuleType:
    return load("categorical_vae")


@pytest.fixture(scope="module")
def experts() -> ModuleType:
    return load("select_experts")


def run(name: str, *arguments: str | Path):
    return python(ROOT / "examples" / f"{name}.py", *arguments)


def figures(output: str) -> dict[str, list[str]]:
    """The rows of the table that is printed: name -> its other columns."""
    rows = (line.rstrip() for line in output.splitlines() if "  " in line.strip())
    return {row[:24].strip(): row[24:].split() for row in rows if row[:24].strip()}


def test_quick_autoencoder(tmp_path: Path) -> None:
    result = run("categorical_vae", "--quick", "--epochs", "1", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "categorical_vae.png").read_bytes()[:4] == b"\x89PNG"
    table = figures(result.stdout)
    for name in ("ReinMax", "Gumbel-Softmax 0.5", "Gumbel-Rao 0.5", "Straight-through 1.3", "RLOO, 2 samples"):
        assert 20 < float(table[name][0]) < 45  # 64 log 2 = 44.4 nats is what a network that knows nothing has


def test_quick_experts(tmp_path: Path) -> None:
    result = run("select_experts", "--steps", "5", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "select_experts.png").read_bytes()[:4] == b"\x89PNG"
    table = figures(result.stdout)
    assert table["soft voting"][0] == "10"
    for name in ("perturbed top-k", "SIMPLE", "sorting network", "LapSum"):
        assert table[name][0] == "3"
        assert 0 <= float(table[name][1]) <= 100


@each
def test_other_images(name: str, tmp_path: Path) -> None:
    mnist(tmp_path)
    short = ["--epochs", "1", "--estimators", "ReinMax"] if name == "categorical_vae" else ["--methods", "LapSum"]
    steps = ["--batch", "20"] if name == "categorical_vae" else ["--steps", "3"]
    result = run(name, "--data", tmp_path, "--out", tmp_path / "new" / "folder", *short, *steps)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "new" / "folder" / f"{name}.png").stat().st_size > 0


@each
def test_missing_data_is_named(name: str, tmp_path: Path) -> None:
    result = run(name, "--quick", "--data", tmp_path, "--out", tmp_path / "out")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{name}.py: ")
    assert "t10k-images-idx3-ubyte is missing" in line


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("categorical_vae", ["--classes", "1"]),
        ("categorical_vae", ["--seeds", "0"]),
        ("categorical_vae", ["--estimators", "Magic"]),
        ("categorical_vae", ["--lr", "nan"]),
        ("select_experts", ["--k", "11"]),
        ("select_experts", ["--steps", "0"]),
        ("select_experts", ["--methods", "Magic"]),
        ("select_experts", ["--lr", "0"]),
    ],
)
def test_bad_options(name: str, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load(name).main(options)
    assert caught.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_the_autoencoder_learns(autoencoder: ModuleType) -> None:
    """Twenty epochs of ReinMax: below what is reached when the code says nothing, 27.15 nats."""
    training, _, held_out = (p.pixels.flatten(1) for p in autoencoder.split(autoencoder.load_digits(None), 0))
    options = autoencoder.parse(["--epochs", "30", "--seeds", "2"])
    result = autoencoder.train(autoencoder.ESTIMATORS["ReinMax"], training, held_out, options, "test")
    assert result.curve.shape == (30, 2)
    assert result.curve[-1].mean() < 26.9 < result.curve[1].mean()
    assert result.held_out.mean() < 26.9


def test_selection_beats_soft_voting(experts: ModuleType) -> None:
    torch.manual_seed(0)
    training, *rest = experts.split(experts.load_digits(None), 0)
    test = experts.Images(*map(torch.cat, zip(*rest, strict=True)))
    crowd = experts.Experts(64)
    crowd.learn(training, 600)
    with torch.no_grad():
        opinions, test_opinions = (crowd(images.pixels.flatten(1)).exp() for images in (training, test))
    voting = experts.accuracy(test_opinions.mean(1), test.numbers)
    trained = experts.train(
        experts.METHODS["optimal transport"](3), opinions, training, experts.parse(["--steps", "800"]), "test"
    )
    asked = experts.selection(trained.network, test, 3)
    assert (asked.sum(1) == 3).all()
    assert experts.accuracy(torch.einsum("be,bec->bc", asked / 3, test_opinions), test.numbers) > voting
    # those who know the digit are asked more often than the others
    knows = crowd.known[:, test.numbers].T
    assert asked[knows].mean() > 2 * asked[~knows].mean()
