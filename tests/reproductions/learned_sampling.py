"""Generalized RANSAC on real image pairs: which samples to draw, and how to score what they give.

Relative pose from five matches on scenes that were photographed for stereo (castle to learn from, Herz-Jesus to judge
by), the true poses from a laser scanner. The samplers: uniform, Lowe's ratio as logits (times 10 and 20), PROSAC by the
ratio; the scores: inlier count, MSAC, MAGSAC++, Gaussian and uniform mixture; few samples for each pair and five times
as many, without local optimisation in the search (what it finds is refined on its inliers, as always). Learned sampling
(Wei et al., arXiv 2212.13185) is examples/learned_ransac.py: its table is taken over from what the command prints, or
from a file that has its output (--learned FILE).

Without --data, pairs are made up.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from base import ROOT, Claim, Row, Store, load, main, markdown, pairs, parse, parser, shown, values, verdict
from image_pairs import Pairs, load_pairs, synthetic_pairs
from scipy import stats
from torch import Tensor
from tqdm import tqdm

import difflayers as dl

EXPERIMENT = "learned_sampling"
SCORERS = {
    "inlier count": dl.ransac.InlierCount, "MSAC": dl.ransac.MSAC, "MAGSAC++": dl.ransac.MAGSAC,
    "Gaussian + uniform": dl.ransac.GaussianUniform,
}  # fmt: skip
UNIFORM, PROSAC = "uniform", "PROSAC by the ratio"
SAMPLERS = (UNIFORM, "ratio, times 10", "ratio, times 20", PROSAC)
SEEDS_LEARNED = 3
COMMAND = ["examples/learned_ransac.py", "--every", "1", "--seeds", str(SEEDS_LEARNED), "--searches", "2"]


def logits(sampler: str, ratios: Tensor) -> Tensor | None:
    """What the layer draws by; PROSAC only looks at the order."""
    return {UNIFORM: None, "ratio, times 20": -20 * ratios}.get(sampler, -10 * ratios)


def judge(data: Pairs, sampler: str, scorer: str, samples: int, seed: int) -> Row:
    """Area under the recall of pose errors, exact, %."""
    layer = dl.ransac.RANSAC(
        dl.ransac.EssentialMatrix(), threshold=1 / data.focal, scorer=SCORERS[scorer](), max_iterations=samples,
        sampler=dl.ransac.PROSAC() if sampler == PROSAC else None, local=None,
    ).eval()  # fmt: skip
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        result = layer(data.points, logits(sampler, data.ratios), generator=generator)
        pose = dl.ransac.recover_pose(result.model, data.points, result.inliers)
    errors = dl.ransac.pose_error(pose.rotation, pose.translation, data.rotations, data.translations).largest
    return {f"AUC@{at}": round(100 * float(dl.ransac.auc_exact(errors, at)), 3) for at in (5, 10, 20)}


def printed_table(text: str) -> list[list[str]]:
    """The lines of the table that the example prints: the one with AUC@10 in its head, up to an empty line."""
    lines = text.splitlines()
    at = next((i for i, line in enumerate(lines) if "AUC@10" in line and line.startswith(" ")), None)
    if at is None:
        raise OSError("the output of examples/learned_ransac.py has no table with AUC@10 in its head")
    end = next((i for i in range(at, len(lines)) if not lines[i].strip()), len(lines))
    head = ["", *re.split(r"\s{2,}", lines[at].strip())]
    return [head, *([*re.split(r"\s{2,}", line.strip())] for line in lines[at + 1 : end])]


def learned(options: Namespace) -> Row:
    """The example's table."""
    if options.learned:
        return {"table": printed_table(options.learned.read_text())}
    command = [sys.executable, *COMMAND, "--out", str(options.out / "pictures")]
    command += ["--data", str(options.data)] if options.data else []
    command += ["--quick", "--seeds", "1"] if options.quick else []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(COMMAND)} failed: {done.stderr.strip().splitlines()[-1:]}")
    return {"table": printed_table(done.stdout)}


def table(content: Row) -> str:
    """AUC@10 of each sampler and score, and the table of the learned sampling."""
    rows = [row for row in content["rows"] if row["kind"] == "fixed"]
    budgets = sorted({row["samples"] for row in rows})
    lines = []
    for sampler in dict.fromkeys(row["sampler"] for row in rows):
        for samples in budgets:
            cells = [
                shown(values(rows, "AUC@10", sampler=sampler, scorer=scorer, samples=samples)) for scorer in SCORERS
            ]
            lines.append([sampler, str(samples), *cells])
    parts = ["AUC@10 without local optimisation, %:\n\n" + markdown(["sampler", "samples", *SCORERS], lines)]
    other = next((row["table"] for row in content["rows"] if row["kind"] == "learned"), None)
    if other is None:
        parts.append("The learned sampling has not been run for this page: `python examples/learned_ransac.py`.")
    else:
        width = max(map(len, other))
        body = [[*line, *[""] * (width - len(line))] for line in other]
        parts.append(f"Learned sampling, as printed by `python {' '.join(COMMAND)}`:\n\n" + markdown(body[0], body[1:]))
    return "\n\n".join(parts)


def claims(content: Row) -> list[Claim]:
    """Of the scores; what is learned is judged by the example's own table."""
    rows = [row for row in content["rows"] if row["kind"] == "fixed"]

    def against(better: Row, worse: Row) -> str:
        return verdict(pairs(rows, "AUC@10", better, worse, ("seed",)), " points of AUC@10")

    said = (
        ("guided sampling (ratio, times 20) is better than uniform", "ratio, times 20", UNIFORM),
        ("PROSAC is better than drawing by the ratio (times 20)", PROSAC, "ratio, times 20"),
    )
    result = [Claim(text, against({"sampler": a}, {"sampler": b})) for text, a, b in said]
    result += [
        Claim(f"{a} is better than {b}", against({"scorer": a}, {"scorer": b}))
        for a, b in (("MSAC", "inlier count"), ("MAGSAC++", "MSAC"), ("MAGSAC++", "Gaussian + uniform"))
    ]
    table = next((row["table"] for row in content["rows"] if row["kind"] == "learned"), None)
    if table is None:
        return result
    prosac = values(rows, "AUC@10", sampler=PROSAC, scorer="MSAC", samples=64)
    return result + learned_claims(table) + against_prosac(table, prosac)


def against_prosac(table: list[list[str]], prosac: Sequence[float]) -> list[Claim]:
    """The example prints no deviation of what is without local optimisation, so that there is nothing to test by."""
    alone = [line[table[0].index("no local")] for line in table if line[0].startswith("learned")]
    if not alone or not prosac:
        return []
    best = max(figure(cell)[0] for cell in alone)
    text = "learned sampling is better than PROSAC by the ratio (64 samples, no local optimisation)"
    return [Claim(text, f"not tested: {best:.1f} against {shown(prosac)} of AUC@10")]


def learned_claims(table: list[list[str]]) -> list[Claim]:
    """The learned sampling against what needs no learning, by means and deviations of the example's table."""
    column = table[0].index("AUC@10")
    alone = [line for line in table if line[0] == "learned end to end, times 0.5"]
    mixed = [line for line in table if line[0] == "learned, mixed with the ratio"]
    pairs = [
        (ours, text)
        for ours, texts in ((alone, ("Lowe's ratio", "classification")), (mixed, ("Lowe's ratio", "both of these")))
        for text in texts
    ]
    result = []
    for (ours, *_), text in ((ours, text) for ours, text in pairs if ours):
        lines = [line for line in table if line[0].startswith(text) and "000" not in line[0]]  # not of 10,000 samples
        if not lines:
            continue
        best = max(lines, key=lambda line: figure(line[column])[0])
        (a, s), (b, t) = figure(ours[column]), figure(best[column])
        # Welch's interval, with the fewer degrees of freedom of the two
        half = float(stats.t.ppf(0.975, SEEDS_LEARNED - 1)) * math.hypot(s, t) / math.sqrt(SEEDS_LEARNED)
        word = "holds" if a - b > half else "does not hold" if b - a > half else "not decided"
        verdict = f"**{word}**: {a - b:+.1f} ± {half:.1f} points of AUC@10 ({SEEDS_LEARNED} seeds, 95 % interval)"
        untrained = "the ratio mixed with itself (times 10 and 20), which needs no learning"
        name = best[0].replace("both of these, mixed", untrained)
        result.append(Claim(f"sampling {ours[0]} is better than {name}", verdict))
    return result


def figure(cell: str) -> tuple[float, float]:
    """Mean and standard deviation as printed."""
    numbers = [float(x) for x in re.findall(r"-?\d+\.?\d*", cell.replace("+-", "±").replace("±", " "))]
    return numbers[0], numbers[1] if len(numbers) > 1 else 0.0


def run(options: Namespace) -> str:
    """Everything that is not there yet."""
    data = load_pairs(options.data, "herzjesu") if options.data else synthetic_pairs(160, 1000, 2)
    data = data.part(slice(None, None, options.every))
    settings = {
        "data": str(options.data and options.data.name),
        "pairs": len(data.points),
        "budgets": options.budgets,
        "local": None,
    }
    store = Store(options, EXPERIMENT, settings)
    jobs = [
        (seed, samples, sampler, scorer)
        for seed in range(options.seeds) for samples in options.budgets for sampler in SAMPLERS for scorer in SCORERS
    ]  # fmt: skip
    for seed, samples, sampler, scorer in tqdm(jobs, desc="rows", dynamic_ncols=True, disable=None):

        def compute(seed: int = seed, samples: int = samples, sampler: str = sampler, scorer: str = scorer) -> Row:
            return judge(data, sampler, scorer, samples, seed)

        key = {"kind": "fixed", "sampler": sampler, "scorer": scorer, "samples": samples, "seed": seed}
        store.row(key, compute)
    if not options.skip_learned:
        store.row({"kind": "learned"}, lambda: learned(options))
    content = load(options.out, EXPERIMENT)
    assert content is not None
    return table(content)


def options(argv: Sequence[str] | None) -> Namespace:
    folder = "folder of two_view_castle.npz and two_view_herzjesu.npz"
    arguments = parser("learned_sampling.py", __doc__, seeds=3, data=folder)
    arguments.add_argument("--budgets", type=int, nargs="+", default=[64, 320], help="samples for each pair")
    arguments.add_argument("--every", type=int, default=1, help="takes every so-many-th held-out pair")
    arguments.add_argument("--learned", type=Path, metavar="FILE", help="what examples/learned_ransac.py has printed")
    arguments.add_argument("--skip-learned", action="store_true", help="leaves the learned sampling out for now")
    return parse(arguments, argv, seeds=1, every=10)


if __name__ == "__main__":
    sys.exit(main("learned_sampling.py", options(None), run))
