"""Ranking losses against naive formulas on the full matrix, and against diffsort, SciPy and scikit-learn."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch

import difflayers as dl
from difflayers.losses import (
    NDCGLoss,
    PermutationCrossEntropy,
    SpearmanLoss,
    TopKCrossEntropy,
    permutation_cross_entropy,
)

B, N = 4, 6
K = [0.4, 0.1, 0.3, 0.2]
CASES = {  # name -> (module, kind of label)
    "binary": (PermutationCrossEntropy, "order"),
    "categorical": (lambda **s: PermutationCrossEntropy(kind="categorical", **s), "order"),
    "spearman": (SpearmanLoss, "ranks"),
    "ndcg": (NDCGLoss, "relevance"),
    "ndcg@3": (lambda **s: NDCGLoss(3, **s), "relevance"),
    "topk": (lambda **s: TopKCrossEntropy(K, **s), "class"),
    "topk network": (lambda **s: TopKCrossEntropy(K, top1="network", **s), "class"),
    "topk candidates": (lambda **s: TopKCrossEntropy(K, candidates=5, **s), "class"),
}
each_loss = pytest.mark.parametrize("name", CASES)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def labels(kind, target, mask=None):
    """A label of this kind for a target (or, where masked, for its present elements)."""
    target = target if mask is None else torch.where(mask, target, torch.inf)
    if kind == "order":
        return target.argsort(-1)
    if kind == "ranks":
        return target.argsort(-1).argsort(-1) + 1
    if kind == "relevance":
        return torch.where(target.isfinite(), target.argsort(-1).argsort(-1) % 4, 0)
    return target.argmin(-1)


def problem(name, *, dtype=torch.float64, mask=None, **settings):
    make, kind = CASES[name]
    return make(**settings), random(B, N, dtype=dtype), labels(kind, random(B, N, seed=1, dtype=dtype), mask)


def naive(name, scores, label, **settings):
    """One loss per row from the full permutation matrix, row by row, in the formulas of the docstrings."""
    result = []
    for x, y in zip(scores, label, strict=True):
        if name in ("binary", "categorical"):
            P = dl.permutation(x, **settings)
            if name == "binary":
                truth = torch.nn.functional.one_hot(y, N).to(x.dtype)
                result.append(torch.nn.functional.binary_cross_entropy(P, truth))
            else:
                result.append(torch.nn.functional.nll_loss(P.log(), y))
        elif name == "spearman":
            ranks = dl.permutation(x, **settings).mT @ torch.arange(1.0, N + 1, dtype=x.dtype)
            result.append(1 - torch.corrcoef(torch.stack([ranks, y.to(x.dtype)]))[0, 1])
        elif name.startswith("ndcg"):
            k = 3 if "@" in name else N
            gains = 2.0 ** y.to(x.dtype) - 1
            discounts = torch.tensor([1 / math.log2(1 + i) for i in range(1, k + 1)], dtype=x.dtype)
            found = (dl.permutation(-x, **settings) @ gains)[:k]
            result.append(1 - found @ discounts / (gains.sort(descending=True).values[:k] @ discounts))
        else:
            if "candidates" in name:
                others = sorted(set(range(N)) - {int(y)}, key=lambda j: -x[j])[:4]
                x, y = x[[int(y), *others]], 0
            P = dl.permutation(x, **settings)
            total = 0 if "network" in name else K[0] * x.softmax(-1)[y]
            for k, p in enumerate(K, 1):
                if k > 1 or "network" in name:
                    total = total + p * P[-k:, y].sum()
            result.append(-torch.log(total * (1 - 2e-7) + 1e-7))
    return torch.stack(result)


@each_loss
@pytest.mark.parametrize("settings", [{}, {"network": "bitonic", "swap": "logistic", "steepness": 3.0}], ids=str)
def test_equals_the_naive_formula_and_its_gradient(name, settings):
    loss, scores, label = problem(name, reduction="none", **settings)
    a, b = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    actual, expected = loss(a, label), naive(name, b, label, **settings)
    torch.testing.assert_close(actual, expected)
    weights = random(B, seed=5)
    (actual * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(a.grad, b.grad)
    assert a.grad.abs().max() > 1e-3


@each_loss
def test_gradcheck(name):
    loss, scores, label = problem(name)
    scores = scores[:2].requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, label[:2]), scores)
    assert torch.autograd.gradgradcheck(lambda s: loss(s, label[:2]), scores)


@each_loss
def test_reductions(name):
    loss, scores, label = problem(name, reduction="none")
    rows = loss(scores, label)
    assert rows.shape == (B,)
    assert len(set(rows.tolist())) > 1
    mean, total = (CASES[name][0](reduction=r)(scores, label) for r in ("mean", "sum"))
    torch.testing.assert_close(mean, rows.mean())
    torch.testing.assert_close(total, rows.sum())


@each_loss
def test_batch_shapes(name):
    loss, scores, label = problem(name, reduction="none")
    rows = loss(scores, label)
    torch.testing.assert_close(loss(scores[0], label[0]), rows[0])
    grid = loss(scores.reshape(2, 2, N), label.reshape(2, 2, *label.shape[1:]))
    torch.testing.assert_close(grid, rows.reshape(2, 2))


@each_loss
def test_dim(name):
    loss, scores, label = problem(name, reduction="none", dim=-2)
    expected = CASES[name][0](reduction="none")(scores, label).reshape(2, 2)
    label = label.reshape(2, 2, *label.shape[1:])
    label = label.mT if label.dim() == 3 else label
    actual = loss(scores.reshape(2, 2, N).mT, label)
    torch.testing.assert_close(actual, expected)


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_rounded_once(name, dtype):
    loss, scores, label = problem(name, dtype=dtype)
    scores = (30 * scores).requires_grad_()
    actual = loss(scores, label)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, loss(scores.detach().float(), label).to(dtype), rtol=0, atol=0)
    actual.backward()
    assert scores.grad.dtype == dtype
    assert scores.grad.isfinite().all()


@each_loss
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_saturated_swaps_have_finite_loss_and_gradient(name, dtype, hard):
    """Scores in the wrong order under a swap that underflows: the matrix is exactly 0 where it should be 1."""
    make, kind = CASES[name]
    target = torch.arange(N, dtype=dtype).expand(B, N)
    scores = (-100 * target).requires_grad_()
    assert not dl.permutation(scores.detach().float(), swap="logistic", steepness=100.0)[0, 0, 0]
    loss = make(swap="logistic", steepness=100.0, hard=hard)(scores, labels(kind, target))
    loss.backward()
    assert loss.isfinite()
    assert loss > 0
    assert scores.grad.isfinite().all()


@each_loss
@pytest.mark.parametrize("value", [0.0, 7.0])
def test_equal_scores_have_a_finite_gradient_that_leads_downhill(name, value):
    make, kind = CASES[name]
    scores = torch.full((1, 8), value, dtype=torch.float64, requires_grad=True)
    label = labels(kind, random(1, 8, seed=1))
    loss = make()(scores, label)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert gradient.isfinite().all()
    assert gradient.any()
    assert make()(scores - 1e-4 * gradient / gradient.norm(), label) < loss


@each_loss
@pytest.mark.parametrize("garbage", [float("nan"), 1e30, -float("inf")])
@pytest.mark.parametrize("given", ["call", "constructor"])
def test_absent_places_hold_anything(name, garbage, given):
    mask = torch.tensor([[True] * 6, [True, False, True, False, True, True], [False, True] * 3, [True] * 5 + [False]])
    make, kind = CASES[name]
    _, scores, label = problem(name, mask=mask)
    settings, arguments = ({}, (mask,)) if given == "call" else ({"mask": mask}, ())
    loss = make(reduction="none", **settings)
    clean = scores.clone().requires_grad_()
    spoiled = torch.where(mask, scores, garbage).requires_grad_()
    other = label
    if kind == "order":  # what follows the present elements is ignored, even when it is no index
        occupied = torch.arange(N) < mask.sum(1, keepdim=True)
        other = torch.where(occupied, label, -77)
    elif kind in ("ranks", "relevance"):
        other = torch.where(mask, label, garbage)
    expected, actual = loss(clean, label, *arguments), loss(spoiled, other, *arguments)
    assert actual.isfinite().all()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    expected.sum().backward()
    actual.sum().backward()
    torch.testing.assert_close(spoiled.grad, clean.grad, rtol=0, atol=0)
    assert not spoiled.grad[~mask].any()
    assert spoiled.grad[mask].any()


@pytest.mark.parametrize("name", [name for name in CASES if name != "topk candidates"])
def test_a_masked_row_averages_over_its_present_elements(name):
    make, kind = CASES[name]
    mask = torch.tensor(
        [[True] * 6, [True, False, True, False, True, True], [True, True, False] * 2, [True] * 5 + [False]]
    )
    _, scores, label = problem(name, mask=mask)
    expected = []
    for x, y, present in zip(scores, label, mask, strict=True):
        count = int(present.sum())
        if kind == "order":
            P = dl.permutation(x, mask=present)[:count]
            truth = torch.nn.functional.one_hot(y[:count], N).to(x.dtype)[:, present]
            if name == "binary":
                expected.append(torch.nn.functional.binary_cross_entropy(P[:, present], truth))
            else:
                expected.append(-(P[:, present] * truth).sum(1).log().mean())
        elif kind == "ranks":
            pair = torch.stack([dl.rank(x, mask=present), y.to(x.dtype)])
            expected.append(1 - torch.corrcoef(pair[:, present])[0, 1])
        elif kind == "relevance":
            k = 3 if "@" in name else count
            gains = (2.0 ** y.to(x.dtype) - 1)[present]
            discounts = 1 / torch.arange(2, k + 2, dtype=x.dtype).log2()
            found = (dl.permutation(-x, mask=present)[:, present] @ gains)[:k]
            expected.append(1 - found @ discounts / (gains.sort(descending=True).values[:k] @ discounts))
        else:
            members = [dl.topk(x, k, mask=present).membership[y] for k in (1, 2, 3, 4)]
            if name == "topk":
                members[0] = torch.where(present, x, -torch.inf).softmax(-1)[y]
            total = sum(p * member for p, member in zip(K, members, strict=True))
            expected.append(-torch.log(total * (1 - 2e-7) + 1e-7))
    torch.testing.assert_close(make(reduction="none")(scores, label, mask), torch.stack(expected))


@each_loss
def test_rows_with_nothing_present(name):
    make, _ = CASES[name]
    mask = torch.tensor([True, True, False, True])[:, None].expand(B, N)
    _, scores, label = problem(name)
    scores = scores.requires_grad_()
    rows = make(reduction="none")(scores, label, mask)
    kept = make(reduction="none")(scores, label)
    torch.testing.assert_close(rows[mask[:, 0]], kept[mask[:, 0]])
    assert rows[2] == (1 if name == "spearman" else 0)
    rows.sum().backward()
    assert scores.grad.isfinite().all()
    assert not scores.grad[2].any()


@each_loss
def test_nan_scores_spoil_their_row_only(name):
    loss, scores, label = problem(name, reduction="none")
    expected = loss(scores, label)
    scores[1, 3] = torch.nan
    rows = loss(scores, label)
    assert rows[1].isnan()
    torch.testing.assert_close(rows[[0, 2, 3]], expected[[0, 2, 3]])


@each_loss
def test_transforms(name):
    loss, scores, label = problem(name)
    rows = CASES[name][0](reduction="none")(scores, label)
    torch.testing.assert_close(torch.func.vmap(loss)(scores, label), rows)
    gradient = torch.func.grad(loss)(scores, label)
    leaf = scores.clone().requires_grad_()
    loss(leaf, label).backward()
    torch.testing.assert_close(gradient, leaf.grad)


@pytest.mark.skipif(not dl.build_info()["compiled"], reason="the plain-PyTorch path builds its tables in numpy")
@each_loss
def test_compiles_without_graph_breaks(name):
    loss, scores, label = problem(name)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(scores, label), loss(scores, label))


@each_loss
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_compute_the_same(name, clone):
    loss, scores, label = problem(name, steepness=torch.tensor([[3.0]]))
    torch.testing.assert_close(clone(loss)(scores, label), loss(scores, label), rtol=0, atol=0)
    assert "tensor" not in repr(loss)
    assert "steepness=3" in repr(loss)
    assert "reduction='mean'" in repr(loss)


# permutation cross-entropy


@pytest.mark.parametrize("n", [2, 5, 8])
def test_equals_bceloss_on_diffsort(n):
    diffsort = pytest.importorskip("diffsort")
    scores, target = random(B, n, dtype=torch.float32), random(B, n, seed=1)
    _, theirs = diffsort.DiffSortNet("odd_even", n, steepness=5.0)(scores)  # transposed: [b, input, output]
    truth = torch.nn.functional.one_hot(target.argsort(-1), n).mT.float()
    expected = torch.nn.BCELoss()(theirs, truth)
    loss = PermutationCrossEntropy(network="odd_even", steepness=5.0)
    torch.testing.assert_close(loss(scores, target.argsort(-1)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["binary", "categorical"])
def test_exact_matrices(kind):
    order = torch.tensor([2, 0, 1])
    right = torch.nn.functional.one_hot(order, 3).float()
    assert permutation_cross_entropy(right, order, kind=kind) == 0
    wrong = torch.nn.functional.one_hot(order.roll(1), 3).float().requires_grad_()
    loss = permutation_cross_entropy(wrong, order, kind=kind)
    worst = -math.log(1e-7)  # where P is 0 but should be 1, and where it is 1 but should be 0
    torch.testing.assert_close(loss, torch.tensor(worst * 6 / 9 if kind == "binary" else worst))
    loss.backward()
    assert wrong.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["binary", "categorical"])
def test_mask_averages_over_present_places_only(kind):
    P = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([True, False, True, True])
    order = torch.tensor([3, 0, 2, 1])  # the last entry is ignored
    P[3] = P[:, 1] = torch.nan
    P.requires_grad_()
    loss = permutation_cross_entropy(P, order, kind=kind, mask=mask)
    small = P.detach()[:3][:, mask]
    expected = permutation_cross_entropy(small, torch.tensor([2, 0, 1]), kind=kind)  # elements 0, 2, 3 renamed 0, 1, 2
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert P.grad.isfinite().all()
    assert not P.grad[3].any()
    assert not P.grad[:, 1].any()


def test_half_matrix_gives_half_loss():
    P = dl.permutation(random(B, N, dtype=torch.float16))
    order = random(B, N, seed=1).argsort(-1)
    actual = permutation_cross_entropy(P, order)
    assert actual.dtype == torch.float16
    torch.testing.assert_close(actual, permutation_cross_entropy(P.float(), order).half(), rtol=0, atol=0)


def test_unchecked_wrong_order_is_nan():
    scores = random(3, N)
    order = scores.argsort(-1)
    order[1, 0] = order[1, 1]
    order[2, 0] = N
    with pytest.raises(ValueError, match="must hold a permutation"):
        PermutationCrossEntropy()(scores, order)
    for kind in ("binary", "categorical"):
        rows = torch.func.vmap(PermutationCrossEntropy(kind=kind))(scores, order)  # contents go unchecked there
        assert rows.isnan().tolist() == [False, True, True]


def test_wrong_order_of_present_elements_raises():
    mask = torch.tensor([True, True, False])
    with pytest.raises(ValueError, match="must hold a permutation"):
        PermutationCrossEntropy()(torch.ones(3), torch.tensor([0, 2, 1]), mask)
    assert PermutationCrossEntropy()(torch.ones(3), torch.tensor([1, 0, 2]), mask).isfinite()


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("name", ["binary", "categorical", "spearman", "ndcg"])
def test_no_and_one_element(name, n):
    make, kind = CASES[name]
    scores = torch.ones(2, n, requires_grad=True)
    loss = make(reduction="none")(scores, labels(kind, torch.ones(2, n)) + (kind == "relevance"))
    torch.testing.assert_close(loss, torch.full((2,), 1.0 if name == "spearman" else 0.0))
    loss.sum().backward()
    assert not scores.grad.any()


# Spearman


def test_hard_spearman_equals_scipy():
    stats = pytest.importorskip("scipy.stats")
    scores, target = random(B, 30), random(B, 30, seed=1)
    ranks = torch.as_tensor(stats.rankdata(target.numpy(), axis=1))
    expected = [1 - stats.spearmanr(s, t).statistic for s, t in zip(scores.numpy(), target.numpy(), strict=True)]
    actual = SpearmanLoss(hard=True, reduction="none")(scores, ranks)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64))


def test_spearman_ignores_origin_and_unit_of_the_targets():
    scores, ranks = random(B, N, dtype=torch.float32), labels("ranks", random(B, N, seed=1))
    loss = SpearmanLoss()
    for targets in (ranks.float() * 1e30, ranks.float() * 1e-30, 3 * ranks - 100):
        torch.testing.assert_close(loss(scores, targets), loss(scores, ranks))


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e30])
def test_constant_targets_give_one_without_gradient(constant):
    scores = random(B, 7, dtype=torch.float32).requires_grad_()
    targets = torch.full((B, 7), constant, requires_grad=True)
    loss = SpearmanLoss()(scores, targets)
    loss.backward()
    assert loss == 1
    assert not scores.grad.any()
    assert not targets.grad.any()


# NDCG


@pytest.mark.parametrize("k", [None, 1, 4, 99])
def test_hard_ndcg_equals_scikit_learn(k):
    metrics = pytest.importorskip("sklearn.metrics")
    scores = random(B, 12)
    relevance = torch.randint(0, 5, (B, 12), generator=torch.Generator().manual_seed(2))
    expected = 1 - metrics.ndcg_score(2.0 ** relevance.numpy() - 1, scores.numpy(), k=k)
    torch.testing.assert_close(NDCGLoss(k, hard=True)(scores, relevance).item(), float(expected))


def test_large_and_tiny_relevance():
    scores = torch.tensor([0.1, 0.3, 0.2])
    for relevance in ([100.0, 3.0, 99.0], [1e30, 0.0, 5.0], [1e-30, 0.0, 2e-30], [1e-6, 3e-6, 2e-6]):
        exact = np.expm1(np.minimum(np.array(relevance), 1000.0) * math.log(2))  # 2^1000 dwarfs the rest as 2^1e30 does
        discounts = 1 / np.log2(np.arange(2, 5))
        expected = 1 - (exact[[1, 2, 0]] @ discounts) / (np.sort(exact)[::-1] @ discounts)
        x = scores.clone().requires_grad_()
        loss = NDCGLoss(hard=True)(x, torch.tensor(relevance))
        torch.testing.assert_close(loss.item(), float(expected), rtol=1e-5, atol=1e-6)
        loss.backward()
        assert x.grad.isfinite().all()
        assert x.grad.any()


def test_rows_without_relevant_elements_are_free():
    scores = random(2, N).requires_grad_()
    relevance = torch.tensor([[0] * N, [0, 2, 1, 0, 0, 3]])
    rows = NDCGLoss(reduction="none")(scores, relevance)
    rows.sum().backward()
    assert rows[0] == 0
    assert not scores.grad[0].any()
    assert rows[1] > 0
    assert scores.grad[1].any()


def test_unchecked_negative_relevance_is_nan():
    scores, relevance = random(2, N), torch.ones(2, N)
    relevance[1, 2] = -1
    assert torch.func.vmap(NDCGLoss())(scores, relevance).isnan().tolist() == [False, True]


# top-k cross-entropy


@pytest.mark.parametrize("top1", ["softmax", "network"])
@pytest.mark.parametrize("n", [4, 7])
def test_equals_the_published_loss_on_diffsort(n, top1):
    """losses.py of difftopk, with the matrix of diffsort (transposed: [b, input, output], the best last)."""
    diffsort = pytest.importorskip("diffsort")
    logits = random(B, n, dtype=torch.float32)
    index = torch.tensor([0, 1, 3, 2])
    _, theirs = diffsort.DiffSortNet("odd_even", n, steepness=2.0)(logits)
    total = K[0] * (logits.softmax(-1) if top1 == "softmax" else theirs[:, :, -1])
    for k, p in enumerate(K[1:], 2):
        total = total + p * theirs[:, :, -k:].sum(-1)
    expected = torch.nn.functional.nll_loss(torch.log(total * (1 - 2e-7) + 1e-7), index)
    loss = TopKCrossEntropy(K, top1=top1, network="odd_even", steepness=2.0)
    torch.testing.assert_close(loss(logits, index), expected, rtol=1e-5, atol=1e-6)


def test_only_top1_is_cross_entropy_and_sorts_nothing(monkeypatch):
    logits, index = random(B, N), torch.tensor([0, 5, 2, 2])
    monkeypatch.setattr(dl.sorting.rows.Rows, "transport", None)
    expected = torch.nn.functional.cross_entropy(logits, index)
    torch.testing.assert_close(TopKCrossEntropy([1.0, 0.0])(logits, index), expected, rtol=1e-5, atol=1e-6)


def test_hard_topk_counts_memberships():
    logits = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0])
    rows = TopKCrossEntropy(K, top1="network", hard=True, reduction="none")
    for index, probability in [(0, 1.0), (2, 0.6), (4, 0.5), (3, 0.2), (1, 0.0)]:
        expected = torch.tensor(-math.log(probability * (1 - 2e-7) + 1e-7))
        torch.testing.assert_close(rows(logits, torch.tensor(index)), expected, rtol=1e-5, atol=1e-6)


def test_candidates_drop_the_worst_classes_only():
    logits = torch.tensor([[3.0, -50.0, 1.0, 2.0, -60.0, 0.0], [3.0, -50.0, 1.0, 2.0, -60.0, 0.0]]).requires_grad_()
    index = torch.tensor([2, 4])
    rows = TopKCrossEntropy(K, candidates=4, reduction="none")(logits, index)
    rows.sum().backward()
    assert (logits.grad != 0).tolist() == [
        [True, False, True, True, False, True],
        [True, False, True, True, True, False],
    ]


def test_candidates_fill_up_with_absent_classes_but_never_twice_the_true_one():
    logits, mask = torch.tensor([1.0, 3.0, 2.0, 0.0, 9.0]), torch.tensor([False, True, True, False, False])
    loss = TopKCrossEntropy([0.0, 1.0], candidates=4, hard=True)
    torch.testing.assert_close(loss(logits, torch.tensor(2), mask), torch.tensor(0.0), atol=1e-6, rtol=0)
    loss = TopKCrossEntropy([1.0], candidates=4)
    expected = torch.nn.functional.cross_entropy(logits[mask][None], torch.tensor([1]))
    torch.testing.assert_close(loss(logits, torch.tensor(2), mask), expected, atol=1e-6, rtol=1e-5)


def test_unchecked_class_out_of_range_is_nan():
    for settings in ({}, {"candidates": 5}):
        rows = torch.func.vmap(TopKCrossEntropy(K, **settings))(random(3, N), torch.tensor([0, N, -1]))
        assert rows.isnan().tolist() == [False, True, True]


def test_k_distribution_may_be_a_tensor_or_array():
    logits, index = random(B, N), torch.tensor([0, 5, 2, 2])
    expected = TopKCrossEntropy(K)(logits, index)
    for given in (tuple(K), torch.tensor(K), np.array(K)):
        torch.testing.assert_close(TopKCrossEntropy(given)(logits, index), expected, rtol=1e-6, atol=1e-7)


X, ORDER, ONES, CLASS = torch.randn(2, N), torch.arange(N).expand(2, N), torch.ones(2, N), torch.zeros(2).long()
BAD = [
    (TypeError, "P", lambda: permutation_cross_entropy(torch.eye(3).long(), torch.arange(3))),
    (ValueError, "P", lambda: permutation_cross_entropy(torch.ones(3, 2), torch.arange(3))),
    (ValueError, "P", lambda: permutation_cross_entropy(torch.ones(3), torch.arange(3))),
    (TypeError, "order", lambda: permutation_cross_entropy(torch.eye(3), torch.arange(3).int())),
    (TypeError, "order", lambda: permutation_cross_entropy(torch.eye(3), [0, 1, 2])),
    (ValueError, "order", lambda: permutation_cross_entropy(torch.eye(3), torch.arange(2))),
    (ValueError, "order", lambda: permutation_cross_entropy(torch.eye(3), torch.tensor([0, 1, 1]))),
    (ValueError, "order", lambda: permutation_cross_entropy(torch.eye(3), torch.tensor([0, 1, 3]))),
    (ValueError, "order", lambda: permutation_cross_entropy(torch.eye(3), torch.tensor([0, 1, -1]))),
    (ValueError, "kind", lambda: permutation_cross_entropy(torch.eye(3), torch.arange(3), kind="hinge")),
    (ValueError, "reduction", lambda: permutation_cross_entropy(torch.eye(3), torch.arange(3), reduction="max")),
    (TypeError, "mask", lambda: permutation_cross_entropy(torch.eye(3), torch.arange(3), mask=torch.ones(3))),
    (ValueError, "mask", lambda: permutation_cross_entropy(torch.eye(3), torch.arange(3), mask=torch.ones(2) > 0)),
    (ValueError, "kind", lambda: PermutationCrossEntropy(kind="mse")),
    (ValueError, "reduction", lambda: PermutationCrossEntropy(reduction="max")),
    (ValueError, "network", lambda: SpearmanLoss(network="quick")),
    (ValueError, "swap", lambda: NDCGLoss(swap="step")),
    (ValueError, "steepness", lambda: TopKCrossEntropy([1.0], steepness=-1.0)),
    (TypeError, "scores", lambda: PermutationCrossEntropy()(ORDER, ORDER)),
    (TypeError, "scores", lambda: SpearmanLoss()([1.0], ONES)),
    (ValueError, "scores", lambda: SpearmanLoss()(torch.tensor(1.0), torch.tensor(1.0))),
    (TypeError, "scores", lambda: NDCGLoss()(ORDER, ONES)),
    (TypeError, "order", lambda: PermutationCrossEntropy()(X, ORDER.float())),
    (ValueError, "order", lambda: PermutationCrossEntropy()(X, ORDER[0])),
    (TypeError, "mask", lambda: PermutationCrossEntropy()(X, ORDER, ONES)),
    (ValueError, "target_ranks", lambda: SpearmanLoss()(X, ONES[0])),
    (TypeError, "target_ranks", lambda: SpearmanLoss()(X, ONES > 0)),
    (TypeError, "target_ranks", lambda: SpearmanLoss()(X, [[1.0] * N] * 2)),
    (TypeError, "k", lambda: NDCGLoss(1.5)),
    (ValueError, "k", lambda: NDCGLoss(0)),
    (ValueError, "relevance", lambda: NDCGLoss()(X, -ONES)),
    (ValueError, "relevance", lambda: NDCGLoss()(X, ONES * torch.inf)),
    (ValueError, "relevance", lambda: NDCGLoss()(X, ONES * torch.nan)),
    (ValueError, "relevance", lambda: NDCGLoss()(X, ONES[:, :2])),
    (TypeError, "k_distribution", lambda: TopKCrossEntropy(0.5)),
    (TypeError, "k_distribution", lambda: TopKCrossEntropy("1")),
    (TypeError, r"k_distribution\[1\]", lambda: TopKCrossEntropy([1.0, "0"])),
    (ValueError, r"k_distribution\[0\]", lambda: TopKCrossEntropy([-0.5, 1.5])),
    (ValueError, "k_distribution", lambda: TopKCrossEntropy([0.5, 0.4])),
    (ValueError, "k_distribution", lambda: TopKCrossEntropy([])),
    (ValueError, "top1", lambda: TopKCrossEntropy([1.0], top1="sort")),
    (ValueError, "candidates", lambda: TopKCrossEntropy([0.5, 0.5], candidates=1)),
    (TypeError, "candidates", lambda: TopKCrossEntropy([0.5, 0.5], candidates=2.0)),
    (ValueError, "network", lambda: TopKCrossEntropy([1.0], candidates=3, network=dl.Network([(0, 1)]))),
    (ValueError, "logits", lambda: TopKCrossEntropy([0.0] * N + [1.0])(X, CLASS)),
    (ValueError, "logits", lambda: TopKCrossEntropy([1.0], candidates=N + 1)(X, CLASS)),
    (TypeError, "logits", lambda: TopKCrossEntropy([1.0])(ORDER, CLASS)),
    (TypeError, "class_index", lambda: TopKCrossEntropy([1.0])(X, CLASS.int())),
    (ValueError, "class_index", lambda: TopKCrossEntropy([1.0])(X, CLASS[:1])),
    (ValueError, "class_index", lambda: TopKCrossEntropy([1.0])(X, CLASS + N)),
    (ValueError, "class_index", lambda: TopKCrossEntropy([1.0])(X, CLASS - 1)),
    (ValueError, "class_index", lambda: TopKCrossEntropy([1.0])(X, CLASS, torch.arange(N) > 0)),
    (TypeError, "mask", lambda: TopKCrossEntropy([1.0])(X, CLASS, ONES)),
    (ValueError, "mask", lambda: TopKCrossEntropy([1.0])(X, CLASS, torch.arange(2) > 0)),
]


@pytest.mark.parametrize(("error", "argument", "call"), BAD)
def test_bad_arguments_are_named(error, argument, call):
    with pytest.raises(error, match=rf"^difflayers\.losses\.\w+: argument '{argument}' must"):
        call()
