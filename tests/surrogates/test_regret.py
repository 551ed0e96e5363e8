"""Regret metrics against enumeration, with ties."""

import math

import pytest
import torch

import difflayers as dl
from difflayers import surrogates

from ..tolerances import assert_near
from .polytopes import SETS, enumerated, minimiser, rows_of, values


@pytest.mark.parametrize("vertices", SETS.values(), ids=SETS.keys())
def test_regret_against_enumeration(vertices):
    predicted, true, _ = rows_of(vertices, 30)
    oracle = enumerated(vertices)
    optimum = values(vertices, true).min(1).values
    expected = (true * minimiser(vertices, predicted)).flatten(1).sum(1) - optimum
    assert_near(surrogates.regret(predicted, true, oracle, reduction="none"), expected)
    assert_near(surrogates.regret(predicted, true, oracle), expected.mean())
    assert_near(surrogates.regret(predicted, true, oracle, reduction="sum"), expected.sum())
    assert_near(surrogates.regret(predicted, true, oracle, true_objective=optimum - 1), expected.mean() + 1)
    assert_near(surrogates.normalized_regret(predicted, true, oracle), expected.sum() / optimum.abs().sum())
    # no ties: the worst case is the only case
    assert_near(surrogates.unambiguous_regret(predicted, true, oracle, reduction="none"), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("vertices", SETS.values(), ids=SETS.keys())
def test_unambiguous_regret_takes_the_worst_of_ties(vertices, dtype):
    _, true, _ = rows_of(vertices, 60)
    predicted = torch.randint(-1, 2, true.shape, generator=torch.Generator().manual_seed(1)).double()
    predicted[0] = 0
    of_predicted, of_true = values(vertices, predicted), values(vertices, true)
    tied = of_predicted == of_predicted.min(1, keepdim=True).values
    assert (tied.sum(1) > 1).sum() > 5
    expected = torch.where(tied, of_true, -math.inf).max(1).values - of_true.min(1).values
    result = surrogates.unambiguous_regret(predicted.to(dtype), true.to(dtype), enumerated(vertices), reduction="none")
    assert_near(result, expected.to(dtype))


def test_zero_regret_is_zero_even_where_the_optimum_is():
    oracle = dl.oracles.TopK(2, 1)
    true = torch.tensor([0.0, 1.0])
    assert surrogates.normalized_regret(true, true, oracle).item() == 0
    assert surrogates.normalized_regret(-true, true, oracle).item() == math.inf
    assert surrogates.regret(true[None][:0], true[None][:0], oracle, reduction="none").shape == (0,)


def test_regret_has_no_gradient_and_keeps_the_dtype():
    predicted = torch.rand(3, 2, dtype=torch.bfloat16, requires_grad=True)
    for function in (surrogates.regret, surrogates.normalized_regret, surrogates.unambiguous_regret):
        result = function(predicted, torch.rand(3, 2), dl.oracles.TopK(2, 1))
        assert result.dtype == torch.bfloat16
        assert not result.requires_grad


@pytest.mark.parametrize("function", [surrogates.regret, surrogates.normalized_regret, surrogates.unambiguous_regret])
def test_bad_input_is_refused(function):
    oracle, good = dl.oracles.TopK(3, 1), torch.rand(2, 3)
    for predicted, true, given, error, message in (
        (good, good, len, TypeError, f"{function.__name__}: argument 'oracle' must be an oracle"),
        (good[:, :2], good, oracle, ValueError, "'predicted_costs' must have shape"),
        (good, good[:1], oracle, ValueError, "'true_costs' must have shape"),
        (good, good / 0, oracle, ValueError, "'true_costs' must be finite"),
        (good.long(), good, oracle, TypeError, "floating-point"),
    ):
        with pytest.raises(error, match=message):
            function(predicted, true, given)
    with pytest.raises(ValueError, match=r"'true_objective' must have shape \(2,\)"):
        function(good, good, oracle, true_objective=good)
