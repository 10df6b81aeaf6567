"""Fleet programs too large to hand over whole, solved with a bound that holds for all of them.

:func:`~qplan.solvers.scale.solve.solve_at_scale` takes any :class:`~qplan.solvers.backends.MatrixProgram` and makes use
of demand and capacity rows where it has them (:mod:`~qplan.solvers.scale.structure`); :func:`minimise` does so where a
program is large.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from qplan.solvers.backends import MatrixProgram, Solution, SolverBackend

#: Continuous columns from which on a backend by itself takes longer.
_LARGE = 120


def minimise(program: MatrixProgram, backend: SolverBackend, *, time_limit_s: float, mip_gap: float) -> Solution:
    """Minimise a program: a large one with whole columns at scale, any other by the backend as it is.

    Parameters and answer are those of :func:`~qplan.solvers.scale.solve.solve_at_scale`.
    """
    if program.integer.any() and np.count_nonzero(~program.integer) > _LARGE:
        from qplan.solvers.scale.solve import solve_at_scale  # a plan of one class has no use for it

        return solve_at_scale(program, backend=backend, time_limit_s=time_limit_s, mip_gap=mip_gap)
    return backend.solve(program, time_limit_s=time_limit_s, mip_gap=mip_gap)
