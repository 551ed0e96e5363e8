"""The scripts of tests/reproductions run, go on where they were stopped, and their page says what their rows say."""

from __future__ import annotations

import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest
import torch

for package in ("sklearn", "matplotlib", "tqdm", "scipy", "ortools"):
    pytest.importorskip(package)

FOLDER = Path(__file__).parent / "reproductions"


def load(name: str) -> ModuleType:
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all experiments, in the smallest sizes that have all parts."""
    folder = tmp_path_factory.mktemp("reproductions")
    for name, settings in {
        "sort_numbers": "--steps 2 --sizes 3 5 --seeds 2 --test-sets 5 --methods cauchy logistic NeuralSort",
        "error_free_swaps": "--steps 1 --n 4 --seeds 2 --test-sets 5",
        "reinmax_polynomials": "--steps 20 --seeds 2 --powers 2 --estimators reinmax straight_through",
        "reinmax_autoencoders": "--epochs 1 --seeds 2 --estimators",
        "surco_routes": "--cities 1 --calls 4 --seeds 2",
        "learned_sampling": "--every 40 --seeds 2 --budgets 8 --skip-learned",
    }.items():
        module = load(name)
        extra = ["ReinMax 1.3", "Straight-through 1.3"] if settings.endswith("--estimators") else []
        module.run(module.options([*settings.split(), *extra, "--out", str(folder)]))
    return folder


def test_every_experiment_has_a_table_and_claims(results: Path) -> None:
    page = load("write_page").page(results)
    for section in load("write_page").SECTIONS:
        ran = section.module.EXPERIMENT != "gated_pruning"
        assert (f"## {section.title}" in page) == ran
        assert (f"`python tests/reproductions/{section.module.EXPERIMENT}.py`;" in page) == ran
    assert "Not run for this page: `python tests/reproductions/gated_pruning.py`." in page
    assert "ReinMax ends nearer to the optimum than straight-through" in page
    assert "nan" not in page


def test_base_is_imported_before_what_it_makes_importable() -> None:
    others = [
        path.stem for path in (*(FOLDER.parents[1] / "examples").glob("*.py"), *FOLDER.parent.glob("benchmarks/*.py"))
    ]
    for path in FOLDER.glob("*.py"):
        imported = [line.split()[1] for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
        needed = [name for name in imported if name in (*others, "base")]
        assert path.name == "base.py" or needed[:1] in ([], ["base"]), path


def test_the_page_is_that_of_the_results_beside_it() -> None:
    docs = FOLDER.parents[1] / "docs"
    assert load("write_page").page(docs / "reproductions") == (docs / "reproductions.md").read_text()


def test_finished_rows_are_kept_and_others_added(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, path = load("sort_numbers"), results / "sort_numbers.json"
    before = json.loads(path.read_text())["rows"]
    trained: list[str] = []
    real = module.train
    monkeypatch.setattr(module, "train", lambda *args: trained.append(args[-1]) or real(*args))
    same = ["--steps", "2", "--seeds", "2", "--test-sets", "5", "--out", str(results), "--methods", "cauchy"]
    module.run(module.options([*same, "--sizes", "3", "5", "4"]))
    assert trained == ["cauchy, n = 4, seed 0", "cauchy, n = 4, seed 1"]
    after = json.loads(path.read_text())["rows"]
    assert after[: len(before)] == before
    assert {row["n"] for row in after if row["kind"] == "test"} == {3, 4, 5}


def test_rows_of_other_settings_are_not_mixed(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, helpers = load("reinmax_polynomials"), load("base")
    arguments = "--steps 21 --seeds 2 --powers 2 --estimators reinmax --out"
    threads = torch.get_num_threads()
    assert helpers.main("name.py", module.options([*arguments.split(), str(results)]), module.run) == 2
    torch.set_num_threads(threads)
    (line,) = capsys.readouterr().err.splitlines()
    assert "rows of other settings" in line


def test_interruption_keeps_the_finished_rows(tmp_path: Path) -> None:
    helpers = load("base")
    store = helpers.Store(Namespace(out=tmp_path), "some", {"steps": (1, 2)})
    store.row({"seed": 0}, lambda: {"x": 1.5})

    def interrupted() -> dict[str, float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.row({"seed": 1}, interrupted)
    again = helpers.Store(Namespace(out=tmp_path), "some", {"steps": (1, 2)})
    assert again.content["rows"] == [{"seed": 0, "x": 1.5}]
    assert again.row({"seed": 0}, interrupted) == {"seed": 0, "x": 1.5}


def test_all_of_them_are_run_and_put_on_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("run_all")
    seen: dict[str, Namespace] = {}
    monkeypatch.setattr(module, "main", lambda name, options, run: seen.setdefault(name, options) and 0)
    assert module.run(["--data", "some", "--seeds", "2", "--out", str(tmp_path / "rows")]) == 0
    assert list(seen) == [f"{section.module.EXPERIMENT}.py" for section in load("write_page").SECTIONS]
    assert all(options.seeds == 2 and options.out == tmp_path / "rows" for options in seen.values())
    assert seen["sort_numbers.py"].data == Path("some/mnist")
    assert seen["learned_sampling.py"].data == Path("some/robust")
    assert (tmp_path / "rows.md").read_text().startswith("# Reproductions")


def test_verdicts() -> None:
    verdict = load("base").verdict
    assert "**holds**: +2.0" in verdict([1.9, 2.0, 2.1])
    assert "does not hold" in verdict([-1.9, -2.0, -2.1])
    # the interval is 4.30 / sqrt(3) standard deviations wide
    assert verdict([-1.0, 0.0, 1.0]) == "**not decided**: +0.0 ± 2.5 (3 pairs, 95 % interval)"
    assert verdict([1.0]).startswith("not decided")
    assert verdict([1e-3, -1e-3, 0.0]) == "**no difference** to within 0.05 (3 pairs)"


def test_pairs_agree_in_the_named_columns() -> None:
    rows = [{"m": m, "n": n, "seed": s, "x": 10 * n + s + (m == "a")} for m in "ab" for n in (1, 2) for s in (0, 1)]
    assert load("base").pairs(rows[:-1], "x", {"m": "a"}, {"m": "b"}, ("n", "seed")) == [1, 1, 1]
    assert load("base").pairs(rows, "x", {"m": "a"}, {"m": "b"}, ("seed",)) == [1, 1]


def test_figures_of_a_log_are_taken_over() -> None:
    module = load("gated_pruning")
    log = "0    1 dense                             98.61 % 0.0441 1.0000 [16, 16]\n" \
          "0  0.5 Torch-Pruning: Taylor, global     97.50 % 0.0812 0.5004 [9, 12]\n"  # fmt: skip
    found = module.from_log(log)[0]
    assert found[1] == {
        "method": "Torch-Pruning: Taylor, global", "target": 0.5, "accuracy": 97.5, "loss": 0.0812, "share": 0.5004,
    }  # fmt: skip
    assert "98.61" in module.table({"rows": [{"seed": 0, "networks": found}]})


def test_table_of_the_learned_sampling_is_taken_over() -> None:
    module = load("learned_sampling")
    text = (
        "to learn from\n\n          right %  no local        AUC@10\nuniform, all    3.8      32.2  87.7 +- 0.8\n\nend"
    )
    assert module.printed_table(text) == [
        ["", "right %", "no local", "AUC@10"],
        ["uniform, all", "3.8", "32.2", "87.7 +- 0.8"],
    ]
    table = [["", "no local", "AUC@10"], ["Lowe's ratio, times 10", "80.2", "95.8 +- 0.9"],
             ["Lowe's ratio, times 20", "87.7", "96.6 +- 0.3"], ["Lowe's ratio, times 10, 10000", "1", "99.0"],
             ["learned end to end, times 0.5", "83.6", "92.0 +- 1.0"]]  # fmt: skip
    (claim,) = module.learned_claims(table)
    # 4.30 sqrt((0.3^2 + 1) / 3) = 2.6
    assert claim.text == "sampling learned end to end, times 0.5 is better than Lowe's ratio, times 20"
    assert claim.verdict.startswith("**does not hold**: -4.6 ± 2.6")
    with pytest.raises(OSError, match="no table"):
        module.printed_table("nothing")


def test_diffsort_is_the_same_function(tmp_path: Path) -> None:
    pytest.importorskip("diffsort")
    module = load("sort_numbers")
    options = module.options(["--quick", "--out", str(tmp_path)])
    experiment = module.Experiment(options)
    for swap in module.SWAPS:
        row = experiment.agreement(swap, 6)
        assert row["loss"] < 1e-10
        assert row["gradient"] < 1e-10
