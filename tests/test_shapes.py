"""Any n, any batch, any dim, any memory layout."""

import pytest
import torch

from tests.cases import CASES, NETWORKS, name_of
from tests.tolerances import assert_identical, assert_near

each_case = pytest.mark.parametrize("case", CASES, ids=name_of)
softness = pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])


@softness
@pytest.mark.parametrize("batch", [(), (1,), (2, 1, 3)], ids=str)
@pytest.mark.parametrize(
    ("case", "n"), [(case, n) for case in CASES for n in (0, 1, 2, 3, 5) if n >= case.smallest], ids=name_of
)
def test_batch_dimensions(case, n, batch, hard):
    x = torch.randn(*batch, n, dtype=torch.float64, requires_grad=True)
    y = case.run(x, hard=hard)
    assert tuple(y.shape) == case.shape(x.shape)
    assert_near(y, case.expected(x, hard=hard), factor=case.condition)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.shape == x.shape
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
@each_case
def test_every_dim(case, dim):
    x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    y, expected = case.run(x, dim=dim), case.expected(x, dim=dim)
    assert_near(y, expected, factor=case.condition)
    gradient, wanted = (torch.autograd.grad(out.square().sum(), x)[0] for out in (y, expected))
    assert_near(gradient, wanted, order=1, factor=case.condition)


@softness
@each_case
def test_no_rows(case, hard):
    for shape in [(0, 4), (3, 0, 4)]:
        x = torch.randn(shape, requires_grad=True)
        y = case.run(x, hard=hard)
        assert tuple(y.shape) == case.shape(x.shape)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert gradient.shape == x.shape


LAYOUTS = {
    "transposed": lambda x: x.t().contiguous().t(),
    "strided": lambda x: torch.stack([x, x + 1], dim=-1).flatten(-2)[:, ::2],
    "offset": lambda x: torch.cat([torch.zeros(1), x.flatten()])[1:].reshape(x.shape),
    "expanded": lambda x: x[:1].expand_as(x),
    "flipped": lambda x: x.flip(0),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@each_case
def test_memory_layout_does_not_matter(case, layout):
    x = LAYOUTS[layout](torch.randn(4, 6))
    assert_identical(case.run(x), case.run(x.contiguous().clone()))
    given = x.detach().requires_grad_()
    y = case.run(given)
    weight = torch.randn(*y.shape[::-1]).permute(*range(y.dim())[::-1])  # gradients come in any layout too
    plain = x.contiguous().clone().requires_grad_()
    (actual,) = torch.autograd.grad(y, given, weight)
    (expected,) = torch.autograd.grad(case.run(plain), plain, weight.contiguous())
    assert_identical(actual, expected)


@pytest.mark.parametrize("network", NETWORKS)
def test_rows_of_a_batch_are_independent(network):
    for case in CASES:
        x = torch.randn(19, 6, dtype=torch.float64)
        rows = torch.stack([case.run(row, network=network) for row in x])
        assert_near(case.run(x, network=network), rows, factor=10 * case.condition)


@each_case
def test_the_input_is_left_alone(case):
    x = torch.randn(3, 6)
    before = x.clone()
    y = case.run(x)
    y.zero_()
    assert_identical(x, before)
    x = torch.randn(3, 1 if case.smallest < 2 else 6)  # nothing to compare: still not a view of the input
    before = x.clone()
    case.run(x).zero_()
    assert_identical(x, before)
