"""A fitted model corrected by measurements of the user's own systems: the same questions, answers of those systems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError, StoreError
from qplan.core.gpu import Gpu
from qplan.models.calibration.systems import LEVELS, Branch, Fit, Systems
from qplan.models.fitted import Fitted, Steps
from qplan.models.power.curves import Ratio
from qplan.models.quality import QualityModel
from qplan.models.steps.surrogate import LEVELS as STEP_LEVELS
from qplan.models.steptimes import FirstToken, StepTimes

PART = "calibration"
_UNBOUNDED = Ratio(0.0, float("inf"))
_OWN = STEP_LEVELS[max(STEP_LEVELS)]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Fitted surrogates, the *prior*, with corrections by system.

    It answers what :class:`~qplan.models.fitted.Fitted` does.

    Attributes
    ----------
    measured_in
        Name of the store or pack with the measurements.
    """

    prior: Fitted
    systems: Systems
    measured_in: str

    @property
    def source(self) -> str:
        """What it stands on, for messages."""
        return f"{self.prior.source} calibrated on {self.measured_in}"

    @property
    def evidence(self) -> str:
        """Kinds of evidence."""
        return f"{self.prior.evidence}, corrected by measurements"

    @property
    def quality(self) -> QualityModel:
        """Quality of any model and quantization."""
        return self.prior.quality

    @property
    def gpus(self) -> frozenset[str]:
        """Names of the GPUs that were profiled, or measured."""
        return self.prior.gpus | {branch[0] for branch in self.systems.measured}

    def engines(self, gpu: Gpu) -> tuple[tuple[str, str], ...]:
        """Return the engines, each with its version, that were measured on `gpu`; on any, if none on it."""
        here = [branch for branch in self.systems.measured if branch[0] == str(gpu)]
        return tuple(sorted({(branch[1], branch[2]) for branch in here or self.systems.measured}))

    def fit_of(self, deployment: Deployment) -> tuple[str, Fit]:
        """Return the level of the correction that `deployment` gets, and the correction."""
        branch = self.systems.branch_for(deployment)
        return LEVELS[len(branch)], self.systems.fits[branch]

    def step_times(self, deployments: Sequence[Deployment]) -> StepTimes:
        """Return the corrected step times of `deployments`, stacked."""
        steps = self.prior.steps.step_times(deployments)
        branches = [self.systems.branch_for(one) for one in deployments]
        prefill_s, decode_s = steps.prefill_s.copy(), steps.decode_s.copy()
        first = FirstToken.plain(len(deployments))
        for branch in set(branches):
            index = np.array([n for n, one in enumerate(branches) if one == branch])
            corrected = self.systems.fits[branch].correction.steps(steps.take(index))
            prefill_s[index], decode_s[index] = corrected.prefill_s, corrected.decode_s
            assert corrected.first_token is not None
            first = first.put(index, corrected.first_token)
        return replace(steps, prefill_s=prefill_s, decode_s=decode_s, first_token=first)

    def steps_of(self, deployment: Deployment) -> Steps:
        """Return the corrected step times of `deployment`, with what is known of their error."""
        level, _ = self.fit_of(deployment)
        return Steps(
            self.step_times([deployment]),
            self.latency_error(deployment),
            self.provenance(deployment),
            level != LEVELS[max(LEVELS)],
            self._warnings(deployment),
        )

    def latency_error(self, deployment: Deployment) -> dict[str, Ratio]:
        """Return measured over predicted latency, by metric; wider where the deployment's steps are a relative's."""
        level, fit = self.fit_of(deployment)
        own = level == LEVELS[max(LEVELS)] or self._prior_level(deployment) == _OWN
        missed = Ratio(1.0, 1.0) if own else self.prior.step_error.get(self._prior_level(deployment), _UNBOUNDED)
        return {metric: ratio * missed for metric, ratio in fit.error.items()}

    def provenance(self, deployment: Deployment) -> str:
        """Say what the latencies of `deployment` stand on."""
        level, fit = self.fit_of(deployment)
        basis = f"{self.prior.evidence} ({self.prior.source}), corrected by "
        if level == LEVELS[0]:
            return basis + "what other systems taught"
        of = "" if level == LEVELS[max(LEVELS)] else " at any tensor parallelism"
        return basis + f"{_runs(fit)} of {self.measured_in}{of} ({fit.loads})"

    def _prior_level(self, deployment: Deployment) -> str:
        """Say what the prior's step times are of, whatever the engine: that is what calibrating is about."""
        engine, version = self.prior.steps.engine_for(deployment)
        return self.prior.steps.level(replace(deployment, engine=engine, engine_version=version))

    def _warnings(self, deployment: Deployment) -> tuple[str, ...]:
        level, fit = self.fit_of(deployment)
        prior = self._prior_level(deployment)
        said = []
        if level == LEVELS[0]:
            said.append(
                f"{self.measured_in} has no run of {deployment} under {deployment.engine} "
                f"{deployment.engine_version}".rstrip()
                + ": corrected by what other systems taught"
            )
        else:
            said.append(f"corrected by runs with {fit.loads}: beyond these loads nothing was checked")
        if level != LEVELS[0] and level != LEVELS[max(LEVELS)]:
            said.append(f"too few runs of {deployment} itself: corrected by those of its system together")
        if prior != _OWN:
            said.append(f"{self.prior.source} has no step times of {deployment}: predicted from its {prior}")
        return tuple(said)

    def to_data(self) -> dict[str, Any]:
        """Return what is added to the prior's data, which :meth:`from_data` reads."""
        return {
            "measured_in": self.measured_in,
            "fits": [{"branch": list(branch), **fit.to_data()} for branch, fit in sorted(self.systems.fits.items())],
        }

    @classmethod
    def from_data(cls, data: Any, prior: Fitted, where: str = "calibration") -> Calibrated:
        """Put what :meth:`to_data` returned on `prior`.

        Raises
        ------
        StoreError
            When `data` is anything else; `where` names it.
        """
        try:
            fits = {_branch(entry["branch"]): Fit.from_data(entry) for entry in data["fits"]}
            fits[()]
            return cls(prior, Systems(fits), str(data["measured_in"]))
        except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(f"{where}: not a calibration: {type(error).__name__} {error}") from None


def _branch(names: Sequence[str]) -> Branch:
    if len(names) not in LEVELS:
        raise InputError(f"a branch of {len(names)} names")
    return tuple(map(str, names))


def _runs(fit: Fit) -> str:
    points = fit.correction.points
    return f"{points} measured run{'s' if points > 1 else ''}"
