"""The mathematical claims of relaxed sorting, as assertions on any instance of them."""

import torch

from tests.tolerances import assert_near


def assert_doubly_stochastic(matrix, *, factor=1.0):
    """Entries in [0, 1], rows and columns that sum to one."""
    ones = torch.ones(matrix.shape[:-1], dtype=matrix.dtype)
    assert_near(matrix.sum(-1), ones, factor=factor)
    assert_near(matrix.sum(-2), ones, factor=factor)
    assert (matrix >= 0).all()
    assert (matrix <= 1).all()


def assert_permutation_matrix(matrix):
    """One 1 in every row and column, exactly."""
    assert ((matrix == 0) | (matrix == 1)).all()
    assert (matrix.sum(-1) == 1).all()
    assert (matrix.sum(-2) == 1).all()


def assert_monotone(function, x, *, increasing):
    """The Jacobian of a sort of one row has unit row and column sums, and with `increasing` no negative entry."""
    jacobian = torch.func.jacrev(function)(x)
    assert_near(jacobian.sum(0), torch.ones_like(x), order=1)
    assert_near(jacobian.sum(1), torch.ones_like(x), order=1)
    if increasing:
        assert (jacobian >= -1e-14).all()
    return jacobian


def assert_sum_conserved(values, x, *, factor=1.0):
    assert_near(values.sum(-1), x.sum(-1), factor=factor)


def assert_matrix_applies(matrix, x, values, *, factor=1.0):
    """P @ x = values."""
    assert_near((matrix @ x[..., None])[..., 0], values, factor=factor)


def assert_translation(run, x, shift, kind):
    """Values move with the input; weights stay."""
    moved = run(x + shift)
    assert_near(moved - shift if kind == "values" else moved, run(x), factor=10 * max(1.0, abs(shift)))


def assert_scaling(run, x, scale, steepness, kind):
    """y(c x; s) = c y(x; c s) for values; weights(c x; s) = weights(x; c s)."""
    scaled = run(scale * x, steepness=steepness)
    assert_near(scaled / scale if kind == "values" else scaled, run(x, steepness=scale * steepness), factor=10)
