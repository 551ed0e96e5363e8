"""Convex programs as layers: cvxpylayers, made fit for training."""

from __future__ import annotations

import contextlib
import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks
from ..errors import InfeasibleError, SolverError, UnsupportedOperationError
from ..oracles import Status
from ..oracles.base import ON_FAILURE

__all__ = ["ConvexLayer"]

DERIVATIVES = ("lsqr", "lsmr", "dense", "lpgd", "lpgd_right", "lpgd_left")


class ConvexLayer(nn.Module):
    r"""The solution of a parametrised convex program, differentiable by its parameters.

    Takes the arguments of `cvxpylayers.torch.CvxpyLayer`, which does the canonicalisation, and differs from it in
    that the dtype of the parameters is kept; the module can be copied deeply and pickled; the same `solver_args` may
    be given in training and under `torch.no_grad`; any number of batch dimensions broadcast; and a row without a
    solution is reported by its index, or is NaN without a gradient, while the other rows live on. Solutions are checked
    against their optimality conditions before they are returned.

    Args:
        problem: a `cvxpy.Problem` that follows the rules of disciplined parametrised programming (`problem.is_dpp()`).
        parameters: the `cvxpy.Parameter`s, in the order of the tensors of a call; all of the problem's.
        variables: the `cvxpy.Variable`s (or dual variables) to return.
        solver: None or "DIFFCP"; others (and cvxpylayers' `SolverInterface`s) are passed on to cvxpylayers, and then a
            failing row fails its batch.
        gp: whether the problem is a geometric program.
        verbose: passed on to cvxpy's canonicalisation.
        canon_backend: likewise.
        solver_args: of every call; a call's own override them. `solve_method` is "CLARABEL" unless given ("SCS" for
            LPGD), `mode` is `derivative`.
        derivative: how the gradient is found. "lsqr", "lsmr", "dense": implicit differentiation, which is zero (and of
            no use) for linear programs; "lpgd", "lpgd_right", "lpgd_left": the problem is solved again at parameters
            moved by tau times the incoming gradient (to both sides, or one).
        tau: the length of LPGD's step, > 0: it should make the moved costs choose differently, so of the size of the
            costs over that of the incoming gradient.
        rho: LPGD's penalty for leaving the solution, >= 0.
        on_failure: "raise" (once all rows are solved; the exception carries rows, status and solutions), "nan" (such
            rows are NaN), or "previous" (the last solution for the same place in a batch of that shape; NaN when there
            is none). Such rows pass no gradient.
        workers: threads that rows are solved on.

    Returns:
        Of a call with one tensor `[..., *parameter.shape]` a parameter: a tuple with one tensor
        `[..., *variable.shape]` a variable. Batch dimensions broadcast; the dtype is the parameters' (promoted;
        computed in float64 on the host).

    Raises:
        ImportError: cvxpylayers is not installed.
        TypeError, ValueError: arguments that do not fit; NaN or infinity in a parameter.
        InfeasibleError, SolverError: rows without a solution, with on_failure="raise".
        UnsupportedOperationError: under torch.func, torch.compile(fullgraph=True), torch.export.

    Cost:
        A conic solve a row, about a millisecond for 20 variables; implicit differentiation prepares its derivative in
        the forward pass, which triples that, LPGD solves once or twice more backward. For projections onto simplices,
        boxes and balls, see `project_simplex` and its neighbours: the same result in closed form.

    Transforms:
        backward; DDP, checkpointing. torch.compile breaks the graph. The second derivative raises.

    References:
        Agrawal, Amos, Barratt, Boyd, Diamond, Kolter, "Differentiable Convex Optimization Layers", NeurIPS 2019,
        arXiv 1910.12430; Paulus, Martius, Musil, "LPGD: A General Framework for Backpropagation through Embedded
        Optimization Layers", ICML 2024, arXiv 2407.05920.

    Example:
        >>> import cvxpy, torch, difflayers as dl
        >>> p, x = cvxpy.Variable(3), cvxpy.Parameter(3)
        >>> problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(p - x)), [p >= 0, cvxpy.sum(p) == 1])
        >>> (y,) = dl.surrogates.ConvexLayer(problem, [x], [p])(torch.tensor([1.0, 0.5, -1.0]))
        >>> y.round(decimals=4).abs()
        tensor([0.7500, 0.2500, 0.0000])
    """

    name = "difflayers.surrogates.ConvexLayer"

    def __init__(
        self,
        problem: Any,
        parameters: Any,
        variables: Any,
        solver: Any = None,
        gp: bool = False,
        verbose: bool = False,
        canon_backend: str | None = None,
        solver_args: dict[str, Any] | None = None,
        *,
        derivative: str = "lsqr",
        tau: float | None = None,
        rho: float = 0.0,
        on_failure: str = "raise",
        workers: int = 1,
    ) -> None:
        super().__init__()
        self.derivative = _checks.choice(self.name, "derivative", derivative, DERIVATIVES)
        self.on_failure = _checks.choice(self.name, "on_failure", on_failure, ON_FAILURE)
        self._previous: tuple[Tensor, ...] = ()
        self.workers = _checks.integer(self.name, "workers", workers, minimum=1)
        self.rho = _checks.number(self.name, "rho", rho, minimum=0.0)
        if (tau is None) == derivative.startswith("lpgd"):
            raise ValueError(f"{self.name}: argument 'tau' must be given with LPGD and only then, got {tau}")
        self.tau = None if tau is None else _checks.number(self.name, "tau", tau, above=0.0)
        self.solver_args = dict(solver_args or {})
        layer_type, conic = _load()
        _check_problem(self.name, problem, parameters, variables, gp)
        layer = layer_type(problem, list(parameters), list(variables), solver, gp, verbose, canon_backend, {})
        self.shapes = [tuple(parameter.shape) for parameter in parameters]
        self.results = [tuple(variable.shape) for variable in variables]
        self.reports = layer.ctx.solver == "DIFFCP"
        if self.reports:
            layer.ctx.solver = conic(layer.ctx.solver_ctx)
        # in a tuple, so that it is no submodule: its buffers, matrices made of the problem, are no state
        self._layer = (layer,)

    def forward(
        self, *parameters: Tensor, solver_args: dict[str, Any] | None = None, warm_start: bool = False
    ) -> tuple[Tensor, ...]:
        """Solves for these parameters; see the class."""
        if torch.compiler.is_dynamo_compiling():
            from .._untraced import call

            return call(self.forward, *parameters, solver_args=solver_args, warm_start=warm_start)
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            raise UnsupportedOperationError(
                f"{self.name}: a solver runs on the host and cannot be traced by torch.compile(fullgraph=True), "
                f"torch.export or torch.func; call it outside of them"
            )
        lead = self._check(parameters)
        dtype = parameters[0].dtype
        for parameter in parameters[1:]:
            dtype = torch.promote_types(dtype, parameter.dtype)
        size = math.prod(lead)
        like = {"dtype": dtype, "device": parameters[0].device}
        if size == 0:
            return tuple(torch.zeros((*lead, *shape), **like) for shape in self.results)
        given = [self._rows(p, shape, lead, size) for p, shape in zip(parameters, self.shapes, strict=True)]
        (layer,) = self._layer
        options = {**self.solver_args, **(solver_args or {})}
        if not self.reports:
            solved = layer(*given, solver_args=options, warm_start=warm_start)
            return tuple(x.to(**like).reshape((*lead, *shape)) for x, shape in zip(solved, self.results, strict=True))
        if warm_start:
            raise ValueError(f"{self.name}: argument 'warm_start' must be False with this solver, got True")
        from .conic import Report

        report = Report(self.workers, self.on_failure)
        solved = layer(*given, solver_args={**self._defaults(options), "report": report})
        results = tuple(x.to(**like).reshape((*lead, *shape)) for x, shape in zip(solved, self.results, strict=True))
        if self.on_failure == "raise" and max(report.status) > Status.FEASIBLE:
            raise self._failure(report, lead, tuple(x.detach() for x in results))
        if self.on_failure == "previous":
            if [x.shape for x in results] == [x.shape for x in self._previous]:
                before = [x.to(**like) for x in self._previous]
                results = tuple(torch.where(x.isnan(), y, x) for x, y in zip(results, before, strict=True))
            self._previous = tuple(x.detach().clone() for x in results)
        return results

    def _defaults(self, options: dict[str, Any]) -> dict[str, Any]:
        options.setdefault("mode", self.derivative)
        if "lpgd" in options["mode"]:
            # SCS says so when a moved problem has no solution; diffcp does not look at what Clarabel says
            options.setdefault("solve_method", "SCS")
            options.setdefault("derivative_kwargs", {"tau": self.tau, "rho": self.rho})
        options.setdefault("solve_method", "CLARABEL")
        # The solvers stop at a small gap between the objectives, of which the solution's error is the square root, and
        # SCS at one of 1e-4.
        if options["solve_method"] == "SCS" and not {"eps", "eps_abs", "eps_rel"} & options.keys():
            options["eps"] = 1e-9
        if options["solve_method"].upper() == "CLARABEL":
            for name in ("tol_gap_abs", "tol_gap_rel", "tol_feas"):
                options.setdefault(name, 1e-12)
        return options

    def _rows(self, parameter: Tensor, shape: tuple[int, ...], lead: torch.Size, size: int) -> Tensor:
        own = parameter.shape[: parameter.dim() - len(shape)]
        if self.reports:
            parameter = parameter.to(device="cpu", dtype=torch.float64)
        if (math.prod(own) == 1 and size > 1) or not lead:
            return parameter.reshape(shape)
        return parameter.expand(*lead, *shape).reshape(size, *shape)

    def _check(self, parameters: tuple[Any, ...]) -> torch.Size:
        if len(parameters) != len(self.shapes):
            raise ValueError(
                f"{self.name}: a call must have one tensor for each of the {len(self.shapes)} parameters, "
                f"got {len(parameters)}"
            )
        leads = []
        for i, (parameter, shape) in enumerate(zip(parameters, self.shapes, strict=True)):
            _checks.tensor(self.name, f"parameters[{i}]", parameter)
            own = parameter.dim() - len(shape)
            if own < 0 or tuple(parameter.shape[own:]) != shape:
                wanted = ", ".join(["...", *map(str, shape)])
                raise ValueError(
                    f"{self.name}: argument 'parameters[{i}]' must have shape [{wanted}], got {tuple(parameter.shape)}"
                )
            if not bool(parameter.detach().isfinite().all()):
                raise ValueError(
                    f"{self.name}: argument 'parameters[{i}]' must be finite, got "
                    f"{int((~parameter.detach().isfinite()).sum())} entries of NaN or infinity"
                )
            leads.append(parameter.shape[:own])
        try:
            return torch.broadcast_shapes(*leads)
        except RuntimeError:
            shown = ", ".join(str(tuple(lead)) for lead in leads)
            raise ValueError(f"{self.name}: the parameters' batch dimensions must broadcast, got {shown}") from None

    def _failure(self, report: Any, lead: torch.Size, solutions: tuple[Tensor, ...]) -> SolverError:
        failed = [i for i, status in enumerate(report.status) if status > Status.FEASIBLE]
        kinds = {report.status[i] for i in failed}
        kind = SolverError if Status.FAILED in kinds else InfeasibleError
        first = failed[0]
        reason = f" ({report.reasons[first]})" if report.reasons[first] else ""
        shown = ", ".join(map(str, failed[:5])) + (", ..." if len(failed) > 5 else "")
        message = (
            f"{self.name}: {len(failed)} of {len(report.status)} rows have no solution: rows {shown}, the first is "
            f"{report.status[first].name}{reason}; on_failure='nan' goes on without them"
        )
        return kind(message, failed, torch.tensor([int(s) for s in report.status]).reshape(lead), solutions)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_previous": ()}

    def __deepcopy__(self, memo: dict[int, Any]) -> ConvexLayer:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        for key, value in self.__getstate__().items():
            if key == "_layer":  # cvxpy's problems refuse to be copied; what is made of them never changes
                layer = copy.copy(value[0])
                layer.ctx = copy.copy(layer.ctx)  # a call notes its batch size there
                new.__dict__[key] = (layer,)
            else:
                new.__dict__[key] = copy.deepcopy(value, memo)
        return new

    def extra_repr(self) -> str:
        """The settings, as repr shows them."""
        lpgd = f", tau={self.tau:g}, rho={self.rho:g}" if self.tau is not None else ""
        return f"parameters={self.shapes}, variables={self.results}, derivative={self.derivative!r}{lpgd}"


def _load() -> tuple[Any, Any]:
    """cvxpylayers' layer and our solver for it."""
    with contextlib.suppress(ImportError):  # it is not needed here
        # OR-Tools first: it cannot be loaded any more once cvxpy has loaded highspy >= 1.15 (google/or-tools #5246)
        import ortools.linear_solver.pywraplp  # noqa: F401  # pyright: ignore
    try:
        from cvxpylayers.torch.cvxpylayer import CvxpyLayer

        from .conic import Conic
    except ImportError as error:
        raise ImportError(
            f"difflayers.surrogates.ConvexLayer needs cvxpylayers; pip install 'difflayers[convex]' ({error})"
        ) from error
    return CvxpyLayer, Conic


def _check_problem(name: str, problem: Any, parameters: Any, variables: Any, gp: bool) -> None:
    import cvxpy

    if not isinstance(problem, cvxpy.Problem):
        raise TypeError(f"{name}: argument 'problem' must be a cvxpy.Problem, got {type(problem).__name__}")
    for argument, value in (("parameters", parameters), ("variables", variables)):
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"{name}: argument '{argument}' must be a list, got {type(value).__name__}")
    missing = {p.id for p in problem.parameters()} ^ {getattr(p, "id", None) for p in parameters}
    if missing:
        raise ValueError(
            f"{name}: argument 'parameters' must hold exactly the problem's {len(problem.parameters())} parameters, "
            f"got {len(parameters)}, {len(missing)} of which differ"
        )
    if not parameters:
        raise ValueError(f"{name}: argument 'problem' must have parameters, got one without; solve it with cvxpy")
    if not problem.is_dpp("dgp" if gp else "dcp"):  # pyright: ignore[reportCallIssue]
        rules = "geometric" if gp else "convex"
        raise ValueError(
            f"{name}: argument 'problem' must follow the rules of disciplined parametrised {rules} programming, and it "
            f"does not; see problem.is_dpp()"
        )
