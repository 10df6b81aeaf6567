"""Few-shot calibration: a prior corrected by a handful of measurements of the user's own system.

A prior predicts each metric as a sum of physical parts (:mod:`qplan.models.calibration.parts`): the own prefill, the
running decode step, what prefills cost the decoding sequences, and effects that the prior leaves out, with coefficient
0. A real engine has other coefficients. They are fitted to the points that were measured, held to what other systems
taught (:mod:`qplan.models.calibration.lessons`) and never negative: what grew with load in the prior still does.
"""

from qplan.models.calibration.calibrated import Calibrated, Correction, calibrate
from qplan.models.calibration.curve import Curve, Family, error_curve
from qplan.models.calibration.lessons import Lesson, Lessons, learn, shipped_lessons
from qplan.models.calibration.observed import Observed, observed
from qplan.models.calibration.parts import Parts, Prior
from qplan.models.calibration.points import choose
from qplan.models.calibration.priors import ClosedLoad, ClosedLoopPrior, OpenLoad, OpenLoopPrior
from qplan.models.calibration.steps import corrected_steps

__all__ = [
    "Calibrated",
    "ClosedLoad",
    "ClosedLoopPrior",
    "Correction",
    "Curve",
    "Family",
    "Lesson",
    "Lessons",
    "Observed",
    "OpenLoad",
    "OpenLoopPrior",
    "Parts",
    "Prior",
    "calibrate",
    "choose",
    "corrected_steps",
    "error_curve",
    "learn",
    "observed",
    "shipped_lessons",
]
