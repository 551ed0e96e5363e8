"""The package as users meet it: its names, its documentation, its import, life without compiled kernels."""

import functools
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import difflayers as dl

ROOT = Path(__file__).parent.parent
MODULES = {
    "difflayers": dl,
    "difflayers.diagnostics": dl.diagnostics,
    "difflayers.distributions": dl.distributions,
    "difflayers.estimators": dl.estimators,
    "difflayers.gates": dl.gates,
    "difflayers.implicit": dl.implicit,
    "difflayers.losses": dl.losses,
    "difflayers.oracles": dl.oracles,
    "difflayers.protocols": dl.protocols,
    "difflayers.ransac": dl.ransac,
    "difflayers.ransac.degeneracy": dl.ransac.degeneracy,
    "difflayers.ransac.manifolds": dl.ransac.manifolds,
    "difflayers.ransac.residuals": dl.ransac.residuals,
    "difflayers.rules": dl.rules,
    "difflayers.schedules": dl.schedules,
    "difflayers.sorting": dl.sorting,
    "difflayers.subsets": dl.subsets,
    "difflayers.surrogates": dl.surrogates,
    "difflayers.swaps": dl.swaps,
}


def public_names():
    return [f"{module}.{name}" for module, where in MODULES.items() for name in sorted(where.__all__)]


def public_objects():
    for module, where in MODULES.items():
        for name in where.__all__:
            thing = getattr(where, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                yield pytest.param(thing, id=f"{module}.{name}")


def test_names_are_those_checked_in():
    """A name added or removed on purpose: edit tests/public_names.txt."""
    checked_in = (Path(__file__).parent / "public_names.txt").read_text().split()
    assert public_names() == checked_in


def test_every_name_exists_once():
    for where in MODULES.values():
        assert len(set(where.__all__)) == len(where.__all__)
        for name in where.__all__:
            assert hasattr(where, name)


@pytest.mark.parametrize("thing", list(public_objects()))
def test_docstring(thing):
    text = inspect.getdoc(thing)
    assert text
    first = text.splitlines()[0]
    assert first.endswith((".", ":"))
    assert len(first) <= 120


SORTING = [dl.sort, dl.permutation, dl.rank, dl.sort_by, dl.topk, dl.quantile, dl.median]
SORTING += [dl.SortingNetwork, dl.Sort, dl.Rank, dl.TopK, dl.sorting.EquivariantScorer]
SORTING += [getattr(dl.losses, name) for name in dl.losses.__all__]


CHOOSING = [getattr(where, name) for where in (dl.estimators, dl.subsets, dl.distributions) for name in where.__all__]
CHOOSING += [dl.diagnostics.compare]


# bases, results and errors describe their attributes instead
NO_SECTIONS = {"Oracle", "OracleResult", "PerThread", "Row", "Status", "Rule", "solve_invented"}
NO_SECTIONS |= {"ObjectiveError", "PriorRecord", "SurCoRecord", "SurCoResult"}
OPTIMISING = [
    getattr(where, name)
    for where in (dl.oracles, dl.rules, dl.surrogates)
    for name in where.__all__
    if name not in NO_SECTIONS and name not in dl.losses.__all__
]
GATES = [getattr(dl.gates, name) for name in dl.gates.__all__ if inspect.isfunction(getattr(dl.gates, name))]
GATES += [dl.TrainableGate, dl.gates.HardConcreteGate, dl.gates.BernoulliGate, dl.gates.BudgetLoss]
FITTING = [getattr(dl.ransac, name) for name in dl.ransac.__all__]
FITTING_CALLS = [thing for thing in FITTING if inspect.isfunction(thing)]
FULL = (
    SORTING
    + CHOOSING
    + OPTIMISING
    + FITTING_CALLS
    + GATES
    + [dl.ransac.RANSAC, dl.implicit.root, dl.implicit.fixed_point]
)


@pytest.mark.parametrize("thing", FULL, ids=lambda thing: f"{thing.__module__}.{thing.__name__}")
def test_docstring_sections(thing):
    text = inspect.getdoc(thing)
    for section in ("Args:", "Returns:", "Raises:", "Example:"):
        assert section in text
    assert re.search(r"^Cost", text, re.MULTILINE)
    assert re.search(r"[Tt]ransforms", text)
    assert ">>> " in text
    named = text[text.index("Args:") : text.index("Returns:")]
    for name in inspect.signature(thing).parameters:
        assert re.search(rf"\b{name}\b", named), f"{name} is not described"


SCHEDULES = [getattr(dl.schedules, name) for name in dl.schedules.__all__ if name != "Schedule"]


@pytest.mark.parametrize("thing", SCHEDULES, ids=lambda thing: thing.__name__)
def test_docstring_sections_of_plain_objects(thing):
    """They compute no tensors, so cost and transforms mean nothing."""
    text = inspect.getdoc(thing)
    for section in ("Args:", "Raises:", "Example:"):
        assert section in text
    named = text[text.index("Args:") : text.index("Raises:")]
    for name in inspect.signature(thing).parameters:
        assert re.search(rf"\b{name}\b", named), f"{name} is not described"


# bases and results describe their methods or attributes instead
PARTS_WITHOUT_SECTIONS = {"MinimalSolver", "Refiner", "Sampler", "Scorer", "Selection"}
PARTS_WITHOUT_SECTIONS |= {"Hypotheses", "Pose", "PoseError", "RansacResult", "RansacStatus", "Solutions"}
PARTS = [
    thing
    for thing in FITTING
    if inspect.isclass(thing) and thing.__name__ not in PARTS_WITHOUT_SECTIONS and thing is not dl.ransac.RANSAC
]


@pytest.mark.parametrize("thing", PARTS, ids=lambda thing: thing.__name__)
def test_docstring_sections_of_parts_of_ransac(thing):
    """Solvers, samplers, scorers, refiners, selections: RANSAC calls them, so what a call returns is in their bases."""
    text = inspect.getdoc(thing)
    parameters = inspect.signature(thing).parameters
    for section in ("Args:", "Raises:", "Example:") if parameters else ("Example:",):
        assert section in text
    assert re.search(r"^Cost, transforms:|^Cost:.*^Transforms:", text, re.MULTILINE | re.DOTALL)
    assert ">>> " in text
    for name in parameters:
        assert re.search(rf"\b{name}\b", text[text.index("Args:") :]), f"{name} is not described"


HELPERS = [
    getattr(w, name) for w in (dl.ransac.residuals, dl.ransac.manifolds, dl.ransac.degeneracy) for name in w.__all__
]


@pytest.mark.parametrize("thing", HELPERS, ids=lambda thing: thing.__name__)
def test_docstring_sections_of_helpers_of_ransac(thing):
    """Their modules say what they cost and that they are plain PyTorch."""
    text = inspect.getdoc(thing)
    for section in ("Args:", "Returns:", "Example:"):
        assert section in text
    assert ">>> " in text
    for name in inspect.signature(thing).parameters:
        assert re.search(rf"\b{name}\b", text[text.index("Args:") :]), f"{name} is not described"


def test_every_name_is_in_the_reference():
    pages = (page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    entries = [name for page in pages for name in re.findall(r"^::: difflayers\.(\S+)$", page, re.MULTILINE)]
    listed = {id(functools.reduce(getattr, name.split("."), dl)) for name in entries}
    assert len(listed) == len(entries)  # nothing twice
    missing = [where.id for where in public_objects() if id(where.values[0]) not in listed]
    assert not missing


def test_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", dl.__version__)
    assert f'version = "{dl.__version__}"' in (ROOT / "pyproject.toml").read_text()


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code], env={**os.environ, **environment}, cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_import_loads_nothing_heavy():
    code = "import sys, torch, numpy; before = set(sys.modules); import difflayers; print(*(set(sys.modules) - before))"
    done = run(code)
    assert done.returncode == 0, done.stderr
    new = {name.partition(".")[0] for name in done.stdout.split()}
    assert "difflayers" in new
    heavy = {"scipy", "ortools", "matplotlib", "sklearn", "triton", "pandas", "cvxpy", "cvxpylayers", "tqdm", "PIL"}
    heavy |= {"highspy", "networkx", "dask", "distributed"}
    assert not new & heavy


WITHOUT_SOLVERS = """
import sys, torch
sys.modules["ortools"] = sys.modules["scipy"] = sys.modules["scipy.optimize"] = None
import difflayers as dl
program = dl.oracles.LinearProgram(A_ub=[[1.0, 1.0]], b_ub=[1.0], on_failure="nan")
flow = dl.oracles.MinCostFlow([(0, 1)], [1], [1, -1], num_nodes=2, on_failure="nan")
needy = [program, flow, dl.oracles.Assignment(3, on_failure="nan"), dl.oracles.TravelingSalesman(14, on_failure="nan")]
needy += [dl.oracles.MaxCut(15, on_failure="nan"), dl.oracles.MinimumSpanningTree([(0, 1)], 2, on_failure="nan")]
for oracle in needy:
    try:
        oracle.solve(torch.rand(2, *oracle.cost_shape))
    except ImportError as error:
        assert "pip install 'difflayers[solvers]'" in str(error), error
    else:
        raise AssertionError(oracle.name)
path = dl.oracles.ShortestPath([(0, 1), (1, 2), (0, 2)], 0, 2, num_nodes=3)
for oracle in (path, dl.oracles.TopK(3, 1), dl.oracles.Permutation(3)):
    oracle.solve(torch.rand(2, 3))
"""


def test_solvers_that_are_missing_are_an_error_and_no_failed_row():
    done = run(WITHOUT_SOLVERS)
    assert done.returncode == 0, done.stderr


WITHOUT_KERNELS = """
import importlib.util, sys, warnings
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "difflayers._C" else find(name, *rest)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import difflayers as dl
"""


def test_without_compiled_kernels(tmp_path):
    x = torch.randn(5, 9, dtype=torch.float64)
    torch.save(x, tmp_path / "x.pt")
    code = f"""{WITHOUT_KERNELS}
    import difflayers as again
own = [w for w in caught if "difflayers" in str(w.message)]
assert len(own) == 1, caught
assert "compiler" in str(own[0].message), own[0].message
info = dl.build_info()
assert not info["compiled"] and info["instruction_set"] is None and not info["cuda"], info
import torch
x = torch.load({str(tmp_path / "x.pt")!r})
result = {{}}
for name, f in dict(sort=dl.sort, rank=dl.rank, permutation=dl.permutation, median=dl.median).items():
    for hard in (False, True):
        leaf = x.clone().requires_grad_()
        y = f(leaf, hard=hard)
        y.square().sum().backward()
        result[name, hard] = (y.detach(), leaf.grad)
torch.save(result, {str(tmp_path / "result.pt")!r})
"""
    done = run(code, DIFFLAYERS_REQUIRE_KERNELS="0")
    assert done.returncode == 0, done.stderr
    for (name, hard), (values, gradient) in torch.load(tmp_path / "result.pt").items():
        leaf = x.clone().requires_grad_()
        y = getattr(dl, name)(leaf, hard=hard)
        y.square().sum().backward()
        torch.testing.assert_close(values, y.detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(gradient, leaf.grad, rtol=0, atol=1e-10)


def test_required_kernels_that_are_missing_are_an_error():
    done = run(WITHOUT_KERNELS, DIFFLAYERS_REQUIRE_KERNELS="1")
    assert done.returncode != 0
    assert "ImportError: difflayers: DIFFLAYERS_REQUIRE_KERNELS=1" in done.stderr


def test_build_info():
    info = dl.build_info()
    assert info["torch"] == torch.__version__
    assert (info["instruction_set"] in info["instruction_sets"]) == info["compiled"]


PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))] if page.exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_snippets_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # whatever a snippet writes
    namespace = {"__name__": "snippet"}
    for match in re.finditer(r"^```python(?: [^\n]*)?\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        line = page.read_text()[: match.start(1)].count("\n")
        exec(compile("\n" * line + match[1], str(page), "exec"), namespace)
