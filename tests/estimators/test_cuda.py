"""The Triton kernels on a GPU, against the plain path and for whole calls."""

import pytest
import torch

import difflayers as dl
from difflayers import _random
from difflayers.estimators import fused, reference
from tests.tolerances import assert_near

pytestmark = pytest.mark.cuda
CALLS = {
    "gumbel_softmax": dl.gumbel_softmax,
    "gumbel_softmax hard": lambda x, t=1.0, **s: dl.gumbel_softmax(x, t, hard=True, **s),
    "straight_through": dl.straight_through,
    "reinmax": dl.reinmax,
}
each_call = pytest.mark.parametrize("name", CALLS)


@pytest.mark.parametrize("n", [1, 3, 10, 1000, 5000, 32768])
def test_kernels_equal_the_plain_path(n):
    from difflayers.estimators import triton_kernels

    run = triton_kernels.OPERATORS
    logits, gradient = 3 * torch.randn(65, n, device="cuda"), torch.randn(65, n, device="cuda")
    noise = _random.bits((65, n), logits.device, None)
    x = logits.double().requires_grad_()
    expected = reference.gumbel_softmax(x, 0.7, noise, False)
    soft, _ = run.gumbel_softmax(logits, noise, None, 0.7, True)
    assert_near(soft.cpu(), expected.float().cpu(), factor=5)
    (wanted,) = torch.autograd.grad(expected, x, gradient.double())
    assert_near(run.gumbel_softmax_backward(gradient, soft, None, 0.7).cpu(), wanted.float().cpu(), order=1)
    uniform = torch.rand(65, 1, device="cuda", dtype=torch.float64)
    index = reference.sample(x, uniform)
    sample, marked = run.choose(logits, uniform)
    # exp differs between the two in the last place, which moves a threshold now and then
    assert (sample.argmax(1, keepdim=True) == index).float().mean() > 0.99
    index = sample.argmax(1, keepdim=True)
    for kind in ("straight_through", "reinmax"):
        (wanted,) = torch.autograd.grad(getattr(reference, kind)(x, 0.7, index), x, gradient.double())
        actual = run.choose_backward(gradient, marked, None, 0.7, kind)
        assert_near(actual.cpu(), wanted.float().cpu(), order=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@each_call
def test_calls(name, dtype):
    x = torch.randn(7, 33, device="cuda", dtype=dtype, requires_grad=True)
    y = CALLS[name](x)
    assert y.dtype == dtype
    assert y.is_cuda
    y.float().square().sum().backward()
    assert x.grad.isfinite().all()


@each_call
def test_frequencies(name):
    logits = torch.tensor([0.0, 1.0, -torch.inf, 2.0], device="cuda")
    index = CALLS[name](logits.expand(200_000, 4).contiguous(), generator=torch.Generator("cuda").manual_seed(0))
    counts = index.argmax(1).bincount(minlength=4).cpu() / 200_000
    expected = logits.softmax(0).cpu()
    assert ((counts - expected).abs() <= 4.5 * (expected * (1 - expected) / 200_000).sqrt()).all()


@each_call
def test_bad_rows_are_nan_and_debug_raises(name):
    x = torch.randn(4, 6, device="cuda")
    x[1, 2] = torch.nan
    x[2] = -torch.inf
    y = CALLS[name](x)
    assert y[1:3].isnan().all()
    assert not y[[0, 3]].isnan().any()
    with dl.debug(), pytest.raises(ValueError, match="NaN"):
        CALLS[name](x)


@each_call
def test_second_derivative_and_double(name, monkeypatch):
    def derivatives():
        x = torch.linspace(-2, 2, 30, device="cuda").reshape(5, 6).requires_grad_()
        y = CALLS[name](x, 0.7, generator=torch.Generator("cuda").manual_seed(3))
        weight = torch.arange(6.0, device="cuda")
        first = torch.autograd.grad((y * weight).square().sum(), x, create_graph=True)[0]
        return first, torch.autograd.grad((first * weight).sum(), x)[0]

    from_kernel = derivatives()
    monkeypatch.setattr(fused, "kernels", lambda logits, temperature: None)
    for order, (a, b) in enumerate(zip(from_kernel, derivatives(), strict=True), start=1):
        assert_near(a.cpu(), b.cpu(), order=order, factor=3)
