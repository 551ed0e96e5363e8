"""What torch.compile is to see of a solver: a break in the graph. Import it while compiling only: it loads Dynamo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.disable(reason="difflayers: a solver runs on the host and cannot be traced")
def call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Calls the function outside of the graph."""
    return function(*arguments, **options)
