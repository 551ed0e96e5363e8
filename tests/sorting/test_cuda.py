"""The CUDA kernels: their algorithm emulated on the CPU against the reference, and themselves where there is a GPU.

`difflayers::emulated_transport*` are the CUDA kernels' own templates, compiled for the host and run one lane after
another, so what they compute is tested on every machine; only launching is left to those with a GPU.
"""

import itertools
import os
import shutil

import pytest
import torch

import difflayers as dl
from difflayers.sorting import networks, reference, swaps
from tests.tolerances import assert_near

pytestmark = pytest.mark.skipif(not dl.build_info()["compiled"], reason="built without kernels")

OPERATORS = ("transport", "transport_backward", "transport_double_backward")
WHAT = ("values", "matrix", "carry", "carry_transposed")
SWAPS = tuple(swaps.SWAPS.values())
NETWORKS = ("odd_even", "bitonic", "odd_even_merge", "table")
SIZES = (0, 1, 2, 5, 8, 17, 32, 33, 70)
WIDTHS = (1, 3, 20)
ROWS = 5

NAN_ROW = 2


def cases(stride, sizes=SIZES, **fixed):
    """Every stride-th case of the whole product; `stride` should share no factor with the counts of the choices."""
    choices = {
        "what": WHAT,
        "swap": SWAPS,
        "network": NETWORKS,
        "n": sizes,
        "m": WIDTHS,
        "hard": (False, True),
        "pruned": (False, True),
        "shared": (False, True),
        "steep": (False, True),
        "per_row_direction": (False, True),
    } | {name: (value,) for name, value in fixed.items()}
    product = itertools.product(*choices.values())
    return [Case(**dict(zip(choices, values, strict=True))) for values in itertools.islice(product, 0, None, stride)]


class Case:
    """One call's arguments, made on the CPU in float64 from a seed that belongs to the case."""

    def __init__(self, *, what, swap, network, n, m, hard, pruned, shared, steep, per_row_direction, rows=ROWS):
        self.what, self.swap, self.hard, self.n = what, swap, hard, n
        self.first, self.last = (n // 3, n - n // 4) if pruned else (0, n)
        if network == "table":
            pairs = [(a, b) for layer in networks.layers("odd_even", n) for a, b in zip(*layer, strict=True)]
            network = f"{n}:" + ",".join(f"{a}-{b}" for a, b in pairs)
        self.network = network
        flags = {"hard": hard, "pruned": pruned, "shared": shared, "steep": steep, "direction": per_row_direction}
        chosen = [name for name in flags if flags[name]]
        self.name = "-".join([what, swap.name, network[:14], f"n{n}", f"m{m}", *chosen])
        wanted = self.last - self.first
        generator = torch.Generator().manual_seed(sum(map(ord, self.name)))
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        self.scores = draw(rows, n)
        if n > 0 and rows > NAN_ROW:
            self.scores[NAN_ROW, n // 2] = torch.nan
        if n > 1 and rows > 1:
            self.scores[1, 0], self.scores[1, n - 1] = torch.inf, -torch.inf
            self.scores[3 % rows, :2] = torch.inf
        self.steepness = draw(rows).abs() * 4 + 1 if steep else None
        carried = {"carry": n, "carry_transposed": wanted}.get(what)
        self.payload = None if carried is None else draw(1 if shared else rows, carried, m)
        shape = {"values": (wanted,), "matrix": (wanted, n), "carry": (wanted, m), "carry_transposed": (n, m)}[what]
        self.gradient = draw(rows, *shape)
        self.h_scores = draw(rows, n)
        self.h_steepness = draw(rows) if steep else None
        self.h_payload = None
        if self.payload is not None:
            # like the operators' results, the direction has every row; its rows may differ though the payload's do not
            self.h_payload = draw(rows if per_row_direction or not shared else 1, *self.payload.shape[1:])

    def __repr__(self):
        return self.name

    def settings(self):
        return (self.what, self.network, self.first, self.last, self.swap.name, self.swap.parameter, 3.0, self.hard)

    def tensors(self, dtype, device="cpu"):
        place = lambda tensor: None if tensor is None else tensor.to(device, dtype)  # noqa: E731
        return (
            tuple(map(place, (self.h_scores, self.h_steepness, self.h_payload))),
            place(self.gradient),
            tuple(map(place, (self.scores, self.steepness, self.payload))),
        )


def run(case, dtype=torch.float64, device="cpu", prefix=""):
    """Forward, gradient and second derivative of the compiled operators."""
    h, gradient, inputs = case.tensors(dtype, device)
    forward, backward, double = (getattr(torch.ops.difflayers, prefix + name).default for name in OPERATORS)
    _, steepness, payload = inputs
    return (
        forward(*inputs, *case.settings()),
        *backward(gradient, *inputs, *case.settings(), steepness is not None, payload is not None),
        *double(*h, gradient, *inputs, *case.settings()),
    )


def run_reference(case, dtype=torch.float64):
    """The same by autograd of the reference; `dtype` rounds the inputs, the computation is in float64."""
    h, gradient, inputs = ([None if t is None else t.double() for t in group] if isinstance(group, tuple)
                           else group.double() for group in case.tensors(dtype))  # fmt: skip
    scores, steepness, payload = inputs
    rows = scores.shape[0]
    # a row at a time has a payload, and so a gradient, of its own
    payload = None if payload is None else payload.expand(rows, -1, -1).clone()
    leaves = [t for t in (scores, steepness, payload) if t is not None]
    for leaf in [*leaves, gradient]:
        leaf.requires_grad_()
    result = reference.transport(
        scores, steepness, payload, case.what, case.network, case.first, case.last, case.swap, 3.0, case.hard
    )
    first = torch.autograd.grad(result, leaves, gradient, create_graph=True, materialize_grads=True)
    directions = [t for t in h if t is not None]
    total = sum((d * g).sum() for d, g in zip(directions, first, strict=True)) + 0 * gradient.sum()
    second = torch.autograd.grad(total, [gradient, *leaves], materialize_grads=True)

    def spread(gradients):  # absent arguments have an empty gradient
        found = iter(gradients)
        return [torch.zeros(0) if t is None else next(found) for t in (scores, steepness, payload)]

    return [t.detach() for t in (result, *spread(first), second[0], *spread(second[1:]))]


NAMES = (
    "forward",
    "of scores", "of steepness", "of payload",
    "second, of gradient", "second, of scores", "second, of steepness", "second, of payload",
)  # fmt: skip


def assert_agree(case, actual, expected, dtype, kinds=NAMES):
    """The row with a NaN is NaN in all that `actual` has; the others agree, within the table's tolerance."""
    for name, got, want in zip(NAMES, actual, expected, strict=True):
        if name not in kinds or (want.numel() == 0 and got.numel() == 0):
            continue
        got = got.cpu()
        sound = torch.ones(got.shape[0], dtype=torch.bool)
        if case.n > 0 and got.shape[0] > NAN_ROW:
            sound[NAN_ROW] = False
        try:
            assert got.dtype == dtype
            assert got[~sound].isnan().all()
            order = 2 if name.startswith("second") else int(name != "forward")
            assert_near(got[sound].double(), want.cpu()[sound].double(), dtype=dtype, order=order, factor=10)
        except AssertionError as error:
            raise AssertionError(f"{case}, {name}: {error}") from error


def without_infinities(case):
    """Second derivatives of the reference are NaN in rows with infinities: it multiplies the values by a row's 1."""
    case.scores.nan_to_num_(nan=torch.nan, posinf=4.0, neginf=-4.0)
    case.scores += torch.linspace(0, 0.3, case.n)  # and has a kink, or a pole, where two are equal
    return case


def first_order(case):
    """The gradients that the reference has too: an error-free carry's by the payload is taken elsewhere (_ops.py)."""
    return NAMES[:3] if case.hard and case.what == "carry" else NAMES[:4]


def kinds_for(case, dtype):
    """What can be compared: in float32, rounding may choose the other side of a kink in f'; the error-free
    transport of a payload has no second derivative."""
    smooth = dtype == torch.float64 or case.swap.name in ("logistic", "gaussian", "cauchy")
    return NAMES if smooth and not (case.hard and case.payload is not None) else first_order(case)


# The whole product would take an hour: a fixed selection, with every choice many times over.
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("what", WHAT)
def test_emulation_is_the_reference(what, dtype):
    for number, case in enumerate(cases(131 if dtype == torch.float64 else 607, what=what)):
        kinds = first_order(case)
        if number % 2:
            case, kinds = without_infinities(case), kinds_for(case, dtype)
        assert_agree(case, run(case, dtype, prefix="emulated_"), run_reference(case, dtype), dtype, kinds)


def test_emulation_is_the_cpu_kernel_with_infinities():
    for case in cases(307, per_row_direction=False):
        assert_agree(case, run(case, prefix="emulated_"), run(case), torch.float64)


@pytest.mark.parametrize("n", range(2, 34))
def test_short_rows_in_registers(n):
    for case in cases(5, what="values", n=n, m=1, network="odd_even_merge", pruned=False, steep=False):
        assert_agree(case, run(case, prefix="emulated_"), run(case), torch.float64)


def test_emulation_is_right_where_values_tie():
    for case in cases(3001, n=17):
        case.scores = (case.scores * 2).round() / 2
        # rounding decides which side of a tie the second derivative is on
        assert_agree(case, run(case, prefix="emulated_"), run_reference(case), torch.float64, first_order(case))


def test_emulation_keeps_a_nan_steepness_in_its_row():
    case = cases(10**9, what="values", n=5, steep=True, rows=2)[0]
    case.steepness[0] = torch.nan
    result = run(case, prefix="emulated_")[0]
    assert result[0].isnan().all()
    assert not result[1].isnan().any()


def test_kernels_are_registered():
    info = dl.build_info()
    if os.environ.get("DIFFLAYERS_REQUIRE_KERNELS") == "1" and os.environ.get("DIFFLAYERS_CUDA") != "0":
        assert info["cuda"] or shutil.which("nvcc") is None
    assert info["cuda"] == bool(info["cuda_architectures"])
    for name in OPERATORS:
        registered = torch._C._dispatch_has_kernel_for_dispatch_key(f"difflayers::{name}", "CUDA")
        assert registered == info["cuda"]


cuda = pytest.mark.cuda


@cuda
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("what", WHAT)
def test_cuda_is_the_emulation(what, dtype):
    for case in cases(131, what=what):
        assert_agree(case, run(case, dtype, "cuda"), run(case, dtype, prefix="emulated_"), dtype,
                     kinds_for(case, dtype))  # fmt: skip


@cuda
@pytest.mark.parametrize("n", [3, 16, 31, 64, 200])
@pytest.mark.parametrize("what", WHAT)
def test_cuda_with_more_rows_than_teams(n, what):
    case = cases(10**9, what=what, n=n, m=3, network="odd_even_merge", steep=True, rows=20011)[0]
    assert_agree(case, run(case, device="cuda"), run(case), torch.float64)


@cuda
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("swap", ["cauchy", "reciprocal"])
@pytest.mark.parametrize("n", [2, 3, 7, 8, 13, 16, 31, 32])
def test_cuda_in_registers(n, swap, hard):
    case = cases(10**9, what="values", n=n, swap=swaps.SWAPS[swap], network="odd_even_merge", hard=hard, rows=20011)[0]
    assert_agree(case, run(case, torch.float32, "cuda"), run(case, torch.float32), torch.float32, NAMES[:2])


@cuda
@pytest.mark.parametrize("n", [255, 256, 257, 1000, 2048, 4099, 16384, 65536])
def test_cuda_on_long_rows(n):
    case = cases(10**9, what="values", n=n, network="odd_even_merge", steep=True, rows=3)[0]
    expected = run(case)
    assert_agree(case, run(case, device="cuda"), expected, torch.float64)
    assert_agree(case, run(case, torch.float32, "cuda"), run(case, torch.float32), torch.float32, NAMES[:1])


@cuda
@pytest.mark.parametrize(("what", "n", "m"), [("matrix", 300, 1), ("carry", 2048, 7), ("carry_transposed", 9000, 2)])
def test_cuda_with_long_payloads(what, n, m):
    case = cases(10**9, what=what, n=n, m=m, network="odd_even_merge", rows=3)[0]
    assert_agree(case, run(case, device="cuda"), run(case), torch.float64)


@cuda
def test_cuda_runs_on_the_current_stream():
    x = torch.randn(4096, 100)
    expected = dl.sort(x)
    stream = torch.cuda.Stream()
    y = x.cuda()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        late = torch.zeros_like(y)
        torch.cuda._sleep(50_000_000)  # a kernel on another stream would read the zeros
        late.copy_(y)
        got = dl.sort(late)
    stream.synchronize()
    torch.testing.assert_close(got.cpu(), expected)


@cuda
def test_cuda_in_a_graph():
    x = torch.randn(64, 19, device="cuda")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = dl.sort(x, network="bitonic")  # the table is uploaded in the middle of the capture
    for _ in range(2):
        x.normal_()
        graph.replay()
        torch.testing.assert_close(result.cpu(), dl.sort(x.cpu(), network="bitonic"))


@cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cuda_on_half_dtypes(dtype):
    x = torch.randn(7, 33).to(dtype)
    on_cpu, on_gpu = x.clone().requires_grad_(), x.cuda().requires_grad_()
    expected, actual = dl.sort(on_cpu), dl.sort(on_gpu)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.cpu(), expected)
    expected.float().square().sum().backward()
    actual.float().square().sum().backward()
    torch.testing.assert_close(on_gpu.grad.cpu(), on_cpu.grad)


@cuda
def test_cuda_gives_the_same_bits_every_time():
    case = cases(10**9, what="carry", n=100, m=20, network="odd_even_merge", steep=True, rows=300)[0]
    for first, second in zip(run(case, torch.float32, "cuda"), run(case, torch.float32, "cuda"), strict=True):
        assert torch.equal(first.nan_to_num(), second.nan_to_num())
