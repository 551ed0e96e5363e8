"""Sorting networks: do they sort, are they the published ones, do the kernels run the same tables?"""

import numpy as np
import pytest
import torch
from diffsort import DiffSortNet

import difflayers as dl
from difflayers import _ops
from difflayers.sorting import networks, reference, swaps
from tests.cases import NETWORKS, SWAPS
from tests.sorting.naive import comparators
from tests.tolerances import assert_near

EVERY_N = range(131)
# where the published bitonic network, which prunes descending blocks, does not sort
PUBLISHED_FAILS_AT = [
    22,
    38,
    42,
    43,
    44,
    45,
    46,
    54,
    70,
    74,
    75,
    76,
    77,
    78,
    *range(82, 95),
    102,
    *range(106, 111),
    118,
]


def zero_one_inputs(n):
    """Every one for n <= 16; above, random ones of every density and all with the ones in one run."""
    if n <= 16:
        return (np.arange(1 << n)[:, None] >> np.arange(n)) & 1 == 1
    random = np.random.default_rng(n)
    sampled = random.random((20_000, n)) < random.random((20_000, 1))
    begin, end = np.triu_indices(n + 1, 1)
    wire = np.arange(n)
    runs = (wire >= begin[:, None]) & (wire < end[:, None])
    return np.concatenate([sampled, runs])


def sorted_by(pairs, inputs):
    wires = np.ascontiguousarray(inputs.T)
    for a, b in pairs:
        wires[a], wires[b] = wires[a] & wires[b], wires[a] | wires[b]
    return wires.T


def unsorted_rows(pairs, inputs):
    out = sorted_by(pairs, inputs)
    return (out[:, :-1] & ~out[:, 1:]).any(axis=1)


@pytest.mark.parametrize("network", NETWORKS)
def test_zero_one_principle_at_every_n(network):
    failing = [n for n in EVERY_N if unsorted_rows(comparators(network, n), zero_one_inputs(n)).any()]
    assert failing == []


def test_the_zero_one_test_can_fail():
    pairs = comparators("odd_even_merge", 16)
    for drop in range(len(pairs)):  # no comparator of Batcher's network is superfluous
        assert unsorted_rows(pairs[:drop] + pairs[drop + 1 :], zero_one_inputs(16)).any()
    for n in PUBLISHED_FAILS_AT:
        assert unsorted_rows(published_bitonic(n), zero_one_inputs(n)).any()


def published_bitonic(n):
    """diffsort's table; a > b in descending blocks."""
    layers = [(layer[0], layer[1]) for layer in DiffSortNet("bitonic", n).sorting_network]
    return [
        (int(a.argmax()), int(b.argmax())) for split_a, split_b in layers for a, b in zip(split_a, split_b, strict=True)
    ]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("n", PUBLISHED_FAILS_AT)
def test_sorts_where_the_published_bitonic_network_does_not(n, network):
    x = torch.randn(500, n)
    assert torch.equal(dl.sort(x, network=network, hard=True), x.sort(dim=-1).values)
    nearly = dl.sort(x.double(), network=network, steepness=1e9, swap="optimal")
    torch.testing.assert_close(nearly, x.double().sort(dim=-1).values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("network", NETWORKS)
def test_layers_share_no_wire_and_point_upwards(network):
    for n in EVERY_N:
        for lower, upper in networks.layers(network, n):
            wires = np.concatenate([lower, upper])
            assert len(np.unique(wires)) == len(wires)
            assert (lower >= 0).all()
            assert (lower < upper).all()
            assert (upper < n).all()


def test_comparator_counts():
    for n in EVERY_N:
        assert len(comparators("odd_even", n)) == n * (n - 1) // 2
    for k in range(1, 11):
        n = 2**k
        assert len(comparators("odd_even_merge", n)) == (k * k - k + 4) * 2**k // 4 - 1
        assert len(comparators("bitonic", n)) == n * k * (k + 1) // 4
        for network in ("odd_even_merge", "bitonic"):
            assert len(networks.layers(network, n)) == k * (k + 1) // 2


def test_odd_even_is_the_published_table():
    pairs = [(i, i + 1) for layer in range(5) for i in range(layer % 2, 4, 2)]
    assert comparators("odd_even", 5) == pairs


DIFFSORT_NAMES = {"logistic_art": "logistic_phi"}


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize(
    ("network", "n"), [("bitonic", n) for n in (2, 4, 8, 16, 32)] + [("odd_even", n) for n in range(2, 10)]
)
def test_equals_diffsort(network, n, swap):
    x = torch.randn(4, n, dtype=torch.float64)
    peer = DiffSortNet(network, n, steepness=3.0, distribution=DIFFSORT_NAMES.get(swap, swap))
    peer.sorting_network = [[wires.double() for wires in layer] for layer in peer.sorting_network]
    values, transposed = peer(x)
    # diffsort guards the division in "optimal" by 1e-10
    guard = 1e4 if swap == "optimal" else 10
    assert_near(dl.sort(x, network=network, swap=swap, steepness=3.0), values, factor=guard)
    assert_near(dl.permutation(x, network=network, swap=swap, steepness=3.0), transposed.mT, factor=guard)


@pytest.mark.parametrize("network", NETWORKS)
def test_pruned_networks_give_the_same_wanted_outputs(network):
    for n in (5, 16, 23, 64):
        full = comparators(network, n)
        inputs = zero_one_inputs(n)[:20_000]
        for first, last in [(0, 1), (0, 3), (n - 3, n), (n // 2, n // 2 + 2), (0, n), (2, 2)]:
            layers = networks.layers(network, n, first, last)
            pruned = [(int(a), int(b)) for layer in layers for a, b in zip(*layer, strict=True)]
            wanted = slice(first, last)
            assert (sorted_by(pruned, inputs)[:, wanted] == sorted_by(full, inputs)[:, wanted]).all()
            if (first, last) == (0, n):
                assert pruned == full
            elif n > 5:  # at 5, the middle wires depend on every comparator
                assert len(pruned) < len(full)
            if n == 64 and last - first == 3 and network == "odd_even_merge":
                assert len(pruned) < len(full) * 2 / 3
            assert (last > first) or not pruned


@pytest.mark.skipif(not dl.build_info()["compiled"], reason="the kernels are not compiled in")
@pytest.mark.parametrize("network", NETWORKS)
def test_kernels_run_the_same_tables(network):
    """The C++ generators against the Python ones: a different table would give different soft values."""
    cauchy = swaps.SWAPS["cauchy"]
    for n in EVERY_N:
        x = torch.randn(2, n, dtype=torch.float64)
        for first, last in [(0, n), (n // 3, n // 2)]:
            call = (x, None, None, "values", network, first, last)
            expected = reference.transport(*call, cauchy, 3.0, False)
            assert_near(_ops.transport(*call, "cauchy", 0.0, 3.0, False), expected, factor=10)


class TestCustomNetwork:
    table = ((0, 1), (2, 3), (0, 2), (1, 3), (1, 2))

    @pytest.mark.parametrize(
        "make", [list, np.array, lambda t: [list(p) for p in t], tuple], ids=["list", "array", "lists", "tuple"]
    )
    def test_works_in_every_function(self, make):
        network = dl.Network(make(self.table))
        assert (network.n, len(network.layers)) == (4, 3)
        x, payload = torch.randn(3, 4), torch.randn(3, 4, 2)
        order = x.argsort(-1)
        setting = {"network": network, "hard": True}
        assert torch.equal(dl.sort(x, **setting), x.sort(-1).values)
        assert torch.equal(dl.rank(x, **setting), order.argsort(-1) + 1.0)
        assert torch.equal(dl.permutation(x, **setting), torch.nn.functional.one_hot(order, 4).float())
        assert torch.equal(dl.topk(x, 2, **setting).values, x.topk(2).values)
        assert torch.equal(dl.sort_by(x, payload, **setting), payload.gather(1, order[..., None].expand(-1, -1, 2)))
        assert_near(dl.median(x, **setting), x.quantile(0.5, dim=-1))
        assert torch.equal(dl.SortingNetwork(4, network=network, hard=True)(x), x.sort(-1).values)

    def test_equals_the_built_in_network_with_the_same_table(self):
        x = torch.randn(3, 9, dtype=torch.float64)
        for name in NETWORKS:
            network = dl.Network(comparators(name, 9))
            assert_near(dl.permutation(x, network=network), dl.permutation(x, network=name))

    @pytest.mark.parametrize("n", [4, 9, 16, 20, 33])
    def test_one_that_does_not_sort_names_a_counterexample(self, n):
        table = comparators("odd_even_merge", n)[:-1]
        with pytest.raises(ValueError, match=r"Network: argument 'comparators' must be a sorting network") as caught:
            dl.Network(table, n=n)
        text = str(caught.value)
        named = np.array([int(bit) for bit in text[text.index("[") + 1 : text.index("]")].split(",")], dtype=bool)
        assert named.shape == (n,)
        assert unsorted_rows(table, named[None]).all()

    @pytest.mark.parametrize(
        ("table", "n"),
        [([(0, 4)], 4), ([(1, 0)], None), ([(1, 1)], None), ([(-1, 1)], None), ([(0, 1), (2, 1)], 3)],
    )
    def test_bad_pairs_are_named(self, table, n):
        with pytest.raises(ValueError, match=r"Network: argument 'comparators' must hold pairs with 0 <= a < b < n"):
            dl.Network(table, n=n)

    @pytest.mark.parametrize("table", [[(0.0, 1.0)], [(0, 1, 2)], [0, 1], "ab", [("a", "b")]])
    def test_other_things_raise(self, table):
        with pytest.raises(TypeError, match=r"Network: argument 'comparators' must be pairs of integers"):
            dl.Network(table)

    def test_wrong_size(self):
        with pytest.raises(
            ValueError, match=r"difflayers.sort: argument 'network' must have as many wires .* \(5\).*4"
        ):
            dl.sort(torch.randn(5), network=dl.Network(self.table))

    @pytest.mark.parametrize("n", [0, 1])
    def test_no_comparators(self, n):
        x = torch.randn(2, n)
        assert torch.equal(dl.sort(x, network=dl.Network([], n=n)), x)
