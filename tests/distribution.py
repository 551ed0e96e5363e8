"""Builds what is released and looks into it: source archive, wheel, what is bundled, an installation from scratch.

    make dist     both into dist/: the wheel is built from the unpacked source archive, and both are checked
    make smoke    the wheel of dist/, and the source archive without a compiler, in environments of their own
    make sbom     docs/bundled.md and dist/*.cdx.json (CycloneDX) from the wheel

The test-suite does the same with a wheel that has no kernels, which takes seconds (tests/test_distribution.py).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

from . import bundled

ROOT = Path(__file__).resolve().parents[1]
NO_COMPILER = {"CXX": "/nonexistent/c++", "CUDACXX": "/nonexistent/nvcc", "DIFFLAYERS_REQUIRE_KERNELS": "0"}
SMOKE = """
import sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import difflayers as dl
import torch
said = [str(w.message) for w in caught if "difflayers" in str(w.message)]
info = dl.build_info()
print("difflayers", dl.__version__, "torch", torch.__version__, "compiled", info["compiled"], info["instruction_sets"],
      "CUDA", info["cuda_architectures"], "from", dl.__path__[0])
for message in said:
    print("warned:", message)
x = torch.tensor([[3.0, 1.0, 2.0]], requires_grad=True)
y = dl.sort(x, steepness=1e4)
torch.testing.assert_close(y, x.sort().values, rtol=0, atol=1e-3)
dl.sort(x).square().sum().backward()
assert torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0
assert dl.reinmax(torch.zeros(5, 3)).sum(-1).eq(1).all()
assert dl.topk(x, 2).membership.sum().sub(2).abs() < 1e-4
points = torch.rand(40, 2)
assert dl.ransac.RANSAC(dl.ransac.Line2D(), threshold=0.05).eval()(points).model.shape == (3,)
compiled = sys.argv[1] == "compiled"
assert info["compiled"] is compiled, info
assert len(said) == (0 if compiled else 1), said
assert compiled or "without its compiled kernels" in said[0]
"""


@contextlib.contextmanager
def _surroundings(folder: Path, variables: dict[str, str]) -> Iterator[None]:
    """The build backend works in the current folder and by the variables of the process."""
    old, before = dict(os.environ), Path.cwd()
    os.environ.update(variables)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(old)


def source_archive(to: Path) -> Path:
    """Builds the source archive into a folder."""
    from scikit_build_core.build import build_sdist

    with _surroundings(ROOT, {}):
        return to / build_sdist(str(to))


def wheel(archive: Path, to: Path, *, kernels: bool = True) -> Path:
    """Unpacks a source archive and builds the wheel from that alone."""
    from scikit_build_core.build import build_wheel

    variables = {"DIFFLAYERS_REQUIRE_KERNELS": "1"} if kernels else NO_COMPILER
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        with _surroundings(Path(folder, archive.name.removesuffix(".tar.gz")), variables):
            return to / build_wheel(str(to))


def check_archive(path: Path, version: str) -> list[str]:
    """What is wrong with a source archive."""
    with tarfile.open(path) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
        folders = {name.partition("/")[0] for name in packed.getnames()}
    wanted = {str(file.relative_to(ROOT)) for pattern in ("difflayers/**/*.py", "csrc/**/*.h", "csrc/**/*.c*")
              for file in ROOT.glob(pattern)}  # fmt: skip
    wanted |= {"pyproject.toml", "PKG-INFO", "LICENSE", "README.md", "csrc/CMakeLists.txt", "difflayers/py.typed"}
    allowed = (".py", ".h", ".cpp", ".cu", ".md", ".txt", ".toml", ".cff", ".typed", "LICENSE", "PKG-INFO")
    wrong = [f"it lacks {name}" for name in sorted(wanted - names)]
    wrong += [f"{name} has no place in it" for name in sorted(names) if not name.endswith(allowed)]
    return wrong + ([] if folders == {f"difflayers-{version}"} else [f"its folder is {sorted(folders)}"])


def check_wheel(path: Path, version: str, *, kernels: bool) -> list[str]:
    """What is wrong with a wheel."""
    with zipfile.ZipFile(path) as packed:
        names = set(packed.namelist())
        (about,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
        metadata = Parser().parsestr(packed.read(f"{about}/METADATA").decode())
        tags = Parser().parsestr(packed.read(f"{about}/WHEEL").decode()).get_all("Tag", [])
    library = {name for name in names if name.endswith(".so")}
    package = {str(file.relative_to(ROOT)) for file in ROOT.glob("difflayers/**/*.py")}
    rest = {f"{about}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "licenses/LICENSE")} | {"difflayers/py.typed"}
    wrong = [f"it lacks {name}" for name in sorted((package | rest) - names)]
    wrong += [f"{name} has no place in it" for name in sorted(names - package - rest - library)]
    if library != ({"difflayers/_C.so"} if kernels else set()):
        wrong.append(f"its libraries are {sorted(library)}")
    if not all(tag.startswith("cp310-abi3-") for tag in tags) or not tags:
        wrong.append(f"its tags are {tags}")
    if metadata["License-Expression"] != "MIT" or metadata["Version"] != version:
        wrong.append(f"its licence is {metadata['License-Expression']}, its version {metadata['Version']}")
    needed = {line.split(";")[0].strip() for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line}
    return wrong + ([] if needed == {"torch>=2.10", "numpy"} else [f"it needs {sorted(needed)}"])


def smoke(distribution: Path, torch: str, *, compiled: bool) -> None:
    """Installs into a new environment with that version of torch and uses it there, far from the sources."""
    with tempfile.TemporaryDirectory() as folder:
        print(
            f"== {distribution.name} with torch {torch}, {'as it is' if compiled else 'without a compiler'}", flush=True
        )
        environment = {name: value for name, value in os.environ.items()
                       if name not in ("PYTHONPATH", "DIFFLAYERS_LIBRARY", "DIFFLAYERS_REQUIRE_KERNELS")}  # fmt: skip
        python = str(Path(folder, "bin", "python"))

        def call(*arguments: str | Path) -> None:
            subprocess.run([str(argument) for argument in arguments], check=True, cwd=folder, env=environment)

        call(sys.executable, "-m", "venv", folder)
        pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        constraints = Path(folder, "constraints.txt")
        pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("torch=")]
        constraints.write_text("\n".join([*pins, f"torch=={torch}"]))
        call(*pip, "--constraint", constraints, f"torch=={torch}", "numpy")
        if compiled:
            call(*pip, "--no-deps", distribution)
        else:
            call(*pip, "--constraint", constraints, "scikit-build-core", "cmake", "ninja")
            environment |= NO_COMPILER | {"PATH": f"{Path(folder, 'bin')}"}
            call(*pip, "--no-deps", "--no-build-isolation", distribution)
        call(python, "-c", SMOKE, "compiled" if compiled else "plain")
        print("   installed, imported, used: all right", flush=True)


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        sys.exit(f"distribution.py: there must be one {pattern} in {folder}, found {len(found)}; run make dist first")
    return found[0]


def main(arguments: list[str] | None = None) -> int:
    """Builds, installs or lists; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("dist", "smoke", "sbom"))
    parser.add_argument("--folder", type=Path, default=ROOT / "dist", help="of the distributions, default dist")
    parser.add_argument("--torch", default="2.13.0", help="version to install beside it, for smoke")
    parser.add_argument("--no-kernels", action="store_true", help="a wheel of the Python files alone, in seconds")
    options = parser.parse_args(arguments)
    version, folder, kernels = bundled.version(), options.folder, not options.no_kernels
    if options.what == "dist":
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("difflayers-*"):
            old.unlink()
        archive = source_archive(folder)
        built = wheel(archive, folder, kernels=kernels)
        wrong = [f"{archive.name}: {text}" for text in check_archive(archive, version)]
        wrong += [f"{built.name}: {text}" for text in check_wheel(built, version, kernels=kernels)]
        for path in (archive, built):
            print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
        print("\n".join(wrong) if wrong else "Both hold what they should.")
        return 1 if wrong else 0
    built = _only(folder, "*.whl")
    if options.what == "smoke":
        smoke(built, options.torch, compiled=bundled.library(built) is not None)
        smoke(_only(folder, "*.tar.gz"), options.torch, compiled=False)
        return 0
    page, record = ROOT / "docs" / "bundled.md", folder / f"difflayers-{version}.cdx.json"
    page.write_text(bundled.page(built))
    record.write_text(bundled.cyclonedx(built))
    print(f"written to {page} and {record}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
