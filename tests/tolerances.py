"""The one table of tolerances: by dtype, and by how often the compared number was differentiated."""

import torch

# Errors relative to the largest entry of the expected tensor (at least 1). The second derivative of a swap
# at steepness s is of order s^2, hence the growth by order.
TOLERANCE = {
    torch.float64: (1e-12, 1e-11, 1e-10),
    torch.float32: (5e-6, 5e-5, 5e-4),
    torch.float16: (1e-3, 2e-3, 1e-2),
    torch.bfloat16: (8e-3, 1.6e-2, 8e-2),
}


def assert_near(actual, expected, *, order=0, dtype=None, factor=1.0):
    """Equal shape, NaN and infinities in the same places, and finite entries within the table's tolerance.

    Args:
        order: 0 for values, 1 for gradients, 2 for second derivatives.
        dtype: whose tolerance; default that of `actual`.
        factor: for inputs that are worse conditioned than usual; say why at the call.
    """
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    tolerance = factor * TOLERANCE[dtype or actual.dtype][order]
    actual, expected = actual.detach().double(), expected.detach().double()
    finite = expected.isfinite()
    scale = max(1.0, expected[finite].abs().max().item()) if finite.any() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale, equal_nan=True)


def assert_identical(actual, expected):
    """The same bits (NaN equals NaN)."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
