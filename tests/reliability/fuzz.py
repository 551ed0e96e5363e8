"""Malformed and unusual arguments, given straight to the compiled operators and to the public functions.

    python -m tests.reliability.fuzz --cases 2000
    python -m tests.reliability.fuzz --target operator:transport --first 1234 --cases 1    # one case again

Every case is made from its target and its number. It must end in one of two ways: a Python error that says something
(from a public function: TypeError, ValueError, IndexError or an error of difflayers), or a result that is the same
when computed again and the same as from contiguous copies of the arguments. Anything else, a crash above all, is a
finding. With --log FILE the case in hand is written there before it runs, so that a crash tells which one it was.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import difflayers as dl
from tests.reliability import public_calls, tables
from tests.reliability.operators import CALLS, Finding, Maker, operator, same

HUGE = (2**31 - 1, 2**31, 2**40, 2**62, -1, -(2**31), -(2**63))
STRINGS = ("", "values", "cauchy", "odd_even", "sampson", "no such thing", "a" * 5000, "4:0-1", "é\x00x")
DTYPES = (torch.float16, torch.float32, torch.float64, torch.int64, torch.int32, torch.bool, torch.complex64)


def _same_numbers(m: Maker, x: Tensor) -> Tensor:
    """Another layout of the same tensor."""
    kind = m.integer(0, 3)
    if x.dim() == 0:
        return x.clone()
    if kind == 0 and x.dim() >= 2:  # the last two dimensions swapped in memory
        return x.mT.contiguous().mT
    if kind == 1 and x.numel():  # far apart
        stride = m.pick((7, 4097))
        wide = x.new_zeros(*x.shape, stride)
        wide[..., stride // 2] = x
        return wide[..., stride // 2]
    if kind == 2 and x.numel():  # inside of something larger, not at its beginning
        room = x.new_ones([size + 3 for size in x.shape])
        inside = room[tuple(slice(2, 2 + size) for size in x.shape)]
        return inside.copy_(x)
    return x.flip(-1).flip(-1) if kind == 3 else x.clone()


def _other_tensor(m: Maker, x: Tensor) -> Any:
    """Something that is not what was asked for."""
    kind = m.integer(0, 9)
    if kind == 0:
        return x.to(m.pick(DTYPES))
    if kind == 1:
        return x.unsqueeze(m.integer(0, x.dim()))
    if kind == 2 and x.dim():
        return x.select(m.integer(0, x.dim() - 1), 0) if 0 not in x.shape else x.flatten()
    if kind == 3 and x.dim():  # one more, one less, none
        dim = m.integer(0, x.dim() - 1)
        size = max(0, m.pick((x.shape[dim] + 1, x.shape[dim] - 1, 0)))
        return x.narrow(dim, 0, size) if size <= x.shape[dim] else torch.cat([x, x[:0].new_zeros(
            [1 if d == dim else s for d, s in enumerate(x.shape)])], dim)  # fmt: skip
    if kind == 4 and x.numel():  # one number for everything
        return x.flatten()[0].expand(x.shape)
    if kind == 5 and x.dim():  # no rows, but very long ones
        return x.new_empty(0).expand(*([0] * (x.dim() - 1)), 0) if x.dim() > 1 else x[:0]
    if kind == 6 and x.dim() >= 2:
        return x.new_empty(0, *([m.pick((98_304, 2**40))] * 1), *x.shape[2:])
    if kind == 7:
        return _filled(m, x)
    if kind == 8:
        return x.to_sparse() if x.is_floating_point() and x.dim() and x.numel() else x
    return m.pick((None, 3, 1.5, "text", [1.0, 2.0], x.tolist()))


def _filled(m: Maker, x: Tensor) -> Tensor:
    """The same shape with extreme or arbitrary numbers in some places."""
    if x.dtype == torch.bool or not x.numel():
        return x
    if x.is_floating_point():
        values = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-45, 1e38, -1e300)
    else:
        values = (-1, 0, 1, 2**31 - 1, -(2**31), x.shape[-1] if x.dim() else 1)
    result, where = x.clone(), m.uniform(*x.shape) < m.pick((0.1, 0.5, 1.0))
    return result.masked_fill_(where, torch.tensor(m.pick(values), dtype=torch.float64 if x.is_floating_point() else
                                                   torch.int64).to(x.dtype))  # fmt: skip


def _other_number(m: Maker, value: Any) -> Any:
    if isinstance(value, bool):
        return m.pick((not value, None, 2, "yes"))
    if isinstance(value, int):
        return m.pick((*HUGE, 0, 1, value + 1, value - 1, 0.5, None))
    return m.pick((float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 1e308, 1e-308, None, "text"))


def changed(m: Maker, arguments: list[Any]) -> list[Any]:
    """One to three arguments replaced."""
    result = list(arguments)
    for i in sorted({m.integer(0, len(arguments) - 1) for _ in range(m.integer(1, 3))}):
        value = result[i]
        if isinstance(value, Tensor):
            result[i] = _same_numbers(m, value) if m.integer(0, 2) == 0 else _other_tensor(m, value)
        elif value is None:
            result[i] = m.pick((None, m.normal(2, 3), m.uniform(4) > 0.5, 1))
        elif isinstance(value, str):
            result[i] = m.pick((*STRINGS, None, 1))
        else:
            result[i] = _other_number(m, value)
    return result


def _copies(arguments: list[Any]) -> list[Any]:
    return [a.contiguous().clone() if isinstance(a, Tensor) and a.layout == torch.strided else a for a in arguments]


# said by torch of numbers of samples that no machine holds
UNDERSTOOD = ("can't allocate memory", "Overflow when unpacking long", "not enough memory")


def outcome(run: Callable[..., Any], arguments: list[Any], errors: tuple[type[Exception], ...], mark: str) -> str:
    """ "raised" or "computed"; Finding else. `mark` is what the message of an error must contain."""
    try:
        result = run(*arguments)
    except Exception as error:
        if any(text in str(error) for text in UNDERSTOOD):
            return "raised"
        if not isinstance(error, errors):
            raise Finding(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}") from error
        if not str(error).strip() or mark not in str(error):
            raise Finding(f"{type(error).__name__} that does not say what is wrong: {str(error)[:300]!r}") from error
        return "raised"
    if not same(result, run(*arguments)):
        raise Finding("another result from the same arguments")
    if not same(result, run(*_copies(arguments))):
        raise Finding("another result from contiguous copies of the arguments")
    return "computed"


def operator_case(name: str, seed: int) -> str:
    m = Maker(seed)
    arguments = changed(m, CALLS[name](m))
    return outcome(operator(name), arguments, (Exception,), "")


def function_case(name: str, seed: int) -> str:
    m = Maker(seed)
    run, arguments = public_calls.CALLS[name](m)
    arguments = changed(m, arguments)

    def seeded(*values: Any) -> Any:
        torch.manual_seed(seed)
        return run(*values)

    return outcome(seeded, arguments, (TypeError, ValueError, IndexError, dl.Error), "difflayers")


def targets() -> dict[str, Callable[[int], str]]:
    """Every target: a function of the case's number that returns how it ended."""
    found: dict[str, Callable[[int], str]] = {}
    for name in CALLS:
        found[f"operator:{name}"] = lambda seed, name=name: operator_case(name, seed)
    for name, case in tables.CASES.items():
        found[f"table:{name}"] = case
    for name in public_calls.CALLS:
        found[f"function:{name}"] = lambda seed, name=name: function_case(name, seed)
    return found


def run(name: str, case: Callable[[int], str], seeds: range, log: Any = None) -> tuple[Counter[str], Iterator[str]]:
    """How many cases ended in which way, and the findings."""
    counts: Counter[str] = Counter()
    findings = []
    for seed in seeds:
        if log is not None:
            log.seek(0)
            log.write(f"{name} {seed}\n")
            log.truncate()
            log.flush()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                counts[case(seed)] += 1
        except Finding as finding:
            counts["finding"] += 1
            findings.append(f"--target {name} --first {seed} --cases 1: {finding}")
    return counts, iter(findings)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000, help="for each target")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--target", default="", help="those whose name begins so")
    parser.add_argument("--log", type=argparse.FileType("w"), help="where the case in hand is written")
    options = parser.parse_args(arguments)
    torch.use_deterministic_algorithms(True)  # fresh memory is NaN: what a kernel leaves unwritten shows
    torch.set_num_threads(2)
    total: Counter[str] = Counter()
    print(f"{'target':<44}{'raised':>9}{'computed':>10}{'findings':>10}")
    for name, case in targets().items():
        if not name.startswith(options.target):
            continue
        counts, findings = run(name, case, range(options.first, options.first + options.cases), options.log)
        print(f"{name:<44}{counts['raised']:>9}{counts['computed']:>10}{counts['finding']:>10}", flush=True)
        for text in list(findings)[:5]:
            print(f"    {text}", flush=True)
        total += counts
    print(f"{'all':<44}{total['raised']:>9}{total['computed']:>10}{total['finding']:>10}")
    return 1 if total["finding"] else 0


if __name__ == "__main__":
    sys.exit(main())
