"""Noise: finite for every bit pattern, of the right law, the same for the same seed."""

import math

import pytest
import torch

from difflayers import _random

CPU = torch.device("cpu")
stats = pytest.importorskip("scipy.stats")
LAWS = {
    "gumbel": (_random.gumbel, stats.gumbel_r),
    "exponential": (_random.exponential, stats.expon),
    "logistic": (_random.logistic, stats.logistic),
    "normal": (_random.normal, stats.norm),
}
EXTREMES = torch.tensor([0, 1, 2, 2**30, 2**31 - 2, 2**31 - 1, -1, -(2**31)], dtype=torch.int64).to(torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_bit_pattern_is_finite(dtype):
    u = _random.uniform_of(EXTREMES, dtype)
    assert ((u > 0) & (u < 1)).all()
    g = _random.gumbel_of(EXTREMES, dtype)
    assert g.isfinite().all()
    assert g.max() == pytest.approx(-math.log(-math.log1p(-(2.0**-32))), rel=1e-5)
    assert g.min() > -3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LAWS)
def test_law(name, dtype):
    draw, law = LAWS[name]
    noise = draw((200_000,), dtype=dtype, device=CPU, generator=torch.Generator().manual_seed(0))
    assert noise.dtype == dtype
    assert noise.isfinite().all()
    assert stats.kstest(noise.numpy(), law.cdf).pvalue > 1e-3


def test_the_upper_tail_of_gumbel_noise_is_fine_grained():
    """What is chosen among many is decided there: no ties among the largest of a million."""
    noise = _random.gumbel((1_000_000,), dtype=torch.float32, device=CPU, generator=torch.Generator().manual_seed(0))
    top = noise.topk(1000).values
    assert top.unique().numel() > 990
    assert top[0] > 11


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (2, 5), (4, 0, 3)], ids=str)
def test_bits_have_the_shape_and_both_halves_of_the_words(shape):
    first = _random.bits(shape, CPU, torch.Generator().manual_seed(5))
    assert first.shape == shape
    assert first.dtype == torch.int32
    assert torch.equal(first, _random.bits(shape, CPU, torch.Generator().manual_seed(5)))
    many = _random.bits((2000,), CPU, None) & (2**31 - 1)
    for part in (many[::2], many[1::2]):
        assert stats.kstest(part.double().numpy() / 2**31, "uniform").pvalue > 1e-3
    assert abs(float(torch.corrcoef(torch.stack([many[::2], many[1::2]]).double())[0, 1])) < 0.15


def test_float32_and_float64_see_the_same_noise():
    low, high = (
        _random.gumbel((1000,), dtype=dtype, device=CPU, generator=torch.Generator().manual_seed(1))
        for dtype in (torch.float32, torch.float64)
    )
    # where u rounds to 1 - 2^-24, at -2.8, float32 is coarse
    assert (low - high).abs().max() < 1e-3
    assert (low - high)[high > 0].abs().max() < 1e-5


def test_uniform_is_in_the_half_open_interval():
    u = _random.uniform((100_000, 1), device=CPU, generator=None)
    assert u.dtype == torch.float64
    assert ((u >= 0) & (u < 1)).all()
