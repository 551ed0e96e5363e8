"""Settings of every test: fresh memory is NaN, seeds are fixed, tests that need a GPU say so when there is none."""

import os
import signal

import hypothesis
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported, which difflayers does lazily

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in pytest-xdist's workers, which tests of Ctrl-C are not to be
    signal.signal(signal.SIGINT, signal.default_int_handler)

# also fills the memory of new tensors with NaN, the kernels' outputs included
torch.use_deterministic_algorithms(True)


# the same examples at every run; `make hypothesis` looks further, at other ones every time
hypothesis.settings.register_profile("suite", deadline=None, database=None, max_examples=80, derandomize=True)
hypothesis.settings.register_profile(
    "thorough",
    deadline=None,
    database=None,
    max_examples=int(os.environ.get("EXAMPLES", "2000")),
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("suite")


def pytest_runtest_setup(item):
    torch.manual_seed(0)
    torch.distributions.Distribution.set_default_validate_args(True)  # torch.compile turns it off for good


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
