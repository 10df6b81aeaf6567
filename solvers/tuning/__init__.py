"""Studies that choose what to measure: a sampler over finitely many configurations, and workers that share a study.

The sampler is usable alone, in any Optuna study over :class:`Candidates`; ``qplan tune`` makes both from a file.
"""

from qplan.solvers.tuning.axes import Axis
from qplan.solvers.tuning.candidates import Candidates
from qplan.solvers.tuning.pruner import FrontPruner
from qplan.solvers.tuning.sampler import Exhausted, FrontSampler
from qplan.solvers.tuning.stopping import Outlook, StopWhenLittleIsLeft

__all__ = ["Axis", "Candidates", "Exhausted", "FrontPruner", "FrontSampler", "Outlook", "StopWhenLittleIsLeft"]
