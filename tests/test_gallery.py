"""What all examples share: options, errors in one line, Ctrl-C from the first moment on; and that they do share it."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

import difflayers as dl
from tests import gallery
from tests.test_examples import load

FOLDER = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def command() -> ModuleType:
    return load("command")


def test_options_of_all_examples(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def parse(*argv: str):
        parser = command.Parser(
            "some/place/example.py", "What it does.", seed="of all", quick={"steps": 3, "on": ["a", 0.5]}
        )
        parser.add_argument("--steps", type=int, default=100)
        parser.add_argument("--on", nargs="+", default=["b"])
        return parser.options(argv)

    assert vars(parse()) == {"out": Path("out"), "steps": 100, "on": ["b"], "seed": 0, "quick": False}
    assert (parse("--quick").steps, parse("--quick").on) == (3, ["a", 0.5])
    assert parse("--quick", "--steps", "7").steps == 7
    with pytest.raises(SystemExit):
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "usage: example.py" in text
    assert "a few seconds: --steps 3 --on a 0.5 where not given" in text
    for bad in ("-1", str(2**32)):
        with pytest.raises(SystemExit) as caught:
            parse("--seed", bad)
        assert caught.value.code == 2
        assert f"example.py: error: --seed must be at least 0 and less than 2^32, got {bad}" in capsys.readouterr().err


def raising(error: BaseException):
    def work(options: object) -> Path:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (OSError("no such file"), 2, "example.py: no such file\n"),
        (dl.errors.UnsupportedOperationError("not that"), 2, "example.py: not that\n"),
        ("failed", 7, "example.py: it does not fit\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=["data", "difflayers", "failed", "interrupted"],
)
def test_errors_are_a_line_and_a_status(
    command: ModuleType, error: BaseException | str, status: int, line: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    raised = command.Failed("it does not fit", status=7) if isinstance(error, str) else error
    options = command.Parser("example.py", None, seed="", quick={}).options(["--out", str(tmp_path)])
    assert command.run("some/place/example.py", raising(raised), options) == status
    assert capsys.readouterr().err == line


def test_a_mistake_keeps_its_traceback(command: ModuleType, tmp_path: Path) -> None:
    options = command.Parser("example.py", None, seed="", quick={}).options(["--out", str(tmp_path)])
    with pytest.raises(ZeroDivisionError):
        command.run("example.py", raising(ZeroDivisionError()), options)
    assert command.run("example.py", raising(ZeroDivisionError()), options, ArithmeticError) == 2


def test_the_picture_is_named(command: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = command.Parser("example.py", None, seed="", quick={}).options(["--out", str(tmp_path / "new" / "one")])
    handler = signal.getsignal(signal.SIGINT)
    assert command.run("example.py", lambda options: options.out / "example.png", options) == 0
    assert (tmp_path / "new" / "one").is_dir()
    assert capsys.readouterr().out == f"Wrote {tmp_path / 'new' / 'one' / 'example.png'} (0 s).\n"
    assert signal.getsignal(signal.SIGINT) is handler  # a test is no script


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a child")
def test_ctrl_c_while_packages_load_is_quiet(tmp_path: Path) -> None:
    """As `import torch` does, this turns the exception of Ctrl-C into another one."""
    (tmp_path / "command.py").write_text((FOLDER / "command.py").read_text())
    (tmp_path / "slow.py").write_text(
        "import time\nprint('loading', flush=True)\ntry:\n    time.sleep(60)\n"
        "except BaseException as error:\n    raise ImportError('half loaded') from error\n"
    )
    (tmp_path / "example.py").write_text("import command\nimport slow\n")
    process = [sys.executable, str(tmp_path / "example.py")]
    with subprocess.Popen(process, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "loading\n"
        time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        output, errors = child.communicate(timeout=30)
    assert (child.returncode, output, errors) == (130, "", "")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a child")
def test_a_job_in_the_background_stays_deaf(tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text((FOLDER / "command.py").read_text())
    (tmp_path / "example.py").write_text("import command, os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    process = [sys.executable, str(tmp_path / "example.py")]
    ignoring = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)} if os.name == "posix" else {}
    assert subprocess.run(process, timeout=30, **ignoring).returncode == 0


@pytest.mark.parametrize("name", gallery.examples())
def test_every_example_shares_them(name: str) -> None:
    """Ctrl-C is quiet before anything slow is imported; every example has the options and a progress bar."""
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    assert len((ast.get_docstring(tree) or "").splitlines()) > 3
    imported = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    assert "command" in imported
    slow = [index for index, module in enumerate(imported) if module.split(".")[0] in ("numpy", "torch", "difflayers")]
    assert imported.index("command") < min(slow)
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert {"command.Parser", "command.run", "parser.options", "tqdm"} <= called
    assert not {"ArgumentParser", "print_exc"} & called
