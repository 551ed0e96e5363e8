"""Every bad input raises one sentence: function, argument, rule, what came. (Modules' and losses': sorting/.)"""

import math
import re

import pytest
import torch

import difflayers as dl

X, PAYLOAD = torch.randn(3, 4), torch.randn(3, 4, 2)
NAN, INF = math.nan, math.inf
FUNCTIONS = {  # name -> a call with scores and settings
    "sort": dl.sort,
    "permutation": dl.permutation,
    "rank": dl.rank,
    "sort_by": lambda x, **s: dl.sort_by(x, PAYLOAD, **s),
    "topk": lambda x, **s: dl.topk(x, 2, **s),
    "quantile": lambda x, **s: dl.quantile(x, 0.5, **s),
    "median": dl.median,
}
# median is quantile(0.5) and says so
NAMES = {"median": "(median|quantile)"}
each_function = pytest.mark.parametrize("name", FUNCTIONS)

SHARED = [  # error, argument, what the message must show, a call with that argument wrong
    (TypeError, "x", r"torch\.Tensor, got list", lambda f: f([3.0, 1.0])),
    (TypeError, "x", r"floating-point dtype, got int64; convert it with x\.float\(\)",
     lambda f: f(torch.ones(3, 4).long())),
    (TypeError, "x", r"floating-point dtype, got bool", lambda f: f(torch.ones(3, 4).bool())),
    (TypeError, "x", r"floating-point dtype, got complex64", lambda f: f(torch.ones(3, 4) * 1j)),
    (ValueError, "x", r"at least one dimension, got a scalar", lambda f: f(torch.tensor(1.0))),
    (ValueError, "dim", r"in \[-2, 1\] for an input of shape \(3, 4\), got 2", lambda f: f(X, dim=2)),
    (ValueError, "dim", r"in \[-2, 1\].*got -3", lambda f: f(X, dim=-3)),
    (TypeError, "dim", r"an integer, got float", lambda f: f(X, dim=1.0)),
    (TypeError, "dim", r"an integer, got NoneType", lambda f: f(X, dim=None)),
    (TypeError, "dim", r"an integer, got bool", lambda f: f(X, dim=True)),
    (ValueError, "network", r"'odd_even', 'bitonic', 'odd_even_merge'.*Network, got 'quick'",
     lambda f: f(X, network="quick")),
    (TypeError, "network", r"'odd_even', 'bitonic', 'odd_even_merge'.*got list", lambda f: f(X, network=[(0, 1)])),
    (ValueError, "network", r"as many wires as the input has elements \(4\), got a network of 2",
     lambda f: f(X, network=dl.Network([(0, 1)]))),
    (ValueError, "swap", r"'logistic', 'logistic_art', 'gaussian', 'reciprocal', 'cauchy', 'optimal'.*got 'step'",
     lambda f: f(X, swap="step")),
    (TypeError, "swap", r"'cauchy', 'optimal'.*difflayers\.swaps object, got builtin",
     lambda f: f(X, swap=torch.sigmoid)),
    (ValueError, "steepness", r"finite number in \(0, .*got 0", lambda f: f(X, steepness=0)),
    (ValueError, "steepness", r"finite number in \(0, .*got -1", lambda f: f(X, steepness=-1.0)),
    (ValueError, "steepness", r"finite number in \(0, .*got nan", lambda f: f(X, steepness=NAN)),
    (ValueError, "steepness", r"finite number in \(0, .*got inf", lambda f: f(X, steepness=INF)),
    (TypeError, "steepness", r"a number, got str", lambda f: f(X, steepness="10")),
    (TypeError, "steepness", r"a number, got bool", lambda f: f(X, steepness=True)),
    (TypeError, "steepness", r"floating-point dtype, got int64", lambda f: f(X, steepness=torch.ones(3, 1).long())),
    (ValueError, "steepness", r"positive and finite everywhere, got -1", lambda f: f(X, steepness=torch.tensor(-1.0))),
    (ValueError, "steepness", r"positive and finite everywhere, got nan", lambda f: f(X, steepness=torch.tensor(NAN))),
    (ValueError, "steepness", r"broadcastable .*got \(3,\); use keepdim form", lambda f: f(X, steepness=torch.ones(3))),
    (TypeError, "hard", r"True or False, got int", lambda f: f(X, hard=1)),
    (TypeError, "mask", r"bool tensor \(True = present\), got torch.float32", lambda f: f(X, mask=torch.ones(3, 4))),
    (TypeError, "mask", r"bool tensor \(True = present\), got list", lambda f: f(X, mask=[True] * 4)),
    (ValueError, "mask", r"broadcastable .*\(3, 4\), got \(5,\)", lambda f: f(X, mask=torch.ones(5).bool())),
]  # fmt: skip


@pytest.mark.parametrize(("error", "argument", "shown", "call"), SHARED, ids=lambda v: v if isinstance(v, str) else "")
@each_function
def test_arguments_of_every_function(name, error, argument, shown, call):
    with pytest.raises(error, match=rf"^difflayers\.{NAMES.get(name, name)}: argument '{argument}' must .*{shown}"):
        call(FUNCTIONS[name])


@pytest.mark.parametrize("name", ["sort", "permutation", "rank", "sort_by"])
def test_descending(name):
    with pytest.raises(TypeError, match=rf"^difflayers\.{name}: argument 'descending' must be True or False, got str"):
        FUNCTIONS[name](X, descending="yes")


OWN = [
    (ValueError, "topk", "k", r"in \[0, 4\], got 5", lambda: dl.topk(X, 5)),
    (ValueError, "topk", "k", r"in \[0, 4\], got -1", lambda: dl.topk(X, -1)),
    (TypeError, "topk", "k", r"an integer, got float", lambda: dl.topk(X, 2.0)),
    (TypeError, "topk", "k", r"an integer, got bool", lambda: dl.topk(X, True)),
    (TypeError, "topk", "largest", r"True or False, got int", lambda: dl.topk(X, 2, largest=1)),
    (ValueError, "quantile", "q", r"in \[0, 1\], got 1.5", lambda: dl.quantile(X, 1.5)),
    (ValueError, "quantile", "q", r"in \[0, 1\], got nan", lambda: dl.quantile(X, NAN)),
    (ValueError, "quantile", "q", r"in \[0, 1\], got \[0.5, -1.0\]", lambda: dl.quantile(X, torch.tensor([0.5, -1.0]))),
    (ValueError, "quantile", "q", r"0 or 1 dimensions, got shape \(1, 1\)", lambda: dl.quantile(X, torch.rand(1, 1))),
    (TypeError, "quantile", "q", r"a number, got str", lambda: dl.quantile(X, "half")),
    (TypeError, "quantile", "q", r"floating-point dtype, got int64", lambda: dl.quantile(X, torch.tensor(1))),
    (ValueError, "quantile", "x", r"at least one element .*\(3, 0\)", lambda: dl.quantile(X[:, :0], 0.5)),
    (TypeError, "quantile", "keepdim", r"True or False, got int", lambda: dl.quantile(X, 0.5, keepdim=1)),
    (TypeError, "sort_by", "payload", r"torch\.Tensor, got list", lambda: dl.sort_by(X, [1.0])),
    (TypeError, "sort_by", "payload", r"floating-point dtype, got int64", lambda: dl.sort_by(X, PAYLOAD.long())),
    (ValueError, "sort_by", "payload", r"n = 4.*got \(4,\)", lambda: dl.sort_by(X[0], torch.randn(4))),
    (ValueError, "sort_by", "payload", r"n = 4.*got \(3, 5, 2\)", lambda: dl.sort_by(X, torch.randn(3, 5, 2))),
    (ValueError, "sort_by", "payload", r"\(3,\), got \(2,\)", lambda: dl.sort_by(X, torch.randn(2, 4, 2))),
    (TypeError, "sort_by", "inverse", r"True or False, got int", lambda: dl.sort_by(X, PAYLOAD, inverse=1)),
]


@pytest.mark.parametrize(("error", "name", "argument", "shown", "call"), OWN)
def test_arguments_of_one_function(error, name, argument, shown, call):
    with pytest.raises(error, match=rf"^difflayers\.{name}: argument '{argument}' must .*{shown}"):
        call()


def test_messages_are_one_sentence():
    messages = []
    for _, _, _, call in SHARED:
        with pytest.raises((TypeError, ValueError)) as caught:
            call(dl.sort)
        messages.append(str(caught.value))
    for message in messages:
        assert "\n" not in message
        assert len(message) < 300
        assert not message.endswith(".")
        assert re.match(r"difflayers\.sort: argument '\w+' must ", message)


def test_options_are_keyword_only():
    for f in (dl.sort, dl.permutation, dl.rank, dl.median):
        with pytest.raises(TypeError, match="positional"):
            f(X, True)


def test_debug_checks_contents_where_they_usually_are_not():
    assert dl._checks.contents_are_checked(X)
    with dl.debug():
        assert dl._checks.contents_are_checked(X)
        with pytest.raises(ValueError, match="steepness"):
            dl.sort(X, steepness=torch.tensor(-1.0))
    # meta tensors have no contents
    assert dl.sort(X.to("meta"), steepness=torch.ones(3, 1, device="meta")).shape == X.shape


def test_own_exceptions():
    assert issubclass(dl.UnsupportedOperationError, dl.Error)
    assert issubclass(dl.Error, Exception)
