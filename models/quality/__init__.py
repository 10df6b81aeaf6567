"""Quality of a quantized model as a fraction of a 16-bit reference, from published and measured figures.

Two tables carry what is published: ``quality.csv``, how a benchmark's score or the divergence moves under quantization,
and ``baselines.csv``, 16-bit scores that set one model against another (both in :mod:`qplan.profiles`). Observations of
a profile store join them (:meth:`QualityModel.of_rows`).

What is returned for a model, a quantization and a task is the first of these that exists:

measured, published
    The mean of the figures of just that; measured ones go first.
interpolated
    The surrogate's (:mod:`qplan.models.quality.surrogate`), which learns bits, method, size, KV cache and the
    sensitivity of tasks from all figures together, a perplexity or divergence of just this model and scheme included.
assumed
    The same where it extrapolates: an unseen method, fewer bits or another size than the figures have; ``warnings``
    says which.

No value exceeds 1: a published gain is the benchmark's noise, and shows in the range alone. What the surrogate says
never exceeds the same scheme with a 16-bit KV cache, nor a finer one of its method that has figures, and is never below
a coarser scheme that has figures.
"""

from __future__ import annotations

from functools import cache

from qplan.models.quality.effects import Spread
from qplan.models.quality.evidence import Evidence, measured, published
from qplan.models.quality.grades import Quality, QualityModel
from qplan.models.quality.surrogate import LogLoss, Surrogate, fitted_spread

__all__ = [
    "Evidence",
    "LogLoss",
    "Quality",
    "QualityModel",
    "Spread",
    "Surrogate",
    "fitted_spread",
    "measured",
    "published",
    "quality",
]


@cache
def quality(model: str, quantization: str, task: str, reference: str | None = None) -> Quality:
    """Return the quality of `model` under `quantization` on `task` from published figures.

    The parameters and errors are those of :meth:`QualityModel.quality`.
    """
    return _of_published().quality(model, quantization, task, reference)


@cache
def _of_published() -> QualityModel:
    return QualityModel(published())
