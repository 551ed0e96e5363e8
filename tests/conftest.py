"""Settings of every test: fresh memory is NaN, seeds are fixed, tests that need a GPU say so when there is none."""

import os
import signal

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported, which difflayers does lazily

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in pytest-xdist's workers, which tests of Ctrl-C are not to be
    signal.signal(signal.SIGINT, signal.default_int_handler)

# also fills the memory of new tensors with NaN, the kernels' outputs included
torch.use_deterministic_algorithms(True)


def pytest_runtest_setup(item):
    torch.manual_seed(0)
    torch.distributions.Distribution.set_default_validate_args(True)  # torch.compile turns it off for good


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
