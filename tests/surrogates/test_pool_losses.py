"""Losses over a pool: values and gradients against loops, growth, bounds, bad input."""

import math

import pytest
import torch

import difflayers as dl
from difflayers import surrogates

from ..tolerances import assert_near
from .polytopes import SETS, assert_convex, enumerated, finite_difference, gradient, rows_of, values

BATCH = 6
every_set = pytest.mark.parametrize("vertices", SETS.values(), ids=SETS.keys())
COSTS = {"predicted": (1, 0), "difference": (1, -1), "spo": (2, -1)}


@pytest.mark.parametrize("compare", COSTS)
@every_set
def test_contrastive_losses_are_their_definition(vertices, compare):
    predicted, true, best = rows_of(vertices, BATCH)
    a, b = COSTS[compare]
    costs = a * predicted + b * true
    margins = (costs * best).flatten(1).sum(1, keepdim=True) - values(vertices, costs)
    mean = surrogates.NCE(vertices, compare=compare, reduction="none")
    worst = surrogates.ContrastiveMAP(vertices, compare=compare, reduction="none")
    assert_near(mean(predicted, best, true), margins.mean(1))
    assert_near(worst(predicted, best, true), margins.max(1).values)
    assert_near(gradient(lambda p: mean(p, best, true), predicted), a * (best - vertices.mean(0)))
    expected = a * (best - vertices[margins.argmax(1)])
    assert_near(gradient(lambda p: worst(p, best, true), predicted), expected)
    assert_convex(lambda p: worst(p, best, true), lambda seed: rows_of(vertices, BATCH, seed)[0])
    assert (worst(predicted, best, true) >= 0).all()
    assert_near(worst(true, best, true), torch.zeros(BATCH, dtype=torch.float64))


@every_set
def test_contrastive_map_over_everything_is_spo_plus(vertices):
    predicted, true, best = rows_of(vertices, BATCH)
    pool = surrogates.ContrastiveMAP(vertices, compare="spo", reduction="none")
    spo = surrogates.SPOPlus(enumerated(vertices), reduction="none")
    assert_near(pool(predicted, best, true), spo(predicted, true))


def test_true_solution_counts_to_the_pool_of_contrastive_map():
    loss = surrogates.ContrastiveMAP(torch.tensor([[0.0, 1.0]]))
    assert loss(torch.tensor([1.0, 5.0]), torch.tensor([1.0, 0.0])).item() == 0


@every_set
def test_ranking_losses_are_their_definition(vertices):
    predicted, true, _ = rows_of(vertices, BATCH)
    of_predicted, of_true = values(vertices, predicted), values(vertices, true)
    count = len(vertices)
    point = surrogates.PointwiseRanking(vertices, reduction="none")
    assert_near(point(predicted, true), (of_predicted - of_true).square().mean(1))
    wide = surrogates.ListwiseRanking(vertices, temperature=0.7, reduction="none")
    p, q = ((-x / 0.7).exp() / (-x / 0.7).exp().sum(1, keepdim=True) for x in (of_true, of_predicted))
    assert_near(wide(predicted, true), -(p * q.log()).sum(1))
    assert (wide(predicted, true) >= wide(true, true)).all()
    for kind in ("hinge", "difference"):
        for pairs in ("best", "all"):
            loss = surrogates.PairwiseRanking(vertices, kind=kind, pairs=pairs, margin=0.2, reduction="none")
            expected = []
            for x, c in zip(of_predicted, of_true, strict=True):
                terms = []
                for i in range(count):
                    for j in range(count):
                        if c[i] < c[j] and (pairs == "all" or i == c.argmin()):
                            gap = x[i] - x[j]
                            terms.append(max(0.2 + gap, 0 * gap) if kind == "hinge" else (gap - c[i] + c[j]) ** 2)
                expected.append(torch.stack(terms).mean())
            assert_near(loss(predicted, true), torch.stack(expected))
            slope = gradient(lambda x, loss=loss: loss(x, true), predicted)
            finite = finite_difference(lambda x, loss=loss: loss(x, true), predicted)
            assert_near(finite, slope, factor=1e5)  # of central differences
    for loss in (point, wide):
        slope = gradient(lambda x, loss=loss: loss(x, true), predicted)
        assert_near(finite_difference(lambda x, loss=loss: loss(x, true), predicted), slope, factor=1e5)  # as above
        assert_convex(lambda x, loss=loss: loss(x, true), lambda seed: rows_of(vertices, BATCH, seed)[0], trials=5)
    assert_near(point(true, true), torch.zeros(BATCH, dtype=torch.float64))


def test_pairs_that_tie_do_not_count():
    pool = torch.eye(3)
    loss = surrogates.PairwiseRanking(pool, pairs="all", margin=1.0)
    assert loss(torch.randn(3), torch.ones(3)).item() == 0
    assert loss(torch.zeros(3), torch.tensor([1.0, 1.0, 2.0])).item() == 1


def test_listwise_ranking_survives_large_objectives():
    loss = surrogates.ListwiseRanking(torch.eye(2))
    predicted = torch.tensor([1e30, -1e30], requires_grad=True)
    value = loss(predicted, torch.tensor([1e30, -1e30]))
    value.backward()
    assert value.item() == 0
    assert predicted.grad.isfinite().all()


MAKERS = {
    "nce": (surrogates.NCE, "solutions"),
    "map": (surrogates.ContrastiveMAP, "solutions"),
    "point": (surrogates.PointwiseRanking, "costs"),
    "pair": (surrogates.PairwiseRanking, "costs"),
    "list": (surrogates.ListwiseRanking, "costs"),
}
every_loss = pytest.mark.parametrize(("make", "needs"), MAKERS.values(), ids=MAKERS.keys())


class Pool:
    """What the losses ask of a pool."""

    def __init__(self, solutions):
        self.solutions = solutions

    def __len__(self):
        return len(self.solutions)

    def add(self, solutions):
        self.solutions = torch.cat([self.solutions, solutions.reshape(-1, *self.solutions.shape[1:])]).unique(dim=0)


@every_loss
def test_pool_grows_while_training(make, needs):
    oracle = dl.oracles.TopK(4, 1)
    eye = torch.eye(4)
    second = eye[:2] if needs == "solutions" else 1 - eye[:2]
    loss = make(oracle, pool=eye[3:])
    predicted = torch.ones(2, 4)
    predicted[:, 2] = 0
    loss.eval()
    value = loss(predicted, second)
    assert len(loss.pool) == 1
    assert_near(value, make(eye[3:])(predicted, second))
    loss.train()
    value = loss(predicted, second)
    seen = eye if needs == "solutions" else eye[2:]
    assert sorted(loss.pool.solutions.argmax(1).tolist()) == sorted(seen.argmax(1).tolist())
    assert_near(value, make(seen)(predicted, second))
    assert_near(loss(predicted, second), value)  # nothing is counted twice
    never = make(oracle, pool=Pool(eye), solve_ratio=0.0)
    assert_near(never(predicted, second), make(eye)(predicted, second))
    assert len(never.pool) == 4


@every_loss
def test_own_pool_is_bounded(make, needs, monkeypatch):
    monkeypatch.setattr(surrogates._pool, "CAPACITY", 3)
    loss = make(dl.oracles.TopK(5, 1))
    second = torch.eye(5)
    for i in range(5):
        loss(1 - torch.eye(5)[i : i + 1], second[i : i + 1])
    assert loss.pool.solutions.argmax(1).tolist() == [2, 3, 4]


def test_own_pool_leaves_out_rows_without_a_solution():
    oracle = dl.oracles.FromCallable(lambda c: None if c[0] > 1 else [1.0, 0.0], (2,), on_failure="nan")
    loss = surrogates.PointwiseRanking(oracle)
    loss(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.ones(2, 2))
    assert loss.pool.solutions.tolist() == [[1.0, 0.0]]


@every_loss
def test_shapes_dtypes_and_transforms(make, needs):
    pool = SETS["assignments"].float()
    predicted = torch.randn(2, 5, 3, 3)
    second = torch.randn(2, 5, 3, 3) if needs == "costs" else pool[:5].expand(2, 5, 3, 3)
    rows = make(pool, reduction="none")(predicted, second)
    assert rows.shape == (2, 5)
    assert_near(make(pool)(predicted, second), rows.mean())
    assert_near(make(pool, reduction="sum")(predicted, second), rows.sum(), factor=10)
    assert_near(make(pool)(predicted[0, 0], second[0, 0]), rows[0, 0])
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        p = predicted.to(dtype, copy=True).requires_grad_()
        value = make(pool)(p, second)
        assert value.dtype == dtype
        value.backward()
        assert p.grad.isfinite().all()
    slope = gradient(lambda p: make(pool)(p, second), predicted)
    assert_near(torch.func.grad(lambda p: make(pool)(p, second))(predicted), slope)
    compiled = torch.compile(make(pool), backend="eager", fullgraph=True)
    assert_near(compiled(predicted, second), rows.mean())


@every_loss
def test_bad_input_is_refused(make, needs):
    good, second, pool = torch.rand(2, 3), torch.eye(3)[:2], torch.eye(3)
    for arguments, error, message in (
        (("pool",), TypeError, "'source' must be a tensor .* got str"),
        ((pool * math.nan,), ValueError, "'source' must be finite"),
        ((torch.tensor(1.0),), ValueError, r"'source' must be a real tensor \[P, \*cost_shape\], got shape \(\)"),
    ):
        with pytest.raises(error, match=message):
            make(*arguments)
    with pytest.raises(TypeError, match="'pool' goes with an oracle"):
        make(pool, pool=pool)
    with pytest.raises(ValueError, match="'solve_ratio' must be"):
        make(dl.oracles.TopK(3, 1), solve_ratio=2.0)
    with pytest.raises(ValueError, match="the pool must hold a solution, got an empty one"):
        make(pool[:0])(good, second)
    loss = make(pool)
    for first, other, error, message in (
        (good.long(), second, TypeError, "'predicted_costs' must have a floating-point dtype"),
        (good * math.inf, second, ValueError, "'predicted_costs' must be finite"),
        (good[:, :2], second, ValueError, r"'predicted_costs' must have shape \[..., 3\], got \(2, 2\)"),
        (good, second[:1], ValueError, r"must have shape \(2, 3\), as the predicted costs say"),
        (good, second * math.nan, ValueError, "'true_.*' must be finite"),
    ):
        with pytest.raises(error, match=message):
            loss(first, other)


def test_contrastive_costs_must_be_given():
    loss = surrogates.NCE(torch.eye(3), compare="spo")
    with pytest.raises(ValueError, match="'true_costs' must be given with compare='spo', got None"):
        loss(torch.rand(3), torch.eye(3)[0])
    with pytest.raises(ValueError, match="'compare' must be one of 'predicted', 'difference', 'spo'"):
        surrogates.NCE(torch.eye(3), compare="both")
