"""Side-by-side timing: contenders take turns within one run, so that a noisy machine hits all of them alike."""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def side_by_side(
    contenders: dict[str, Callable[[], object]], seconds: float = 0.5, rounds: int = 9
) -> dict[str, float]:
    """The fastest of several rounds of each contender, in seconds per call.

    Within a round every contender runs for about seconds / rounds, in turn. The fastest round is the one that the
    rest of the machine disturbed least.
    """
    calls, best = {}, {}
    for name, run in contenders.items():
        run()
        start = time.perf_counter()
        run()
        once = time.perf_counter() - start
        calls[name] = max(1, int(seconds / rounds / max(once, 1e-7)))
        best[name] = once
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, run in contenders.items():
                if best[name] > 2 * seconds:
                    continue  # a slow peer: its two runs above must do
                start = time.perf_counter()
                for _ in range(calls[name]):
                    run()
                best[name] = min(best[name], (time.perf_counter() - start) / calls[name])
    finally:
        gc.enable()
    return best


def trained(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Callable[[], object]:
    """Forward and backward of sum(w * function(x)) through autograd, with a fixed random w."""
    x = x.detach().clone().requires_grad_()
    w = torch.randn_like(function(x).detach())

    def run() -> None:
        torch.autograd.grad(function(x), x, w)

    return run


def saved_floats(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> int:
    """How many bytes / 4 autograd keeps for the backward of function(x), x itself included."""
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = x.detach().clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(x)
    return sum(seen.values()) // 4


def machine(peers: Sequence[str] = ("diffsort", "difftopk", "torchsort", "reinmax")) -> list[str]:
    """The machine and the versions, those of the peers included, a line each."""
    processor = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = names[0] if names else processor
    import difflayers

    versions = [f"torch {torch.__version__}", f"difflayers {difflayers.__version__}"]
    for peer in peers:
        try:
            versions.append(f"{peer} {version(peer)}")
        except PackageNotFoundError:
            versions.append(f"{peer} absent")
    return [
        f"processor: {processor}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start",
        f"versions: {', '.join(versions)}, Python {platform.python_version()}",
        f"instruction set: {difflayers.build_info()['instruction_set']}",
    ]
