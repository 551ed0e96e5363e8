"""What is released: both archives hold what they should and work, nothing unpickles files, nothing uses a network."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import difflayers as dl
from tests import bundled, distribution, offline

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("difflayers/**/*.py"), *ROOT.glob("examples/*.py")])
# pickle: oracles on their way to worker processes of our own, through pipes that nobody else holds
ALLOWED = {("difflayers/oracles/parallel.py", "pickle")}
UNPICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
NETWORK = {"socket", "ssl", "http", "urllib", "urllib3", "requests", "ftplib", "aiohttp", "httpx", "huggingface_hub"}


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive, and a wheel without kernels from it; `make dist` builds the one with them."""
    pytest.importorskip("scikit_build_core")
    folder = tmp_path_factory.mktemp("dist")
    archive = distribution.source_archive(folder)
    return archive, distribution.wheel(archive, folder, kernels=False)


def test_archives_hold_what_they_should(archives: tuple[Path, Path]) -> None:
    archive, wheel = archives
    assert distribution.check_archive(archive, dl.__version__) == []
    assert distribution.check_wheel(wheel, dl.__version__, kernels=False) == []
    assert "its libraries are []" in distribution.check_wheel(wheel, dl.__version__, kernels=True)
    assert (
        any("its version" in text for text in distribution.check_wheel(wheel, dl.__version__, kernels=False)) is False
    )


def test_a_wheel_with_more_than_it_should_is_found(archives: tuple[Path, Path], tmp_path: Path) -> None:
    wheel = tmp_path / archives[1].name
    with zipfile.ZipFile(archives[1]) as old, zipfile.ZipFile(wheel, "w") as new:
        for name in old.namelist():
            if name != "difflayers/py.typed":
                new.writestr(name, old.read(name).replace(b"Name: numpy", b""))
        new.writestr("tests/test_distribution.py", "")
    wrong = distribution.check_wheel(wheel, dl.__version__, kernels=False)
    assert wrong == ["it lacks difflayers/py.typed", "tests/test_distribution.py has no place in it"]


def test_an_installation_without_a_compiler_says_so_once_and_works(archives: tuple[Path, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        wheel.extractall(tmp_path)
    variables = {name: value for name, value in os.environ.items() if not name.startswith("DIFFLAYERS_")}
    # -S: an editable installation of the working copy would come first
    site = (
        f"import sys; sys.path += {[str(tmp_path), sysconfig.get_path('purelib'), sysconfig.get_path('platlib')]!r}\n"
    )
    command = [sys.executable, "-S", "-c", site + distribution.SMOKE, "plain"]
    environment = variables | {"PYTHONPATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"from {tmp_path}" in done.stdout
    assert done.stdout.count("warned: ") == 1


def test_the_bill_of_materials_is_of_the_wheel(archives: tuple[Path, Path]) -> None:
    page = bundled.page(archives[1])
    assert "Nothing: this wheel was built without kernels." in page
    assert "| every installation | torch>=2.10, numpy |" in page
    names = re.findall(r'"name": "(.*?)"', bundled.cyclonedx(archives[1]))
    assert {"difflayers", "difflayers/__init__.py", "torch", "ortools"} <= set(names)


def test_what_the_library_is_linked_to() -> None:
    path = os.environ.get("DIFFLAYERS_LIBRARY") or dl._ops._path
    if path is None:
        pytest.skip("no compiled kernels")
    found = bundled.inspect(Path(path).read_bytes())
    assert {"libtorch.so", "libc10.so", "libstdc++.so.6"} <= set(found.linked)
    assert "libcudart" not in " ".join(found.linked)  # static, so that any torch will do
    assert (found.cuda is not None) == dl.build_info()["cuda"]
    assert {part.name for part in bundled.parts(found)} >= {"PyTorch", "libstdc++"}


def test_one_version() -> None:
    assert f"\nversion: {dl.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^## (\S+)", (ROOT / "docs" / "changelog.md").read_text(), re.MULTILINE)[1] == dl.__version__
    assert bundled.version() == dl.__version__


def suspicious(source: str) -> set[str]:
    """Modules that unpickle or use the network, and calls that may, by name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names} & (UNPICKLING | NETWORK)
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.module or "").partition(".")[0]} & (UNPICKLING | NETWORK)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called == "torch.load" and given.get("weights_only") != "True":
                found.add(called)
            if called.endswith((".load", "genfromtxt")) and given.get("allow_pickle", "False") != "False":
                found.add("allow_pickle")
            if called in ("eval", "exec", "__import__") or called.endswith(("read_pickle", "torch.hub.load")):
                found.add(called)
            if called.rpartition(".")[2].startswith("fetch_"):  # scikit-learn's data sets from the network
                found.add(called)
    return found


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import pickle", {"pickle"}),
        ("from urllib.request import urlopen", {"urllib"}),
        ("torch.load(path)", {"torch.load"}),
        ("torch.load(path, weights_only=False)", {"torch.load"}),
        ("torch.load(path, weights_only=True)", set()),
        ("np.load(path, allow_pickle=True)", {"allow_pickle"}),
        ("np.load(path)", set()),
        ("datasets.fetch_openml('mnist')", {"datasets.fetch_openml"}),
        ("model.eval()", set()),
        ("eval(text)", {"eval"}),
    ],
)
def test_what_is_suspicious(source: str, what: set[str]) -> None:
    assert suspicious(source) == what


def test_no_file_is_unpickled_and_no_module_uses_the_network() -> None:
    found = {(str(path.relative_to(ROOT)), name) for path in SOURCES for name in suspicious(path.read_text())}
    assert len(SOURCES) > 100
    assert found == ALLOWED


EVERYTHING = """
import importlib, pkgutil, sys
import difflayers as dl
for module in pkgutil.walk_packages(dl.__path__, "difflayers."):
    if module.name not in ("difflayers._C",):
        importlib.import_module(module.name)
import torch
dl.sort(torch.rand(3, 5)), dl.reinmax(torch.rand(3, 5)), dl.oracles.TopK(5, 2).solve(torch.rand(3, 5))
"""


def test_import_and_use_need_no_network(tmp_path: Path) -> None:
    """The tests of the examples run without it too."""
    environment = os.environ | offline.environment(tmp_path)
    code = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
    run = lambda code: subprocess.run(  # noqa: E731
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert "no network here" in run(code).stderr
    assert offline.attempts(tmp_path) == ["socket.getaddrinfo 192.0.2.1"]
    (tmp_path / "attempts").unlink()
    done = run(EVERYTHING)
    assert done.returncode == 0, done.stderr
    assert offline.attempts(tmp_path) == []
