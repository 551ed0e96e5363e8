"""Writes the page docs/reproductions.md from the results in docs/reproductions, or that of another folder.

    python tests/reproductions/write_page.py

Tables and verdicts are computed from the rows. What is text here is what the papers report, and where our settings
differ from theirs; no figure of ours is typed by hand.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import error_free_swaps
import gated_pruning
import learned_sampling
import reinmax_autoencoders
import reinmax_polynomials
import sort_numbers
import surco_routes
from base import NOT_RUN, ROOT, Claim, Row, load, markdown


class Section(NamedTuple):
    """An experiment on the page."""

    module: ModuleType
    title: str
    task: str  # and settings
    published: str
    differences: str


SECTIONS = (
    Section(
        sort_numbers,
        "Sorting numbers: swaps, diffsort, NeuralSort, SoftSort",
        "n images of four-digit numbers, composed from the real MNIST test images (8,000 to train on, 1,000 to choose"
        " the softness by, 1,000 to test on), are scored by a small CNN that is told nothing but their order. The "
        "network is odd-even, as published. All methods see the same sets, 192 images a step.",
        "The tables of the papers were not at hand; what could be read of them elsewhere, in public reviews: the "
        "optimal swap 31.8 % EM at n = 15 (Petersen et al., ICLR 2022, as quoted by Kim et al., ICLR 2024), cauchy "
        "85.1 ± 0.8 % at n = 5, NeuralSort 24.3 % and logistic 12.3 ± 10.2 % at n = 10 (Petersen et al., *Newton "
        "Losses*, NeurIPS 2024). The official code, `diffsort` from PyPI, is a row of the table; its examples use the"
        " default swap, cauchy, whatever `--distribution` says.",
        "The published trainings have 60,000 digits instead of 8,000, 100,000 steps of 100 sets instead of 400 of 192"
        " images, and a larger CNN. So our accuracies are lower throughout, and a method that learns faster is "
        "favoured over one that ends higher. The steepness of the papers is chosen for every n; here it was chosen "
        "once, at n = 9, from three values with one short run each: where it is at the edge of the grid, a claim is "
        "about that steepness and not about the swap. `diffsort` computes "
        "the same function as difflayers and sees the same sets from the same weights: the two rows of cauchy differ "
        "by rounding and by where the logarithm of a small probability is cut (1e-7 here, e^-100 there), and show how"
        " much chance there is in one run.",
    ),
    Section(
        error_free_swaps,
        "Error-free swaps, CNN and Transformer",
        "Fifteen numbers in a set, the optimal swap, data and budget as above. The Transformer "
        "(`difflayers.sorting.EquivariantScorer`, 3 layers of width 32) compares the features that the same CNN has "
        "of the images of a set.",
        "Kim et al., ICLR 2024, as quoted in a public review, EM at n = 15: relaxed 31.8 %, error-free 34.7 % with "
        "the CNN; 57.3 % and 74.3 % with the small Transformer, 67.8 % and 82.5 % with the large one.",
        "Budget and data as above: 400 steps are few for exact swaps, which have a gradient of more noise, and fewer "
        "still for a Transformer; the weight of the error-free term is 1 and was not tuned, nor were the two learning"
        " rates. So nothing is said here about long trainings. In the published code the Transformer's attention runs"
        " over the images of the whole batch, as it is built without `batch_first`; here it runs over the images of "
        "one set.",
    ),
    Section(
        reinmax_polynomials,
        "ReinMax: polynomial programming",
        "128 yes-or-no choices, E mean |z - 0.45|^p is to be minimised; 8,000 steps of Adam (1e-3), batches of 64, as"
        " in the official code.",
        "The paper shows curves and no figures. *Official* is its code (LiyuanLucasLiu/ReinMax 2367056, "
        "`poly/poly_programming.py`) run by us in full, one seed.",
        "None in the setting; the random numbers are others. The other powers and estimators, one seed each: "
        "[Benchmarks, Choosing](benchmarks-choosing.md#polynomial-programming).",
    ),
    Section(
        reinmax_autoencoders,
        "ReinMax: categorical autoencoders",
        "8 latents of 4 classes, 784-256-128-32 and back, batches of 100, the real MNIST test images (8,000 to train "
        "on); `examples/categorical_vae.py` is the training.",
        "Liu et al., NeurIPS 2023: ReinMax has the lowest training -ELBO of all estimators in the mean of six "
        "configurations. The table itself was not at hand.",
        "The paper trains on 60,000 binarised images for 160 epochs, with a learning rate, an optimiser and a "
        "temperature tuned for each estimator; here 8,000 grey images for a few epochs, Adam, two learning rates to "
        "choose from, and the paper's temperatures. So the figures in nats do not compare; the order of the "
        "estimators does.",
    ),
    Section(
        surco_routes,
        "SurCo: routes that arrive in time",
        "The stochastic shortest path of the paper: mean probability of arriving before the deadline, 25 random "
        "cities for each seed, 60 shortest-path solves for each method. *All routes* is the optimum, by enumeration "
        "of the 8,512 simple paths of a 5x5 grid. *Released code* is facebookresearch's, run by us on other cities.",
        "Ferber et al., ICML 2023, text of section 5: on 5x5 grids with means of 0.1 to 1, SurCo-zero is 4.5, 6.5 and"
        " 8.5 % above the heuristic (loose, normal, tight). There is no table.",
        "Other random cities. The paper's gains appear with the defaults of the released code, 10x10 and means up to "
        "0.2, and not with the setting that is printed. The paper does not compare with the route of least expected "
        "time, which is one solve. SurCo-zero keeps the best route seen here, as in the released code; the printed "
        "algorithm keeps the last.",
    ),
    Section(
        learned_sampling,
        "Generalized RANSAC on real image pairs",
        "Relative pose from five matches; Herz-Jesus, 221 pairs with 2,000 matches each, Lowe ratio below 0.97, "
        "threshold 1 pixel. What is learned is learned on the castle scene. Exact area under the recall of the pose "
        "error.",
        "Wei et al., ICCV 2023, report their learned sampling to be more accurate than the state of the art. Its "
        "tables and data (PhotoTourism, ScanNet, KITTI) were not at hand. Their published networks, run by us on 29 "
        "pairs of such scenes with 64 samples, exact solver, MSAC (AUC@5): uniform 56.5, ten times the ratio 86.1, "
        "their network after classification alone 94.4, after end-to-end training 92.5.",
        "Two scenes instead of the papers' data sets, a small network, and hundreds of steps of training. "
        "Shekhovtsov, arXiv 2512.19850, finds all scores equal, MAGSAC++ and the mixture of Gaussian and uniform in "
        "particular.",
    ),
    Section(
        gated_pruning,
        "Trainable gates: accuracy against FLOPs",
        "A ResNet of 8 layers on scikit-learn's digits, half of them to train on, exact budgets, the same surgery, "
        "FLOPs counter and number of epochs for all methods (`tests/benchmarks/bench_pruning.py`).",
        "Kim et al., arXiv 1904.10921, first version's abstract: ResNet-56 on CIFAR-10 at half of the FLOPs without "
        "loss of accuracy. The tables of the AAAI paper were not at hand, and there is no official code.",
        "CIFAR-10 was not at hand and ResNet-56 is beyond two cores; digits are an easier task, on which all methods "
        "are close to the dense network until little is left of it. `examples/prune_resnet.py --data` takes CIFAR-10.",
    ),
)

HEAD = """# Reproductions

Published experiments, run with this library, beside the papers' figures or those of the official code. `make reproduce`
runs them all into `out/reproductions` (hours; an interruption costs one row), `make reproduce ARGS=--quick` in minutes;
`ARGS="--data DIR"` names the folder of the real data, which the runs on this page had; the settings of each section
are those of its rows, not all of them defaults. The rows behind this page are in `docs/reproductions/*.json` with
settings, seeds, machine and versions; `tests/reproductions/write_page.py` makes tables and verdicts of them.

The runs on this page had about an hour of one core of a busy machine in all, far below the papers' budgets; where
figures are lower for that reason, it is said. ± is the standard deviation over the seeds. A claim is tested by
Student's test on paired runs (means over the seeds of a size where sizes differ, over the targets of a seed where
targets do): it **holds**, **does not hold**, or is **not decided** at 95 %. A claim that does
not hold here, or is not decided, may be true at the papers' budget. Seeds were added as long as there was time, so that
some rows have more than others.
"""


def summary(found: Sequence[tuple[Section, list[Claim]]]) -> str:
    """How many claims hold, and those that do not."""
    every = [claim for _, claims in found for claim in claims]
    against = [(section, claim) for section, claims in found for claim in claims if "does not hold" in claim.verdict]
    held = sum("**holds" in claim.verdict for claim in every)
    same = sum("no difference" in claim.verdict for claim in every)
    untested = sum("not tested" in claim.verdict for claim in every)
    rest = len(every) - held - len(against) - same - untested
    lines = [f"Of {len(every)} claims, in our runs {held} hold, {len(against)} do not, {rest} are not decided, {same} "
             f"shows no difference, and {untested} was not tested."]  # fmt: skip
    if against:
        lines += ["", "Those that do not hold in our runs:", ""]
        lines += [f"- {section.title}: {claim.text}. {claim.verdict}." for section, claim in against]
    return "\n".join(lines)


def text_of(section: Section, content: Row, claims: Sequence[Claim]) -> str:
    """A section."""
    name = section.module.EXPERIMENT
    settings = ", ".join(f"{k} {v}" for k, v in content["settings"].items())
    parts = [f"## {section.title}", section.task, section.module.table(content)]
    if claims:
        parts.append(markdown(["claim", "here"], [[claim.text, claim.verdict] for claim in claims]))
    parts += [f"**Published.** {section.published}", f"**Why the figures differ.** {section.differences}"]
    parts.append(f"Rows by `python tests/reproductions/{name}.py`; {settings}; {'; '.join(content['machine'])}.")
    return "\n\n".join(parts)


def page(folder: Path) -> str:
    """The whole page; experiments without results are named."""
    found, missing = [], []
    for section in SECTIONS:
        content = load(folder, section.module.EXPERIMENT)
        if content is None:
            missing.append(f"`python tests/reproductions/{section.module.EXPERIMENT}.py`")
        else:
            claims = [claim for claim in section.module.claims(content) if claim.verdict != NOT_RUN]
            found.append((section, content, claims))
    parts = [HEAD.strip(), summary([(section, claims) for section, _, claims in found])]
    parts += [text_of(*triple) for triple in found]
    if missing:
        parts.append(f"Not run for this page: {', '.join(missing)}.")
    return "\n\n".join(parts) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = "folder of the JSON files; the page is beside it, with .md in the end"
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "reproductions", metavar="DIR", help=text)
    options = parser.parse_args(argv)
    path = options.results.with_name(f"{options.results.name}.md")
    path.write_text(page(options.results))
    print(f"Wrote {path}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
