"""Weights beside a plan: files that hold numbers, and are never executed."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

__all__ = ["read_weights", "write_weights"]

INSTALL = "run: pip install 'difflayers[gates]'"


def write_weights(weights: dict[str, Tensor], path: Path) -> Path:
    """Writes tensors beside `path`: as .safetensors where that package is installed, else as .pt; returns where."""
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}
    try:
        from safetensors.torch import save_file
    except ImportError:
        beside = path.with_suffix(".pt")
        torch.save(tensors, beside)
        return beside
    beside = path.with_suffix(".safetensors")
    save_file(tensors, beside)
    return beside


def read_weights(function: str, path: Path) -> dict[str, Tensor]:
    """Reads what `write_weights` wrote: a dict of tensors, and nothing else."""
    if path.suffix not in (".safetensors", ".pt"):
        raise ValueError(f"{function}: the weights must be a .safetensors or .pt file, got '{path.name}'")
    load = _load_safetensors if path.suffix == ".safetensors" else _load_numbers
    try:
        weights = load(path)
    except FileNotFoundError:
        raise
    except ImportError as error:
        raise ImportError(f"{function}: '{path}' needs safetensors; {INSTALL}") from error
    except Exception as error:  # whatever a broken or hostile file makes of its reader
        first = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{function}: '{path}' must hold the plan's weights, got {type(error).__name__}: {first}"
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{function}: '{path}' must hold tensors by name, got {type(weights).__name__}")
    return weights


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _load_numbers(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True, map_location="cpu")
