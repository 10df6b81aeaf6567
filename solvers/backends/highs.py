"""HiGHS through its own Python binding: the program is handed over as arrays."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from qplan.core.errors import InputError
from qplan.solvers.backends.contract import MatrixProgram, Solution, Status, conclude

if TYPE_CHECKING:
    from collections.abc import Sequence

    import highspy
    from numpy.typing import NDArray


class HighsBackend:
    """The default backend."""

    name = "highs"

    def __init__(self, variant: str = "") -> None:
        if variant:
            raise InputError(f"solver 'highs' has no variant '{variant}'; write 'highs'")

    @classmethod
    def installed(cls) -> Sequence[str]:
        """Return ``["highs"]`` where highspy can be imported."""
        try:
            import highspy  # noqa: F401
        except ImportError:
            return []
        return [cls.name]

    def solve(
        self, program: MatrixProgram, *, time_limit_s: float, mip_gap: float, start: NDArray[np.float64] | None = None
    ) -> Solution:
        """Minimise `program`; see :class:`~qplan.solvers.backends.contract.SolverBackend`."""
        import highspy

        begun = time.perf_counter()
        highs = highspy.Highs()
        highs.setOptionValue("output_flag", False)
        highs.setOptionValue("time_limit", float(time_limit_s))
        highs.setOptionValue("mip_rel_gap", float(mip_gap))
        pass_model(highs, program)
        is_mip = bool(program.integer.any())
        # A restart presolves anew what seldom got smaller: without, fleets are proven 1.5-3 times as fast.
        highs.setOptionValue("mip_allow_restart", False)
        if start is not None and is_mip:
            highs.setSolution(len(start), np.arange(len(start), dtype=np.int32), start)
            # With a solution in hand the time is better spent on the proof than on a search for another.
            highs.setOptionValue("mip_heuristic_effort", 0.0)
            highs.setOptionValue("mip_heuristic_run_feasibility_jump", False)
        highs.run()

        kinds = highspy.HighsModelStatus
        found = highs.getModelStatus()
        if found == kinds.kUnboundedOrInfeasible:
            # Presolve proves "one of the two". Without it the simplex tells them apart.
            highs.setOptionValue("presolve", "off")
            highs.run()
            found = highs.getModelStatus()
        info = highs.getInfo()
        claim: Status = "no-solution"
        if found == kinds.kOptimal:
            claim = "optimal"
        elif found == kinds.kInfeasible:
            claim = "infeasible"
        elif found == kinds.kUnbounded:
            claim = "unbounded"
        elif info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible:
            claim = "feasible"
        return conclude(
            program,
            claim,
            values=highs.getSolution().col_value,
            bound=info.mip_dual_bound if is_mip else None,
            seconds=time.perf_counter() - begun,
        )


def pass_model(highs: highspy.Highs, program: MatrixProgram) -> None:
    """Hand `program` over to `highs`."""
    import highspy

    status = highs.passModel(
        len(program.cost),
        len(program.row_lower),
        len(program.data),
        highspy.MatrixFormat.kRowwise.value,
        int(highspy.ObjSense.kMinimize),
        0.0,
        program.cost,
        program.lower,
        program.upper,
        program.row_lower,
        program.row_upper,
        program.indptr,
        program.indices,
        program.data,
        program.integer.astype(np.int32),
    )
    if status == highspy.HighsStatus.kError:
        raise ValueError("HiGHS rejects the matrix program")
