"""The examples run, learn, and refuse bad data in one line."""

from __future__ import annotations

import gzip
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from tests import offline

for package in ("sklearn", "matplotlib", "tqdm"):
    pytest.importorskip(package)

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "rank_digits.py"


def load(name: str) -> ModuleType:
    """An example as a module; it finds its neighbours as it does when it is run."""
    if str(SCRIPT.parent) not in sys.path:
        sys.path.append(str(SCRIPT.parent))
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load("rank_digits")


@pytest.fixture(scope="module")
def loader() -> ModuleType:
    return load("digit_images")


def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs Python as a user would, but without a network; what tries to use it fails the test."""
    command = [sys.executable, "-W", "ignore", *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | offline.environment(Path(folder))
        # the script finds the package where the tests do, installed or not
        environment["PYTHONPATH"] += f"{os.pathsep}{ROOT}"
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert offline.attempts(Path(folder)) == []
    return done


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return python(SCRIPT, *arguments)


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def mnist(folder: Path, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """A folder of images that are as bright as their label is large: one gzipped file, one plain."""
    labels = np.arange(count) % 10
    images = np.broadcast_to(25 * labels[:, None, None], (count, 10, 9))
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(labels))
    return images, labels


def test_quick_run(tmp_path: Path) -> None:
    result = run("--quick", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "rank_digits.png").read_bytes()[:4] == b"\x89PNG"
    table = {line.split()[0]: line.split()[-3:] for line in result.stdout.splitlines() if line.strip()}
    assert table["learned"] == ["%", "EW", "%"]
    for name, steps in {"untrained": "0", "difflayers": "40", "regression": "40"}.items():
        assert table[name][0] == steps
        assert 0 <= float(table[name][1]) <= float(table[name][2]) <= 100


def test_options_reach_the_training(tmp_path: Path) -> None:
    mnist(tmp_path)
    settings = "--steps 3 --batch 2 --n 3 --digits 2 --network bitonic --swap optimal --steepness 5 --hard --seed 7"
    result = run("--data", tmp_path, "--out", tmp_path / "new" / "folder", *settings.split())
    assert result.returncode == 0, result.stderr
    assert "all 3 ranks right" in result.stdout
    assert (tmp_path / "new" / "folder" / "rank_digits.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--n 1", "--n must be at least 2"),
        ("--steps 0", "the other numbers positive"),
        ("--lr -1", "the other numbers positive"),
        ("--steepness nan", "the other numbers positive"),
        ("--digits 10", "argument --digits: invalid choice"),
        ("--swap cubic", "argument --swap: invalid choice"),
    ],
)
def test_bad_option_is_refused(
    example: ModuleType, arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        example.main(arguments.split())
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_package_says_what_to_install() -> None:
    code = f"import sys, runpy; sys.modules['tqdm'] = None; sys.path.append({str(SCRIPT.parent)!r}); "
    code += f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    result = python("-c", code)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "tqdm" in line
    assert line.endswith("pip install 'difflayers[examples]'")


def test_missing_data_is_named(tmp_path: Path) -> None:
    result = run("--quick", "--data", tmp_path, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("rank_digits.py: ")
    assert "t10k-images-idx3-ubyte is missing" in line


def test_missing_labels_are_named(loader: ModuleType, tmp_path: Path) -> None:
    mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte is missing"):
        loader.load_digits(tmp_path)


def test_wrong_magic_number_is_refused(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)  # main sets it for the whole process
    mnist(tmp_path)
    content = (tmp_path / "t10k-labels-idx1-ubyte").read_bytes()
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x0d\x01" + content[4:])
    assert example.main(["--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "t10k-labels-idx1-ubyte is not an idx file: magic number '00000d01' in place of '00000801'" in line


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_round_trip(loader: ModuleType, tmp_path: Path, suffix: str) -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 4, 5)).astype(np.uint8)
    path = tmp_path / f"some-file{suffix}"
    path.write_bytes(gzip.compress(idx(array)) if suffix else idx(array))
    np.testing.assert_array_equal(loader.read_idx(path, 3), array)
    with pytest.raises(OSError, match="magic number"):
        loader.read_idx(path, 1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty", b""),
        ("header", idx(np.zeros((3, 2, 2)))[:9]),
        ("short", idx(np.zeros((3, 2, 2)))[:-1]),
        ("long", idx(np.zeros((3, 2, 2))) + b"\0"),
        ("plain.gz", idx(np.zeros((3, 2, 2)))),
        ("cut.gz", gzip.compress(idx(np.ones((3, 20, 20))))[:-9]),
        ("broken.gz", gzip.compress(idx(np.ones((3, 2, 2))))[:10] + b"\xff" * 30),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # a compressed file holds the second it was made in
)
def test_damaged_idx_is_refused(loader: ModuleType, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OSError, match=name):
        loader.read_idx(tmp_path / name, 3)


def test_data_folder_is_read(loader: ModuleType, tmp_path: Path) -> None:
    images, labels = mnist(tmp_path)
    digits = loader.load_digits(tmp_path)
    torch.testing.assert_close(digits.pixels, torch.tensor(images / 255, dtype=torch.float32))
    assert digits.numbers.tolist() == labels.tolist()
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(labels[:-1]))
    with pytest.raises(OSError, match=r"200 images .* 199 labels"):
        loader.load_digits(tmp_path)


def test_split_is_disjoint_and_complete(example: ModuleType) -> None:
    digits = example.Images(torch.arange(1797.0), torch.arange(1797))
    parts = example.split(digits, seed=3)
    assert [len(part.numbers) for part in parts] == [1437, 180, 180]
    assert torch.cat([part.numbers for part in parts]).sort().values.tolist() == list(range(1797))


def test_composed_numbers_show_their_digits(example: ModuleType) -> None:
    digits = example.Images(torch.arange(10.0)[:, None, None].expand(10, 4, 3), torch.arange(10))
    sets = next(example.compose(digits, 6, 5, 3, 0))
    assert sets.pixels.shape == (6, 5, 4, 9)
    shown = sets.pixels[..., 0, ::3] @ torch.tensor([100.0, 10.0, 1.0])
    torch.testing.assert_close(shown, sets.numbers.float())
    assert (sets.pixels == sets.pixels[:, :, :1]).all()


def test_metrics(example: ModuleType) -> None:
    class Reader(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels[..., 0, 0]

    numbers = torch.tensor([[3, 1, 2], [1, 2, 3], [5, 5, 9]])
    # right, two exchanged, right but for a tie
    scores = torch.tensor([[0.3, 0.1, 0.2], [0.2, 0.1, 0.3], [0.5, 0.4, 0.9]])
    exact, single = example.evaluate(Reader(), example.Images(scores[..., None, None], numbers))
    assert exact == pytest.approx(200 / 3, abs=1e-3)
    assert single == pytest.approx(700 / 9, abs=1e-3)


@pytest.mark.parametrize("hard", [False, True])
def test_order_alone_teaches_to_read(example: ModuleType, hard: bool) -> None:
    train, validation, test = example.split(example.load_digits(None), seed=0)
    check, held_out = (next(example.compose(part, 300, 5, 2, 0)) for part in (validation, test))
    loss, _ = example.losses(example.parse(["--digits", "2", *["--hard"][: int(hard)]]))

    def trained(steps: int) -> tuple[float, float]:
        scorer = example.Scorer(8, 16, seed=0)
        done = example.train(scorer, loss, example.compose(train, 16, 5, 2, 1), check, steps, 6e-3, "test")
        assert done == steps
        return example.evaluate(scorer, held_out)

    untrained, learned = example.evaluate(example.Scorer(8, 16, seed=0), held_out), trained(200)
    assert untrained[1] < 35
    assert learned[0] > untrained[0] + 25
    assert learned[1] > untrained[1] + 35
    assert trained(20) == trained(20)  # the seed decides


def test_interrupted_training_keeps_what_it_has(example: ModuleType) -> None:
    train = example.split(example.load_digits(None), seed=0)[0]
    check = next(example.compose(train, 2, 3, 1, 0))
    loss, _ = example.losses(example.parse(["--digits", "1"]))

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _, sets in zip(range(3), example.compose(train, 4, 3, 1, 0), strict=False):
            yield sets
        raise KeyboardInterrupt

    assert example.train(example.Scorer(8, 8, 0), loss, batches(), check, 10, 1e-3, "test") == 3
