"""Tours of one or several vehicles by OR-Tools' routing library: good, fast, not proved optimal."""

from __future__ import annotations

import math
import time

import numpy as np

from ._ortools import integer_costs, load


def routes(
    matrix: np.ndarray,
    seconds: float,
    *,
    vehicles: int = 1,
    demands: np.ndarray | None = None,
    capacity: int = 0,
) -> list[list[int]] | None:
    """Routes from node 0 through all others, found within a time limit.

    Args:
        matrix: float64 (n, n), n >= 2, symmetric, of either sign.
        seconds: time limit. The interpreter's lock is held as long.
        vehicles: how many there are; not all have to drive.
        demands: int64 (n,), that of node 0 being 0; None: no capacities.
        capacity: of each vehicle.

    Returns:
        The nodes of each route but 0, or None where none was found.
    """
    module = load("ortools.constraint_solver.pywrapcp")
    enums = load("ortools.constraint_solver.routing_enums_pb2")
    n = len(matrix)
    lengths = integer_costs(matrix.ravel())[0].reshape(n, n)
    if vehicles == 1:
        # every node is left once, so a constant on all arcs changes nothing; the library wants them nonnegative
        lengths = lengths - min(0, int(lengths.min()))
    manager = module.RoutingIndexManager(n, vehicles, 0)
    model = module.RoutingModel(manager)
    model.SetArcCostEvaluatorOfAllVehicles(model.RegisterTransitMatrix(lengths.tolist()))
    if demands is not None:
        callback = model.RegisterUnaryTransitVector(demands.tolist())
        model.AddDimension(callback, 0, capacity, True, "load")
    settings = module.DefaultRoutingSearchParameters()
    settings.first_solution_strategy = enums.FirstSolutionStrategy.PATH_CHEAPEST_ARC
    settings.local_search_metaheuristic = enums.LocalSearchMetaheuristic.GUIDED_LOCAL_SEARCH
    whole = math.floor(seconds)
    settings.time_limit.seconds = whole
    settings.time_limit.nanos = max(int(1e9 * (seconds - whole)), 1_000_000)
    found = model.SolveWithParameters(settings)
    if found is None:
        return None
    result = []
    for vehicle in range(vehicles):
        route, index = [], found.Value(model.NextVar(model.Start(vehicle)))
        while not model.IsEnd(index):
            route.append(manager.IndexToNode(index))
            index = found.Value(model.NextVar(index))
        if route:
            result.append(route)
    return result


def heuristic_seconds(deadline: float | None, n: int) -> float:
    """How long to let it run ahead of an exact search: the time suffices for some improvement, not more."""
    usual = 0.002 * n
    return usual if deadline is None else max(0.001, min(usual, 0.3 * (deadline - time.monotonic())))
