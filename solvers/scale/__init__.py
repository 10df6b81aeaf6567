"""Fleet programs too large to hand over whole, solved with a bound that holds for all of them.

:func:`solve_at_scale` takes any :class:`~qplan.solvers.backends.MatrixProgram` and makes use of demand and capacity
rows where it has them (:mod:`~qplan.solvers.scale.structure`); :func:`minimise` does so where a program is large.
"""

from qplan.solvers.scale.solve import minimise, solve_at_scale

__all__ = ["minimise", "solve_at_scale"]
