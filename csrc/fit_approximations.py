"""Prints the polynomial coefficients of approximations.h, fitted by Lawson's iteration (needs numpy and mpmath).

python csrc/fit_approximations.py
"""

import mpmath as mp
import numpy as np
from numpy.polynomial import Chebyshev, Polynomial, chebyshev

mp.mp.dps = 50


def minimax(f, low, high, degree, relative=False, nodes=400):
    """Coefficients, constant first, of a near-minimax polynomial; prints its largest (relative) error."""
    x = np.array([float((low + high) / 2 + (high - low) / 2 * mp.cos(mp.pi * (k + 0.5) / nodes)) for k in range(nodes)])
    y = np.array([float(f(mp.mpf(v))) for v in x])
    basis = chebyshev.chebvander((2 * x - (low + high)) / (high - low), degree)
    scale = 1 / np.abs(y) if relative else np.ones(nodes)
    weight = np.ones(nodes) / nodes
    for _ in range(300):
        root = np.sqrt(weight) * scale
        coefficients, *_ = np.linalg.lstsq(basis * root[:, None], y * root, rcond=None)
        error = np.abs((basis @ coefficients - y) * scale)
        weight = weight * (error + 1e-30)
        weight /= weight.sum()
    print(f"    largest {'relative' if relative else 'absolute'} error {error.max():.2e}")
    return Chebyshev(coefficients, domain=[low, high]).convert(kind=Polynomial).coef


def mills(t):
    """Phi(-v) exp(v^2/2) with t = 2 / (2 + v)."""
    v = 2 / t - 2
    return mp.erfc(v / mp.sqrt(2)) / 2 * mp.exp(v**2 / 2)


if __name__ == "__main__":
    for name, arguments in {
        "arctan(z) / (pi z) in z^2, 0 <= z <= 1": (lambda t: mp.atan(mp.sqrt(t)) / mp.sqrt(t) / mp.pi, 0, 1, 7),
        "exp(x), |x| <= ln(2)/2": (mp.exp, -0.34658, 0.34658, 6),
        "Phi(-v) exp(v^2/2) in t = 2/(2+v), 0 <= v <= 14": (mills, 2 / 16, 1, 10, True),
        "log2(1 + m) / m, sqrt(1/2) <= 1 + m <= sqrt(2)": (lambda m: mp.log(1 + m, 2) / m, -0.2929, 0.4143, 8),
    }.items():
        print(name)
        print("    " + ", ".join(f"{c:.9e}" for c in minimax(*arguments)))
