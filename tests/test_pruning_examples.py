"""The examples of pruning run, prune to the budget, and refuse bad options and data in one line."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from difflayers import gates
from tests.test_examples import load, mnist, python

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def methods() -> ModuleType:
    return load("pruning_methods")


@pytest.fixture(scope="module")
def images() -> ModuleType:
    return load("cifar_images")


@pytest.fixture(scope="module")
def transformer() -> ModuleType:
    return load("prune_transformer")


def run(name: str, *arguments: str | Path):
    return python(ROOT / "examples" / f"{name}.py", *arguments)


def cifar(folder: Path, count: int = 150) -> np.ndarray:
    """A folder of one binary batch: images of one colour that tells the class."""
    labels = np.arange(count) % 10
    planes = np.broadcast_to(25 * labels[:, None], (count, 3 * 32 * 32))
    folder.mkdir(parents=True, exist_ok=True)
    np.concatenate([labels[:, None], planes], 1).astype(np.uint8).tofile(folder / "data_batch_1.bin")
    return labels


def test_quick_resnet(tmp_path: Path) -> None:
    result = run(
        "prune_resnet", "--quick", "--epochs", "1", "--targets", "0.5", "0.2", "--out", tmp_path / "new" / "folder"
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "new" / "folder" / "prune_resnet.png").read_bytes()[:4] == b"\x89PNG"
    rows = {line[:40]: line[40:].split() for line in result.stdout.splitlines() if len(line) > 70}
    for target in (0.5, 0.2):
        for name in ("trainable gates", "L1 magnitude"):
            reached, _, share, *_ = map(float, rows[f"{target:<8g}{name:32}"])
            assert 0.995 * target <= share <= target
            assert 0 <= reached <= 100
    assert "Channels by convolution: [8, 8, 8, 16, 16, 16, 32, 32, 32]" in result.stdout
    peer = any(line[8:].startswith("Torch-Pruning") for line in result.stdout.splitlines())
    assert peer or "Torch-Pruning is not installed" in result.stdout


def test_quick_transformer(tmp_path: Path) -> None:
    result = run("prune_transformer", "--quick", "--data", ROOT / "difflayers", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "prune_transformer.png").read_bytes()[:4] == b"\x89PNG"
    rows = {line[:20].strip(): line[20:].split() for line in result.stdout.splitlines() if len(line) > 70}
    for name, target in {"dense": 1.0, "trainable gates": 0.5, "L1 magnitude": 0.5}.items():
        bits, _, share, count, *_ = map(float, rows[name][:-1])
        assert 3 < bits < 8  # 8 is what a model that knows nothing has
        assert 0.995 * target <= share <= target
        assert (count == 84_544) == (name == "dense")
    assert "blocks_0_attention_qkv" in result.stdout


def test_flops_are_those_of_the_budget(methods: ModuleType) -> None:
    net = methods.resnet(3, 2, 4)
    gated = gates.attach(net, torch.zeros(1, 3, 16, 16))
    assert methods.flops(net, torch.zeros(1, 3, 16, 16)) == gated.full_cost()


def test_torch_pruning_is_held_to_the_target(methods: ModuleType, images: ModuleType) -> None:
    pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    net = methods.resnet(1, 1, 8).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # where all scales are 1, "BN scale" removes nothing
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    before = copy.deepcopy(net)
    digits = images.load_images(None)
    few = images.Images(digits.pixels[:128], digits.numbers[:128])
    task = methods.Task(images.Batches(few, 64, 0), few.pixels[:1], 0, 1e-3, lambda numbers: numbers)
    for criterion in methods.torch_pruning_criteria():
        small = methods.by_torch_pruning(net, 0.4, task, criterion)
        share = methods.flops(small, task.example) / methods.flops(net, task.example)
        assert 0.25 < share <= 0.4, criterion
    for left, right in zip(net.parameters(), before.parameters(), strict=True):
        assert torch.equal(left, right)


def test_read_cifar(images: ModuleType, tmp_path: Path) -> None:
    labels = cifar(tmp_path / "cifar-10-batches-bin")
    for folder in (tmp_path, tmp_path / "cifar-10-batches-bin"):
        found = images.load_images(folder)
        assert found.pixels.shape == (150, 3, 32, 32)
        assert found.numbers.tolist() == labels.tolist()
        torch.testing.assert_close(found.pixels[:, 2, 31, 31] * 255, 25 * torch.from_numpy(labels).float())


def test_batches_see_every_image_once(images: ModuleType) -> None:
    """Grey images as they are; colour images mirrored and shifted, in another order each time."""
    grey = images.Images(torch.arange(10.0)[:, None, None, None].expand(-1, 1, 8, 8), torch.arange(10))
    batches = images.Batches(grey, 5, 0)
    orders = [torch.cat([numbers for _, numbers in batches]) for _ in range(2)]
    assert len(batches) == 2
    assert not torch.equal(*orders)
    assert all(order.sort().values.tolist() == list(range(10)) for order in orders)
    assert all(bool((pixels == numbers[:, None, None, None]).all()) for pixels, numbers in batches)
    colour = images.Images(torch.rand(4, 3, 32, 32), torch.arange(4))
    ((changed, numbers),) = images.Batches(colour, 4, 0)
    assert changed.shape == (4, 3, 32, 32)
    centres = colour.pixels[numbers][..., 15, 15]
    around = changed[..., 11:21, 11:21].flatten(2)
    assert bool(((around - centres[..., None]).abs() < 1e-6).any(-1).any())


def test_docstrings_and_text(transformer: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('"""Module."""\nclass A:\n    """Class."""\n    def f(self):\n        "Method."\n')
    (tmp_path / "broken.py").write_text("def f(:\n")
    assert transformer.docstrings(tmp_path / "a.py") == ["Module.", "Class.", "Method."]
    assert transformer.docstrings(tmp_path / "broken.py") == []
    with pytest.raises(OSError, match="must have Python files with at least 2000 bytes"):
        transformer.load_text(tmp_path, 100_000)
    for i in range(40):
        (tmp_path / f"m{i}.py").write_text(f'"""{chr(97 + i % 26) * 1000}"""\n')
    text = transformer.load_text(tmp_path, 100_000)
    assert len(text.training) + len(text.held_out) == 40 * 1002 + len("Module.\n\nClass.\n\nMethod.\n\n")
    assert 0.08 < len(text.held_out) / len(text.training) < 0.16
    again = transformer.load_text(tmp_path, 100_000)
    assert torch.equal(text.held_out, again.held_out)


def test_transformer_is_causal(transformer: ModuleType) -> None:
    torch.manual_seed(0)
    model = transformer.Transformer(12, 16, 2, 2).eval()
    text = torch.randint(256, (1, 12))
    changed = text.clone()
    changed[0, 7] = (text[0, 7] + 1) % 256
    before, after = model(text), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7], after[:, 7])


def test_missing_data_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, wanted in (("prune_resnet", "data_batch_1.bin"), ("prune_transformer", "must have Python files")):
        assert load(name).main(["--quick", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{name}.py: ")
        assert wanted in line


@pytest.mark.parametrize("spoil", ["length", "class", "empty", "few"])
def test_bad_cifar_is_named(spoil: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cifar(tmp_path, 20 if spoil == "few" else 150)
    path = tmp_path / "data_batch_1.bin"
    content = path.read_bytes()
    if spoil != "few":
        path.write_bytes({"length": content[:-1], "class": b"\x0a" + content[1:], "empty": b""}[spoil])
    assert load("prune_resnet").main(["--quick", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert ("--batch" if spoil == "few" else "data_batch_1.bin") in line


def test_mnist_is_read(images: ModuleType, tmp_path: Path) -> None:
    mnist(tmp_path)
    assert images.load_images(tmp_path).pixels.shape == (200, 1, 10, 9)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("prune_resnet", ["--targets", "0"]),
        ("prune_resnet", ["--targets", "1.5"]),
        ("prune_resnet", ["--epochs", "0"]),
        ("prune_resnet", ["--batch", "1"]),
        ("prune_resnet", ["--lr", "nan"]),
        ("prune_resnet", ["--seed", "-1"]),
        ("prune_transformer", ["--target", "nan"]),
        ("prune_transformer", ["--heads", "5"]),
        ("prune_transformer", ["--length", "1"]),
        ("prune_transformer", ["--lr", "inf"]),
        ("prune_transformer", ["--bytes", "10"]),
        ("prune_transformer", ["--seed", "-1"]),
    ],
)
def test_bad_options(name: str, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load(name).main(options)
    assert caught.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_infeasible_targets_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(ROOT / "difflayers"), "--blocks", "1", "--out", str(tmp_path)]
    for name, arguments in (
        ("prune_resnet", ["--targets", "0.5", "0.01"]),
        ("prune_transformer", ["--target", "0.01"]),
    ):
        more = data if name == "prune_transformer" else data[2:]
        assert load(name).main(["--quick", *arguments, *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{name}.py: ")
        assert "'target' must be at least" in line


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a child")
def test_ctrl_c_still_prints(tmp_path: Path) -> None:
    """Ended in the second method: the first one's row and the picture are there."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    script = str(ROOT / "examples" / "prune_resnet.py")
    command = [
        sys.executable,
        "-u",
        script,
        "--quick",
        "--epochs",
        "1",
        "--targets",
        "0.5",
        *["0.4"] * 50,
        "--out",
        str(tmp_path),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        while "trainable gates" not in child.stdout.readline():
            assert child.poll() is None
        child.send_signal(signal.SIGINT)
        output, error = child.communicate(timeout=60)
    assert child.returncode == 0, error
    assert "Traceback" not in error
    assert "Wrote " in output
    assert (tmp_path / "prune_resnet.png").is_file()
