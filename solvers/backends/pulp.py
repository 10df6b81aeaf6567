"""Any solver that PuLP knows: ``pulp:cbc``, ``pulp:highs``, ``pulp:gurobi_cmd`` and so on.

PuLP 3 and PuLP 4 report differently, and neither is taken at its word. PuLP 3 calls some runs that a time
limit ended optimal. PuLP 4 leaves CBC's fractional values in the variables when no integer solution was
found, and its statistics give a bound above the optimum when CBC stops at a gap. So the values are checked
against the program, the bound is read where the solver itself states it (HiGHS's model object, CBC's log),
and a verdict is believed only if it came before the time limit.
"""

from __future__ import annotations

import inspect
import math
import re
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qplan.core.errors import InputError, nearest
from qplan.solvers.backends.contract import MatrixProgram, Solution, Status, conclude

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pulp
    from numpy.typing import NDArray

#: Short names, and what PuLP calls the solver: the first that is installed is taken.
_SHORT = {"cbc": ("PULP_CBC_CMD", "COIN_CMD"), "highs": ("HiGHS", "HiGHS_CMD")}

#: CBC's summary of a search that it ended early, rounded to three decimals (CBC 2.10) or six digits (later).
_CBC_LOWER_BOUND = re.compile(r"^Lower bound:\s+(\S+)", re.MULTILINE)
#: The same with eight digits: at a limit, and (as a gap below the objective) at a gap that is small enough.
_CBC_BEST_POSSIBLE = re.compile(r"^Cbc0005I .*\(best possible (\S+?)\)", re.MULTILINE)
_CBC_GAP = re.compile(r"^Cbc0011I Exiting as integer gap of (\S+) less", re.MULTILINE)
_CBC_OBJECTIVE = re.compile(r"^Cbc0001I .* best objective (\S+),", re.MULTILINE)


class PulpBackend:
    """A solver behind PuLP.

    Parameters
    ----------
    variant
        ``cbc``, ``highs``, or any name that PuLP lists, in any case.

    Raises
    ------
    InputError
        If PuLP or the solver is not installed.
    """

    def __init__(self, variant: str) -> None:
        available = _available()
        wanted = _SHORT.get(variant.casefold(), (variant,))
        by_fold = {name.casefold(): name for name in available}
        found = [by_fold[name.casefold()] for name in wanted if name.casefold() in by_fold]
        if not found:
            here = self.installed()
            choices = ", ".join(here) or "none (pip install 'qplan[pulp]')"
            raise InputError(
                f"solver 'pulp:{variant}' is not installed; PuLP's solvers here: {choices}"
                + nearest(f"pulp:{variant}", here)
            )
        self.name = f"pulp:{variant.casefold()}"
        self._solver_name = found[0]

    @classmethod
    def installed(cls) -> Sequence[str]:
        """Return a name for each solver that PuLP can run here."""
        available = _available()
        short = [name for name, known in _SHORT.items() if any(solver in available for solver in known)]
        covered = {solver for known in _SHORT.values() for solver in known}
        return [f"pulp:{name}" for name in [*short, *(s.casefold() for s in available if s not in covered)]]

    def solve(
        self,
        program: MatrixProgram,
        *,
        time_limit_s: float,
        mip_gap: float,
        start: NDArray[np.float64] | None = None,  # noqa: ARG002 - not every solver of PuLP takes one
    ) -> Solution:
        """Minimise `program`; see :class:`~qplan.solvers.backends.contract.SolverBackend`. `start` is left aside."""
        import pulp

        begun = time.perf_counter()
        problem, variables = _build(program)
        with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="qplan-") as folder:
            warnings.simplefilter("ignore", DeprecationWarning)  # PuLP 3 announces PuLP 4 at every turn
            log = Path(folder) / "solver.log"
            solver = self._open(time_limit_s, mip_gap, log)
            run = time.perf_counter()
            try:
                outcome = solver.solve(problem)
            except pulp.PulpSolverError as error:
                raise InputError(f"solver '{self.name}' failed: {error}") from error
            timed_out = time.perf_counter() - run >= time_limit_s
            log_text = log.read_text(errors="replace") if log.is_file() else ""

        claim, bound = _verdict(problem, outcome)
        if self._solver_name in _SHORT["cbc"]:
            bound = _cbc_bound(log_text)
        if not program.integer.any():
            bound = None  # a linear program's optimum is its own proof
        if timed_out and claim != "feasible":
            claim = "feasible"
        if claim in ("infeasible", "unbounded") and not program.bounded:
            # Presolve proves "one of the two" and solvers name either. Without an objective one remains.
            anywhere = self.solve(
                replace(program, cost=np.zeros_like(program.cost)), time_limit_s=time_limit_s, mip_gap=mip_gap
            )
            claim = "unbounded" if anywhere.values is not None else anywhere.status
        values = [
            _value(variable, lower, upper)
            for variable, lower, upper in zip(variables, program.lower.tolist(), program.upper.tolist(), strict=True)
        ]
        return conclude(program, claim, values=values, bound=bound, seconds=time.perf_counter() - begun)

    def _open(self, time_limit_s: float, mip_gap: float, log: Path) -> pulp.LpSolver:
        import pulp

        asked: dict[str, Any] = {"msg": False, "gapRel": mip_gap}
        if math.isfinite(time_limit_s):
            asked["timeLimit"] = time_limit_s
        if self._solver_name in _SHORT["cbc"]:
            asked["logPath"] = str(log)
        # Not every solver of PuLP takes every option.
        taken = inspect.signature(type(pulp.getSolver(self._solver_name, msg=False))).parameters
        if not any(option.kind is option.VAR_KEYWORD for option in taken.values()):
            asked = {option: value for option, value in asked.items() if option in taken}
        return pulp.getSolver(self._solver_name, **asked)


def _available() -> list[str]:
    """Names of the solvers that PuLP can run here; none if PuLP is not installed."""
    try:
        import pulp
    except ImportError:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(pulp.listSolvers(onlyAvailable=True))


def _build(program: MatrixProgram) -> tuple[pulp.LpProblem, list[pulp.LpVariable]]:
    """Write the program in PuLP's terms, columns as ``v0, v1, ...``: model files forbid much in names."""
    import pulp

    problem = pulp.LpProblem("qplan", pulp.LpMinimize)
    variables = [
        problem.add_variable(
            f"v{j}",
            lower if math.isfinite(lower) else None,
            upper if math.isfinite(upper) else None,
            pulp.LpInteger if integer else pulp.LpContinuous,
        )
        for j, (lower, upper, integer) in enumerate(
            zip(program.lower.tolist(), program.upper.tolist(), program.integer.tolist(), strict=True)
        )
    ]
    cost = program.cost.tolist()
    problem.setObjective(pulp.lpSum(cost[j] * variables[j] for j in np.flatnonzero(program.cost)))
    indices, data = program.indices.tolist(), program.data.tolist()
    ends = program.indptr.tolist()
    bounds = zip(program.row_lower.tolist(), program.row_upper.tolist(), strict=True)
    for start, end, (lower, upper) in zip(ends[:-1], ends[1:], bounds, strict=True):
        row = pulp.lpSum(data[i] * variables[indices[i]] for i in range(start, end))
        if lower == upper:
            problem.addConstraint(row == lower)
            continue
        if math.isfinite(lower):
            problem.addConstraint(row >= lower)
        if math.isfinite(upper):
            problem.addConstraint(row <= upper)
    return problem, variables


def _verdict(problem: pulp.LpProblem, outcome: Any) -> tuple[Status, float | None]:
    """Read what the solver claims, and the bound that it states outside its log.

    Parameters
    ----------
    outcome
        PuLP 3: the status code, with ``problem.sol_status`` beside it. PuLP 4: the statistics.
    """
    import pulp

    if hasattr(outcome, "has_solution"):
        status, bound = outcome.status, outcome.best_bound
        proven = status == pulp.LpSolveStatus.Optimal
        infeasible = status == pulp.LpSolveStatus.Infeasible
        unbounded = status == pulp.LpSolveStatus.Unbounded
    else:
        bound = None
        proven = problem.sol_status == pulp.LpSolutionOptimal
        infeasible = outcome == pulp.LpStatusInfeasible
        unbounded = outcome == pulp.LpStatusUnbounded
    highs: Any = getattr(problem, "solverModel", None)
    if hasattr(highs, "getModelStatus"):
        bound = highs.getInfo().mip_dual_bound
        infeasible |= "infeasible" in highs.modelStatusToString(highs.getModelStatus()).casefold()
    claim: Status = "feasible"  # worth what the check of the values says
    if infeasible:
        claim = "infeasible"
    elif unbounded:
        claim = "unbounded"
    elif proven:
        claim = "optimal"
    return claim, bound


def _cbc_bound(log: str) -> float | None:
    """Return the bound that CBC's log states, lowered by what its printing may have rounded up."""
    summary = _CBC_LOWER_BOUND.findall(log)
    if not summary:
        return None
    bound = float(summary[-1])
    rounding = max(5e-4, 5e-6 * abs(bound))
    exact = [float(figure) for figure in _CBC_BEST_POSSIBLE.findall(log)[-1:]]
    for gap, objective in zip(_CBC_GAP.findall(log)[-1:], _CBC_OBJECTIVE.findall(log)[-1:], strict=False):
        exact.append(float(objective) - float(gap))
    for figure in exact:
        if abs(figure - bound) <= rounding:  # not left over from one of CBC's searches within the search
            return figure - 5e-8 * abs(figure)
    return bound - rounding


def _value(variable: pulp.LpVariable, lower: float, upper: float) -> float:
    """Value of one variable; PuLP gives none to those that stand in no row and not in the objective."""
    value = variable.varValue
    return min(max(0.0, lower), upper) if value is None else float(value)
