"""The compiled kernels against the plain-PyTorch reference: value, gradient, and gradient of the gradient."""

import os
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch

import difflayers as dl
from difflayers import _ops
from difflayers.sorting import reference, swaps
from tests.cases import NETWORKS, SWAPS
from tests.sorting.naive import SIGMOIDS
from tests.tolerances import assert_identical, assert_near

pytestmark = pytest.mark.skipif(not dl.build_info()["compiled"], reason="the kernels are not compiled in")

CONSTANT = 3.3  # the steepness of all rows where they share one
WHAT = ("values", "matrix", "carry", "carry_transposed")


class Problem(NamedTuple):
    rows: int
    n: int
    first: int
    last: int
    width: int  # of the payload; the kernels turn from samples to columns as lanes at 4/5
    network: str


PROBLEMS = (
    Problem(3, 5, 0, 5, 2, "bitonic"),
    Problem(17, 8, 2, 6, 1, "odd_even_merge"),
    Problem(2, 33, 0, 33, 6, "odd_even"),
    Problem(1, 40, 30, 40, 17, "odd_even_merge"),
    Problem(20, 19, 0, 19, 1, "bitonic"),
    Problem(2, 4, 2, 2, 3, "odd_even_merge"),  # no outputs wanted
    Problem(5, 1, 0, 1, 2, "bitonic"),
)
each_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: f"{p.network}-{p.rows}x{p.n}")
each_what = pytest.mark.parametrize("what", WHAT)


def leaves_of(problem, what, *, dtype, shared):
    """Scores, steepness and payload; shared means one steepness and one payload for all rows."""
    scores = torch.randn(problem.rows, problem.n, dtype=dtype)
    steepness = None if shared else torch.rand(problem.rows, dtype=dtype) * 5 + 1
    payload = None
    if what.startswith("carry"):
        length = problem.n if what == "carry" else problem.last - problem.first
        payload = torch.randn(1 if shared else problem.rows, length, problem.width, dtype=dtype)
    return scores, steepness, payload


def run(path, leaves, problem, what, swap, hard):
    call = (*leaves, what, problem.network, problem.first, problem.last)
    swap = swaps.SWAPS[swap]
    if path == "kernel":
        return _ops.transport(*call, swap.name, swap.parameter, CONSTANT, hard)
    return reference.transport(*call, swap, CONSTANT, hard)


def twice_differentiated(path, leaves, problem, what, swap, hard):
    """The value; its gradients; the derivative of a random direction of those by everything they depend on."""
    leaves = [leaf if leaf is None else leaf.clone().requires_grad_() for leaf in leaves]
    if leaves[1] is None and leaves[2] is not None:  # a shared payload is a constant of the library's own
        leaves[2].requires_grad_(False)
    wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    value = run(path, leaves, problem, what, swap, hard)
    random = torch.Generator().manual_seed(1)
    weight = torch.randn(value.shape, generator=random).to(value.dtype).requires_grad_()
    # without comparators (n < 2) nothing depends on the steepness
    missing = {"allow_unused": True, "materialize_grads": True}
    gradients = torch.autograd.grad((value * weight).sum(), wanted, create_graph=True, **missing)
    if hard and leaves[2] is not None:
        return value, gradients, ()  # the second derivative raises: test_error_free_payloads_...
    directions = [torch.randn(g.shape, generator=random).to(g.dtype) for g in gradients]
    along = sum((g * h).sum() for g, h in zip(gradients, directions, strict=True))
    second = torch.autograd.grad(along, [weight, *wanted], **missing)
    return value, gradients, second


def assert_same_derivatives(problem, what, swap, hard, *, dtype, shared=False, factor=1.0):
    leaves = leaves_of(problem, what, dtype=dtype, shared=shared)
    actual = twice_differentiated("kernel", leaves, problem, what, swap, hard)
    # the reference runs in float64 on the same numbers: it has no error of its own
    exact = [leaf if leaf is None else leaf.double() for leaf in leaves]
    expected = twice_differentiated("reference", exact, problem, what, swap, hard)
    assert_near(actual[0], expected[0], order=0, factor=factor)
    for order in (1, 2):
        for a, b in zip(actual[order], expected[order], strict=True):
            assert_near(a, b, order=order, factor=factor)


@pytest.mark.parametrize("shared", [False, True], ids=["per row", "shared"])
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("swap", SWAPS)
@each_what
@each_problem
def test_core_float64(problem, what, swap, hard, shared):
    assert_same_derivatives(problem, what, swap, hard, dtype=torch.float64, shared=shared)


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("swap", SWAPS)
@each_what
@each_problem
def test_core_float32(problem, what, swap, hard):
    assert_same_derivatives(problem, what, swap, hard, dtype=torch.float32)


@pytest.mark.parametrize("what", ["carry", "carry_transposed"])
def test_error_free_payloads_have_no_second_derivative(what):
    problem = PROBLEMS[0]
    scores, _, payload = leaves_of(problem, what, dtype=torch.float64, shared=True)
    scores.requires_grad_()
    value = run("kernel", (scores, None, payload), problem, what, "cauchy", True)
    (gradient,) = torch.autograd.grad(value.sum(), scores, create_graph=True)
    with pytest.raises(dl.UnsupportedOperationError, match="hard=True"):
        gradient.sum().backward()


@pytest.mark.parametrize("width", range(1, 21))
@pytest.mark.parametrize("what", ["carry", "carry_transposed"])
def test_core_payload_widths(what, width):
    for rows in (1, 5, 18):
        problem = Problem(rows, 9, 1, 8, width, "odd_even_merge")
        assert_same_derivatives(problem, what, "cauchy", False, dtype=torch.float64)


@pytest.mark.parametrize("n", [2, 3, 7, 16, 31, 64, 127, 128, 129, 200, 513])
@pytest.mark.parametrize("rows", [1, 2, 3, 15, 16, 33])
def test_core_tile_edges(n, rows):
    problem = Problem(rows, n, 0, n, 1, "odd_even_merge")
    assert_same_derivatives(problem, "values", "cauchy", False, dtype=torch.float64, factor=n)
    if n * rows < 1000:  # larger matrices only take longer
        assert_same_derivatives(problem, "matrix", "reciprocal", False, dtype=torch.float64, factor=n)


STATED_BOUND = 3e-7  # csrc/approximations.h


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("swap", SWAPS)
def test_core_approximations_keep_their_stated_bound(swap, sign):
    d = sign * torch.cat([torch.zeros(1), torch.logspace(-9, 6, 40_001), torch.linspace(0, 12, 40_001)])
    weight = dl.permutation(torch.stack([torch.zeros_like(d), d], dim=1), swap=swap, steepness=1.0)[:, 0, 0]
    expected = SIGMOIDS[swap](d.double(), 1.0)
    assert (weight.double() - expected).abs().max() <= STATED_BOUND


IN_USE = dl.build_info()["instruction_set"]  # the tests above have run on it
CORE = "test_core_float32 or (test_core_float64 and per) or approximations or widths"


def in_a_fresh_process(*arguments, isa):
    environment = {**os.environ, "DIFFLAYERS_ISA": isa}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("isa", [isa for isa in dl.build_info()["instruction_sets"] if isa != IN_USE])
def test_other_instruction_sets(isa):
    done = in_a_fresh_process("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", CORE, __file__, isa=isa)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("isa", dl.build_info()["instruction_sets"])
def test_instruction_set_can_be_chosen(isa):
    done = in_a_fresh_process("-c", "import difflayers as dl; print(dl.build_info()['instruction_set'])", isa=isa)
    assert done.stdout.strip() == isa


def test_unknown_instruction_set_names_the_choices():
    done = in_a_fresh_process("-c", "import torch, difflayers as dl; dl.sort(torch.ones(2))", isa="nonsense")
    assert done.returncode != 0
    assert "DIFFLAYERS_ISA must be one of baseline" in done.stderr
    assert "got nonsense" in done.stderr
    for isa in dl.build_info()["instruction_sets"]:
        assert isa in done.stderr


# the larger matrices would take seconds, and split over threads as the small ones do
THREADED = [(what, 64, 128) for what in WHAT] + [(what, 3, 2048) for what in WHAT if what != "matrix"]


@pytest.mark.parametrize(("what", "rows", "n"), THREADED)
def test_two_threads_give_the_result_of_one(what, rows, n):
    problem = Problem(rows, n, 0, n, 6, "odd_even_merge")
    leaves = leaves_of(problem, what, dtype=torch.float64, shared=False)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            leaf = leaves[0].clone().requires_grad_()
            value = run("kernel", [leaf, *leaves[1:]], problem, what, "cauchy", False)
            value.square().sum().backward()
            results.append((value.detach(), leaf.grad))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert_near(two, one, order=1)


# beyond 8 MiB of tape the kernels recompute from checkpoints: from 65,536 packets on
LARGE = [
    ("values", Problem(16, 400, 0, 400, 1, "odd_even"), False),
    ("values", Problem(16, 400, 0, 400, 1, "odd_even"), True),
    ("values", Problem(1, 20_000, 0, 20_000, 1, "odd_even_merge"), False),
    ("values", Problem(1, 20_000, 19_900, 20_000, 1, "bitonic"), True),
    ("carry", Problem(16, 400, 0, 400, 2, "odd_even"), False),
    ("carry", Problem(2, 4096, 0, 4096, 6, "odd_even_merge"), False),
    ("carry_transposed", Problem(1, 4096, 5, 4000, 7, "odd_even_merge"), False),
    ("carry_transposed", Problem(1, 20_000, 0, 20_000, 1, "odd_even_merge"), False),
]


@pytest.mark.slow
@pytest.mark.parametrize(("what", "problem", "hard"), LARGE, ids=str)
def test_large_rows_with_checkpoints(what, problem, hard):
    # rounding and conditioning grow with the depth, 78 to 400 layers
    assert_same_derivatives(problem, what, "cauchy", hard, dtype=torch.float64, factor=100)


@pytest.mark.slow
@pytest.mark.parametrize("n", [4096, 20_000])
def test_large_rows_exactly(n):
    x = torch.stack([torch.randperm(n), torch.randperm(n)]).float().requires_grad_()  # distinct, 0 to n - 1
    weight = torch.randn(2, n)
    steep = {"swap": "logistic", "steepness": 1e3, "hard": True}
    values = dl.sort(x, **steep)
    assert_identical(values.detach(), torch.arange(float(n)).expand(2, n))
    assert_identical(dl.rank(x, hard=True).detach(), x.detach() + 1)
    # at a steepness beyond every difference the relaxed adjoint is that of the exact permutation
    (gradient,) = torch.autograd.grad((values * weight).sum(), x)
    assert_near(gradient, weight.gather(1, x.detach().long()), order=1)
    # the sum of the values is conserved, so every gradient of it is 1
    (gradient,) = torch.autograd.grad(dl.sort(x / n).sum(), x)
    assert_near(gradient * n, torch.ones(2, n), order=1)


@pytest.mark.parametrize("network", NETWORKS)
def test_rows_do_not_depend_on_their_neighbours(network):
    x = torch.randn(37, 23)
    together = dl.sort(x, network=network)
    for rows in (slice(0, 1), slice(16, 17), slice(5, 20), slice(36, 37)):
        assert_near(dl.sort(x[rows], network=network), together[rows])
