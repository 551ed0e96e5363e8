"""float32 and float64 are native; half precision is computed in float32 and rounded once; integers raise."""

import pytest
import torch

import difflayers as dl
from tests.cases import CASES, FUNCTIONS, name_of
from tests.tolerances import assert_identical, assert_near

each_case = pytest.mark.parametrize("case", CASES, ids=name_of)
HALF = (torch.float16, torch.bfloat16)
each_half = pytest.mark.parametrize("dtype", HALF, ids=str)


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64], ids=str)
@each_case
def test_output_has_the_dtype_of_the_input(case, dtype):
    x = torch.randn(3, 6, dtype=dtype, requires_grad=True)
    y = case.run(x)
    assert y.dtype == dtype
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.dtype == dtype
    # 10: a payload is rounded to the dtype as well
    assert_near(y, case.expected(x), factor=10 * case.condition)


@each_half
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("case", [case for case in CASES if not case.name.startswith("sort_by")], ids=name_of)
def test_half_is_the_float32_result_rounded_once(case, hard, dtype):
    x = torch.randn(3, 6).to(dtype)
    assert_identical(case.run(x, hard=hard), case.run(x.float(), hard=hard).to(dtype))


@each_half
def test_half_payload(dtype):
    x, payload = torch.randn(3, 6), torch.randn(3, 6, 2).to(dtype)
    for inverse in (False, True):
        exact = dl.sort_by(x, payload.float(), inverse=inverse)
        assert_identical(dl.sort_by(x, payload, inverse=inverse), exact.to(dtype))
        low = dl.sort_by(x.to(dtype), payload, inverse=inverse)
        assert_identical(low, dl.sort_by(x.to(dtype).float(), payload.float(), inverse=inverse).to(dtype))


def test_payload_and_scores_of_different_dtypes():
    x, payload = torch.randn(4, dtype=torch.float64), torch.randn(4, 2)
    y = dl.sort_by(x, payload)
    assert y.dtype == torch.float32
    assert_near(y, dl.sort_by(x, payload.double()).float())
    y = dl.sort_by(x.float(), payload.double())
    assert y.dtype == torch.float64
    assert_near(y, dl.sort_by(x.float().double(), payload.double()))


@each_half
def test_half_gradient(dtype):
    for case in FUNCTIONS:
        x = torch.randn(3, 6).to(dtype).requires_grad_()
        wide = x.detach().float().requires_grad_()
        (gradient,) = torch.autograd.grad(case.run(x).float().sum(), x)
        (wanted,) = torch.autograd.grad(case.run(wide).sum(), wide)
        assert_near(gradient, wanted, order=1, factor=10 if case.name.startswith("sort_by") else 1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64], ids=str)
@each_case
def test_other_dtypes_raise(case, dtype):
    with pytest.raises(TypeError, match=r"difflayers\..* must (have a|be) .*float.*got"):
        case.run(torch.ones(3, 6).to(dtype))


def test_float32_steepness_for_float64_scores():
    x = torch.randn(2, 5, dtype=torch.float64)
    steepness = torch.tensor([[2.0], [3.0]], requires_grad=True)
    y = dl.sort(x, steepness=steepness)
    assert y.dtype == torch.float64
    y[:, 0].sum().backward()
    assert steepness.grad.dtype == torch.float32
    assert (steepness.grad != 0).all()
