"""Every layer against the definitions: values, and gradients where the naive form can be differentiated."""

import pytest
import torch

from tests.cases import CASES, NETWORKS, SWAPS, name_of, settings_grid
from tests.tolerances import assert_near

N = 7
each_case = pytest.mark.parametrize("case", CASES, ids=name_of)


@pytest.mark.parametrize("settings", settings_grid(), ids=name_of)
@each_case
def test_values_and_gradients(case, settings):
    # steepness 3: everything mixes with everything, so that no error hides behind a saturated swap
    x = torch.randn(2, N, dtype=torch.float64, requires_grad=True)
    actual, expected = case.run(x, steepness=3.0, **settings), case.expected(x, steepness=3.0, **settings)
    assert_near(actual, expected, factor=case.condition)
    weight = torch.randn_like(actual)
    (gradient,) = torch.autograd.grad((actual * weight).sum(), x)
    (wanted,) = torch.autograd.grad((expected * weight).sum(), x)
    assert_near(gradient, wanted, order=1, factor=case.condition)


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@each_case
def test_steepness_per_row(case, hard):
    x = torch.randn(3, N, dtype=torch.float64)
    steepness = torch.tensor([[1.0], [5.0], [40.0]], dtype=torch.float64)
    assert_near(case.run(x, steepness=steepness, hard=hard), case.expected(x, steepness=steepness, hard=hard))


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("case", [case for case in CASES if case.trains_steepness], ids=name_of)
def test_gradient_by_steepness(case, hard):
    x = torch.randn(3, N, dtype=torch.float64)
    steepness = torch.tensor([[1.0], [5.0], [10.0]], dtype=torch.float64, requires_grad=True)
    actual = case.run(x, steepness=steepness, hard=hard)
    weight = torch.randn_like(actual)
    (gradient,) = torch.autograd.grad((actual * weight).sum(), steepness)
    expected = case.expected(x, steepness=steepness, hard=hard)
    (wanted,) = torch.autograd.grad((expected * weight).sum(), steepness)
    assert_near(gradient, wanted, order=1, factor=case.condition)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES[:3], ids=name_of)
def test_every_swap_on_every_network(case, dtype, swap, network):
    x = torch.randn(2, 11, dtype=dtype)
    assert_near(case.run(x, swap=swap, network=network), case.expected(x, swap=swap, network=network))
