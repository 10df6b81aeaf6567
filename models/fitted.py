"""Everything that is learned from one set of profiles, and how far each part of it may be off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError, StoreError
from qplan.core.gpu import Gpu
from qplan.core.plan import Prediction
from qplan.models.power.curves import Ratio
from qplan.models.quality import QualityModel
from qplan.models.saved import load
from qplan.models.steps.surrogate import LEVELS, StepSurrogate
from qplan.models.steptimes import StepTimes

COVERAGE = 0.9
KIND = "fitted-profiles"
SHIPPED = "trtllm-composed.qplan"
_ENGINE_DEPTH = 3  # of a branch: GPU, engine, version
_UNBOUNDED = Ratio(0.0, float("inf"))
_EXACT = Ratio(1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Steps:
    """Step times of one deployment, and what is known of the latencies that follow from them.

    Attributes
    ----------
    latency_error
        Measured over predicted latency by metric, ``ttft`` and ``tpot``; a metric that is not there was never checked.
    provenance
        What the times stand on, in words.
    extrapolates
        Whether the deployment itself was not profiled.
    """

    times: StepTimes
    latency_error: Mapping[str, Ratio]
    provenance: str
    extrapolates: bool
    warnings: tuple[str, ...]

    def latency(self, metric: str, value: float) -> Prediction:
        """Return a predicted latency with its interval, which is open where its error is not known."""
        error = self.latency_error.get(metric, _UNBOUNDED)
        # The median of the ratios need not be 1: the interval holds the prediction too.
        lower, upper = value * min(1.0, error.lower), value * max(1.0, error.upper)
        return Prediction(value, lower, upper, COVERAGE if metric in self.latency_error else None, self.provenance)


@dataclass(frozen=True, slots=True)
class Fitted:
    """Surrogates fitted to a pack or store.

    Attributes
    ----------
    source
        Name of the pack or store.
    evidence
        Kinds of evidence of its rows: measured, kernel-composed ...
    steps
        Step times of any deployment.
    step_error
        True over predicted step time, by the level that predicts (:data:`qplan.models.steps.surrogate.LEVELS`), of
        deployments that were left out of a fit.
    latency_error
        Measured over predicted latency, where somebody measured what the profiles predict; by metric.
    quality
        Quality of any model and quantization.
    """

    source: str
    evidence: str
    steps: StepSurrogate
    step_error: Mapping[str, Ratio]
    latency_error: Mapping[str, Ratio]
    quality: QualityModel

    def steps_of(self, deployment: Deployment) -> Steps:
        """Return the step times of `deployment`, with what is known of their error."""
        level = self.steps.level(deployment)
        own = level == LEVELS[max(LEVELS)]
        missed = _EXACT if own else self.step_error.get(level, _UNBOUNDED)
        error = {metric: ratio * missed for metric, ratio in self.latency_error.items()}
        warnings = []
        if not own:
            warnings.append(
                f"{self.source} has no step times of {deployment}: predicted from its {level}"
                + (f", off by x{missed.lower:.2f} to x{missed.upper:.2f}" if missed.upper < float("inf") else "")
            )
        if not self.latency_error:
            warnings.append(f"the error of latencies from {self.source} against real serving is not known")
        provenance = f"{self.evidence} ({self.source})" + ("" if own else f", by {level}")
        return Steps(self.steps.step_times([deployment]), error, provenance, not own, tuple(warnings))

    @property
    def gpus(self) -> frozenset[str]:
        """Names of the GPUs whose step times were fitted."""
        return frozenset(branch[0] for branch in self.steps.factors if branch)

    def engines(self, gpu: Gpu) -> tuple[tuple[str, str], ...]:
        """Return the engines, each with its version, whose step times on `gpu` were fitted; all, if none is on it."""
        branches = [branch for branch in self.steps.factors if len(branch) >= _ENGINE_DEPTH]
        here = [branch for branch in branches if branch[0] == str(gpu)]
        return tuple(sorted({(branch[1], branch[2]) for branch in here or branches}))

    def to_data(self) -> dict[str, Any]:
        """Return all of it as plain data, which :meth:`from_data` reads."""
        return {
            "source": self.source,
            "evidence": self.evidence,
            "steps": self.steps.to_data(),
            "step_error": {level: [ratio.lower, ratio.upper] for level, ratio in self.step_error.items()},
            "latency_error": {metric: [ratio.lower, ratio.upper] for metric, ratio in self.latency_error.items()},
            "quality": self.quality.to_data(),
        }

    @classmethod
    def from_data(cls, data: Any, where: str = "fitted model") -> Fitted:
        """Read what :meth:`to_data` returned.

        Raises
        ------
        StoreError
            When `data` is anything else; `where` names it.
        """
        try:
            return cls(
                str(data["source"]),
                str(data["evidence"]),
                StepSurrogate.from_data(data["steps"], where),
                {str(level): Ratio(*map(float, ends)) for level, ends in data["step_error"].items()},
                {str(metric): Ratio(*map(float, ends)) for metric, ends in data["latency_error"].items()},
                QualityModel.from_data(data["quality"]),
            )
        except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(f"{where}: not a fitted model: {type(error).__name__} {error}") from None


def load_fitted(path: Path | None) -> Fitted:
    """Read a saved model; the shipped one, of the pack ``trtllm-composed``, if `path` is ``None``.

    Raises
    ------
    InputError, StoreError
        As :func:`qplan.models.saved.load`; or the file holds no step times, but measured loads.
    """
    with as_file(files("qplan.models").joinpath(SHIPPED)) as shipped:
        where = path or shipped
        parts = load(where, KIND).parts
    if "fitted" not in parts and "loads" in parts:
        raise StoreError(f"{where}: holds loads that were measured, and no step times; qplan predict answers from them")
    return Fitted.from_data(parts.get("fitted"), str(where))
