"""Metrics against NumPy's trapezoids and histograms."""

import numpy
import pytest
import torch

from difflayers.ransac import auc_binned, auc_exact, success_rate

ERRORS = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) ** 3 * 60


def trapezoids(errors, limit):
    """The area under the recall curve, drawn point by point."""
    errors = numpy.sort(numpy.asarray(errors))
    below = errors[errors < limit]
    xs, ys = [0.0], [0.0]
    for i, e in enumerate(below):
        xs.append(e)
        ys.append((i + 1) / len(errors))
    xs.append(limit)
    ys.append(ys[-1])
    return sum((x1 - x0) * (y0 + y1) / 2 for x0, x1, y0, y1 in zip(xs, xs[1:], ys, ys[1:], strict=False)) / limit


@pytest.mark.parametrize("limit", [0.5, 5, 10, 20, 1000])
def test_exact(limit):
    assert abs(auc_exact(ERRORS, limit) - trapezoids(ERRORS, limit)) < 1e-12


def test_exact_by_hand():
    # recall rises to 1/2 at error 2 and stays: a triangle of 1/2 and a rectangle of 3/2, over 5
    assert auc_exact(torch.tensor([2.0, 9.0]), 5).item() == pytest.approx(0.4)
    assert auc_exact(torch.zeros(3), (1, 2)).tolist() == [1, 1]
    assert auc_exact(torch.tensor([7.0]), 5) == 0


@pytest.mark.parametrize("width", [1.0, 2.5, 5.0])
def test_binned(width):
    edges = numpy.arange(0, 185, width)
    histogram, _ = numpy.histogram(ERRORS.numpy(), edges)
    recall = numpy.cumsum(histogram) / len(ERRORS)
    expected = [recall[: round(limit / width)].mean() for limit in (5, 10, 20)]
    assert auc_binned(ERRORS, (5, 10, 20), bin_width=width).tolist() == pytest.approx(expected)


def test_the_two_are_not_the_same():
    assert auc_binned(ERRORS, 5) == success_rate(ERRORS, 5)
    assert auc_binned(ERRORS, 5) > auc_exact(ERRORS, 5) + 0.05
    fine = auc_binned(ERRORS, 5, bin_width=1e-3)
    assert abs(fine - auc_exact(ERRORS, 5)) < 0.03  # the steps of the recall, half of 1 / 40 each


@pytest.mark.parametrize("metric", [auc_exact, auc_binned, success_rate])
def test_failures_and_shapes(metric):
    some = torch.tensor([1.0, torch.nan, 3.0, torch.inf])
    assert torch.equal(metric(some, (5, 10)), metric(torch.tensor([1.0, 99.0, 3.0, 99.0]), (5, 10)))
    assert (metric(torch.full((3,), torch.nan), 5) == 0).all()
    batch = torch.stack([ERRORS, ERRORS * 2])
    assert metric(batch, (5, 10, 20)).shape == (2, 3)
    assert metric(batch, 5).shape == (2,)
    assert torch.equal(metric(batch, [5])[1, 0], metric(batch[1], 5))
    assert metric(batch.float(), 5).dtype == torch.float32
    shuffled = ERRORS[torch.randperm(40)]
    assert torch.equal(metric(shuffled, 5), metric(ERRORS, 5))


def test_success_rate():
    assert success_rate(torch.tensor([1.0, 5.0, 4.0, 9.0]), (5, 10)).tolist() == [0.5, 1]


@pytest.mark.parametrize("metric", [auc_exact, auc_binned, success_rate])
def test_bad_input(metric):
    with pytest.raises(ValueError, match="at least one element"):
        metric(torch.zeros(3, 0), 5)
    with pytest.raises(ValueError, match="at least one element"):
        metric(torch.tensor(1.0), 5)
    with pytest.raises(ValueError, match="must not be negative"):
        metric(torch.tensor([1.0, -1.0]), 5)
    with pytest.raises(TypeError, match="floating-point"):
        metric(torch.tensor([1, 2]), 5)
    with pytest.raises(ValueError, match="'thresholds'"):
        metric(torch.tensor([1.0]), 0)


def test_thresholds_between_bins():
    with pytest.raises(ValueError, match="multiples of bin_width = 5, got 7"):
        auc_binned(ERRORS, (5, 7))
    with pytest.raises(ValueError, match="multiples of bin_width"):
        auc_binned(ERRORS, 3)
