"""diagnostics.compare: its figures are right, it ranks estimators as research/estimators.md 5.1 does, it draws."""

import builtins
import functools
import itertools
import math
import re

import pytest
import torch

import difflayers as dl
from difflayers import diagnostics
from difflayers.diagnostics import Report, Row, compare
from difflayers.estimators import RLOO, Exact
from tests.tolerances import assert_near

F64 = torch.float64
hard = functools.partial(dl.gumbel_softmax, temperature=0.5, hard=True)


def polynomial(power, latents=4, n=4, seed=0):
    """The loss of table 5.1: sum_k (w_k . z_k - b_k)^p, coupled between the latents."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(latents, latents, n, dtype=F64, generator=generator) / latents**0.5
    b = torch.randn(latents, dtype=F64, generator=generator)

    def loss(z):
        return ((torch.einsum("kln,ln->k", weight, z) - b) ** power).sum()

    return loss, torch.randn(latents, n, dtype=F64, generator=generator)


def test_order_on_quadratics():
    """ReinMax at temperature 1 and RLOO: no bias; the others: as much as in the table; RLOO and low temperature pay."""
    loss, logits = polynomial(2)
    estimators = {
        "st": dl.straight_through,
        "gs1": functools.partial(dl.gumbel_softmax, temperature=1.0, hard=True),
        "gs.5": hard,
        "gs.1": functools.partial(dl.gumbel_softmax, temperature=0.1, hard=True),
        "reinmax": dl.reinmax,
        "reinmax1.5": dl.ReinMax(1.5),
        "rloo": RLOO(2),
    }
    if hasattr(dl.estimators, "gumbel_rao"):
        estimators["rao.5"] = functools.partial(dl.estimators.gumbel_rao, temperature=0.5)
    generator = torch.Generator().manual_seed(0)
    report = compare(loss, logits, estimators, samples=10_000, generator=generator)
    row = report.__getitem__
    assert not row("reinmax").significant
    assert not row("rloo").significant
    for name in ("st", "gs1", "gs.5", "reinmax1.5"):
        assert row(name).significant, name
    assert row("st").bias > row("gs.5").bias > 0.1
    assert row("gs1").bias > row("gs.5").bias
    assert row("st").std < row("gs1").std < row("gs.5").std < row("gs.1").std
    assert row("st").std < row("reinmax").std < row("rloo").std
    assert row("reinmax").rmse < row("gs.1").rmse
    if "rao.5" in estimators:  # the same expectation with less noise
        assert row("rao.5").bias == pytest.approx(row("gs.5").bias, abs=4 * row("gs.5").standard_error)
        assert row("rao.5").std < 0.95 * row("gs.5").std
    assert row("reinmax").cosine > 0.999
    assert row("st").evaluations == 1
    assert row("rloo").evaluations == 2
    assert all(r.seconds > 0 for r in report.rows)


def test_reinmax_is_biased_on_cubics():
    loss, logits = polynomial(3)
    report = compare(loss, logits, {"reinmax": dl.reinmax, "rloo": RLOO(4)}, samples=10_000)
    assert report["reinmax"].significant
    assert not report["rloo"].significant


@pytest.mark.parametrize("chunk", [1, 7, None])
def test_figures_are_those_of_the_gradients(chunk):
    """An estimator whose gradients are known: exact + noise of known mean and covariance."""
    weight = torch.tensor([[0.5, -1.0, 2.0]], dtype=F64)
    logits = torch.tensor([[0.1, 0.4, -0.3]], dtype=F64)
    exact = (torch.diag_embed(logits.softmax(-1)) - logits.softmax(-1).mT @ logits.softmax(-1))[0] @ weight[0]
    noises = 0.3 + torch.randn(200, 3, dtype=F64)
    stream = iter(noises)

    def estimator(logits, *, dim, generator):
        # <sample, weight> has the gradient exact + noise
        count = 1 if logits.dim() == 2 else len(logits)
        noise = torch.stack([next(stream) for _ in range(count)]).reshape(logits.shape)
        soft = logits.softmax(-1)
        return soft + ((logits - logits.detach()) * noise).sum(-1, keepdim=True) * weight / weight.square().sum()

    report = compare(lambda z: (z * weight).sum(-1), logits, {"known": estimator}, samples=200, chunk=chunk)
    row, norm = report["known"], exact.norm()
    assert_near(report.exact[0], exact, order=1)
    variance = noises.var(0).sum()
    figures = torch.tensor([row.bias, row.std, row.standard_error, row.rmse, row.cosine], dtype=F64)
    mean = noises.mean(0) + exact
    expected = [
        noises.mean(0).norm() / norm,
        variance.sqrt() / norm,
        (variance / 200).sqrt() / norm,
        noises.square().sum(1).mean().sqrt() / norm,
        (mean @ exact) / (mean.norm() * norm),
    ]
    assert_near(figures, torch.stack(expected), order=1)
    assert row.significant


def test_the_standard_error_is_that_of_the_bias():
    """An unbiased estimator's bias comes out at about its standard error, and shrinks with it."""
    loss, logits = polynomial(3, latents=2)
    ratios = []
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        row = compare(loss, logits, {"rloo": RLOO(2)}, samples=500, generator=generator)["rloo"]
        ratios.append(row.bias / row.standard_error)
    assert 0.5 < sum(ratios) / len(ratios) < 1.5
    assert all(r < 3 for r in ratios)


def bernoulli_straight_through(logits, *, generator=None):
    probability = logits.sigmoid()
    z = torch.bernoulli(probability.detach(), generator=generator)
    return z + (probability - probability.detach())


def test_bernoulli():
    logits = torch.tensor([0.3, -1.0, 0.8, torch.inf], dtype=F64)
    weight = torch.randn(4, 4, dtype=F64)

    def loss(z):
        return (z @ weight).sin().sum()

    expected = 0.0
    leaf = logits.clone().requires_grad_()
    for state in itertools.product((0.0, 1.0), repeat=3):
        z = torch.tensor([*state, 1.0], dtype=F64)
        expected = expected + torch.where(z.bool(), leaf.sigmoid(), 1 - leaf.sigmoid()).prod() * loss(z)
    (expected,) = torch.autograd.grad(expected, leaf)
    report = compare(
        loss, logits, {"rloo": RLOO(3), "st": bernoulli_straight_through}, kind="bernoulli", samples=5000,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert_near(report.exact, expected, order=1)
    assert not report["rloo"].significant
    assert report["st"].significant
    # linear losses: straight-through is exact
    report = compare(lambda z: z @ weight[0], logits, {"st": bernoulli_straight_through}, kind="bernoulli", samples=500)
    assert not report["st"].significant


@pytest.mark.parametrize("k", [1, 2, 3])
def test_subsets(k):
    n = 4
    logits = torch.randn(2, n, dtype=F64)
    weight = torch.randn(n, n, dtype=F64)

    def loss(z):
        return torch.einsum("bi,ij,bj->b", z, weight, z) + z[:, 0]

    leaf = logits.clone().requires_grad_()
    members = torch.tensor([[i in s for i in range(n)] for s in itertools.combinations(range(n), k)], dtype=F64)
    weights = (leaf @ members.mT).softmax(-1)
    expected = sum((weights[:, s] * loss(members[s].expand(2, n))).sum() for s in range(len(members)))
    (expected,) = torch.autograd.grad(expected, leaf)

    def marginals(logits, size, *, dim, generator):
        """The exact marginals: exact for linear losses."""
        assert size == k
        assert dim == -1
        return (logits @ members.mT).softmax(-1) @ members

    generator = torch.Generator().manual_seed(0)
    estimators = {"rloo": RLOO(2), "marginals": marginals}
    report = compare(loss, logits, estimators, kind=k, samples=3000, generator=generator)
    assert_near(report.exact, expected, order=1)
    assert not report["rloo"].significant
    assert report["marginals"].std < 1e-6
    linear = compare(lambda z: (z * weight[0]).sum(-1), logits, {"marginals": marginals}, kind=k, samples=2)
    assert linear["marginals"].bias < 1e-10


def test_masks_dims_and_leading_losses():
    """The gradient of the summed losses, whatever the layout; masked entries take no part."""
    weight = torch.randn(3, 4, dtype=F64)
    logits = torch.randn(5, 3, 4, dtype=F64)
    logits[:, 0, 1] = -math.inf

    def loss(z):
        return (z * weight).sum((-1, -2)) ** 2

    estimators = {"reinmax": dl.reinmax, "module": dl.ReinMax(dim=-1), "rloo": RLOO(2)}
    report = compare(loss, logits, estimators, samples=1000)
    assert (report.exact[:, 0, 1] == 0).all()
    assert not any(row.significant for row in report.rows)
    moved = compare(lambda z: loss(z.movedim(1, -1)), logits.movedim(-1, 1), estimators, samples=1000, dim=1)
    assert_near(moved.exact.movedim(1, -1), report.exact, order=1)
    assert not any(row.significant for row in moved.rows)


def test_the_same_generator_gives_the_same_figures():
    loss, logits = polynomial(2)
    estimators = {"reinmax": dl.reinmax, "rloo": RLOO(2)}
    one, two = (
        compare(loss, logits, estimators, samples=100, generator=torch.Generator().manual_seed(4)) for _ in range(2)
    )
    assert [r.bias for r in one.rows] == [r.bias for r in two.rows]


def test_losses_without_derivative():
    """Sampling estimators get the zero gradient that they have there; RLOO does not need the derivative."""
    logits = torch.randn(3, dtype=F64)
    report = compare(lambda z: (z.argmax(-1) >= 1).double(), logits, {"st": dl.reinmax, "r": RLOO(4)}, samples=500)
    assert report["st"].bias == pytest.approx(1.0)
    assert report["st"].cosine == 0.0
    assert not report["r"].significant


def test_defaults_are_all_that_apply():
    loss, logits = polynomial(2, latents=2, n=3)
    report = compare(loss, logits, samples=50)
    names = {row.name for row in report.rows}
    assert {"straight_through", "gumbel_softmax(1, hard)", "gumbel_softmax(0.5, hard)", "reinmax"} <= names
    assert {"RLOO(2)", "RLOO(4)"} <= names
    for kind in ("bernoulli", 2):
        names = {row.name for row in compare(loss, logits, samples=50, kind=kind).rows}
        assert {"RLOO(2)", "RLOO(4)"} <= names


def test_random_and_plain_losses():
    """Noise inside the loss differs between samples; a loss that vmap does not allow works with chunk=1."""
    logits = torch.randn(2, dtype=F64)

    def noisy(z):
        return (z * torch.randn_like(z)).sum() + z[0]

    report = compare(noisy, logits, {"reinmax": dl.reinmax}, samples=200)
    assert report["reinmax"].std > 0

    def plain(z):
        return z[0] if z.sum().item() > 0 else z[1]

    with pytest.raises(dl.UnsupportedOperationError, match="chunk=1"):
        compare(plain, logits, {"reinmax": dl.reinmax}, samples=20)
    assert compare(plain, logits, {"reinmax": dl.reinmax}, samples=20, chunk=1)["reinmax"].evaluations == 1


def test_progress():
    said = []
    loss, logits = polynomial(2, latents=1)
    compare(loss, logits, {"a": dl.reinmax}, samples=25, chunk=10, progress=lambda *what: said.append(what))
    assert said == [("a", 10, 25), ("a", 20, 25), ("a", 25, 25)]


ROWS = [
    Row("short", 0.01, 0.02, 1.5, 1.5, 0.9999, 1, 2e-5),
    Row("a long name", 0.5, 0.02, 0.5, 0.7, 0.9, 4, 1e-5),
]


def test_table():
    report = Report(ROWS, torch.zeros(3), 1000)
    lines = str(report).splitlines()
    assert lines[0].split() == ["estimator", "bias", "error", "std", "rmse", "cosine", "losses", "time"]
    assert lines[1].split() == ["short", "(0.010)", "0.020", "1.50", "1.50", "1.000", "1", "2.0x"]
    assert lines[2].split()[3:] == ["0.500", "0.020", "0.50", "0.70", "0.900", "4", "1.0x"]
    assert len(set(map(len, lines[:3]))) == 1  # aligned
    assert "1000 gradients" in lines[3]
    markdown = report.to_markdown().splitlines()
    assert {line.count("|") for line in markdown[:4]} == {9}
    assert re.fullmatch(r"\|---\|(---:\|){7}", markdown[1])
    assert markdown[3].startswith("| a long name | 0.500 | 0.020 |")
    assert report["short"] is ROWS[0]
    assert not ROWS[0].significant
    assert ROWS[1].significant
    assert Row("nan", math.nan, math.nan, 1, 1, 1, 1, 1).significant
    with pytest.raises(KeyError, match="no row 'other', only"):
        report["other"]
    assert repr(report) == "Report(['short', 'a long name'], samples=1000)"


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    report = Report(ROWS, torch.zeros(3), 1000)
    figure = report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = figure.axes
    assert {text.get_text() for text in axes.texts} == {"short", "a long name"}
    assert {text.xy for text in axes.texts} == {(1.5, 0.01), (0.5, 0.5)}
    own = Figure()
    panel = own.subplots()
    assert report.plot(panel) is own
    assert len(panel.texts) == 2
    assert report.plot().axes
    # an estimator without variance has no place on a logarithmic axis
    assert Report([Row("exact", 0, 0, 0, 0, 1, 1, 1)], torch.zeros(3), 2).plot().axes[0].get_xscale() == "linear"


def test_plot_without_matplotlib(monkeypatch):
    real = builtins.__import__

    def missing(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"needs matplotlib: pip install 'difflayers\[examples\]'"):
        Report(ROWS, torch.zeros(3), 1000).plot()


def total(z):
    return z.square().sum() + z[..., 0].sum()


X = torch.zeros(3, 4)
E = {"reinmax": dl.reinmax}
BAD = [
    (TypeError, r"argument 'logits' must be a torch.Tensor", lambda: compare(total, [1.0], E)),
    (TypeError, r"argument 'loss_fn' must be a function", lambda: compare(None, X, E)),
    (TypeError, r"argument 'estimators' must be a dict.*got list", lambda: compare(total, X, [dl.reinmax])),
    (TypeError, r"argument 'estimators' must be a dict.*got an empty one", lambda: compare(total, X, {})),
    (ValueError, r"argument 'estimators' must not hold Exact.*'e'", lambda: compare(total, X, {"e": Exact()})),
    (TypeError, r"argument 'estimator' must be a function or an inst", lambda: compare(total, X, {"r": dl.ReinMax})),
    (ValueError, r"argument 'samples' must be at least 2, got 1", lambda: compare(total, X, E, samples=1)),
    (ValueError, r"argument 'chunk' must be at least 1, got 0", lambda: compare(total, X, E, chunk=0)),
    (ValueError, r"argument 'kind' must be 'one_hot', 'bernoulli', or the integer k.*got 'two'",
     lambda: compare(total, X, E, kind="two")),
    (TypeError, r"argument 'kind' must be.*got True", lambda: compare(total, X, E, kind=True)),
    (ValueError, r"argument 'kind' must be in \[0, 4\], got 5", lambda: compare(total, X, E, kind=5)),
    (ValueError, r"argument 'logits' must have at most max_states = 65536 subsets of k = 15.*got 155117520",
     lambda: compare(total, torch.zeros(30), E, kind=15)),
    (ValueError, r"argument 'loss_fn' must have an exact gradient that is neither 0",
     lambda: compare(lambda z: z.sum(), X, E)),
    (ValueError, r"argument 'loss_fn' must return a scalar or", lambda: compare(lambda z: z, X, E)),
    (ValueError, r"argument 'estimators' must return samples in the shape of the logits, \(\d+, 3, 4\), got float",
     lambda: compare(total, X, {"e": lambda logits, generator: 1.0}, kind="bernoulli", samples=3)),
    (ValueError, r"argument 'estimators' must choose k = 2 elements, as kind says, got a Wrong of k = 3",
     lambda: compare(total, X, {"e": Wrong()}, kind=2, samples=3)),
]  # fmt: skip


class Wrong(torch.nn.Module):
    k = 3


@pytest.mark.parametrize(("error", "shown", "call"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_input(error, shown, call):
    with pytest.raises(error, match=rf"^difflayers\.diagnostics\.compare: {shown}") as caught:
        call()
    assert "\n" not in str(caught.value)


def test_public_names():
    assert set(diagnostics.__all__) == {"Report", "Row", "compare"}


def test_order_on_subsets():
    """Table 5.2: SIMPLE is exact on linear losses; elsewhere biased, as relaxed Gumbel top-k is, at less variance."""
    weight, b = torch.randn(8, 8, dtype=F64), torch.randn(8, dtype=F64)
    logits = torch.randn(8, dtype=F64)
    linear = compare(lambda z: (z @ weight).sum(), logits, kind=3, samples=200)
    assert not linear["simple"].significant
    assert linear["simple"].std < 1e-6
    square = compare(lambda z: ((z @ weight - b) ** 2).sum(), logits, kind=3, samples=4000)
    relaxed = square["gumbel_topk(0.5, hard)"]
    assert square["simple"].rmse < relaxed.rmse
    assert square["simple"].std < relaxed.std
    assert square["simple"].significant
    assert not square["RLOO(4)"].significant
