"""All that was fitted to a pack or store: step times, measured loads, or both, and which of them answers.

A deployment with step times of its own is answered for by them: they carry to any load and any lengths. One that was
measured under load alone is answered for by its loads.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from qplan.core.deployment import Deployment
from qplan.core.errors import StoreError
from qplan.core.gpu import Gpu
from qplan.models.calibrated import PART, Calibrated
from qplan.models.fitted import KIND, SHIPPED, Fitted
from qplan.models.fittedloads import FittedLoads
from qplan.models.saved import load


@dataclass(frozen=True, slots=True)
class Surrogates:
    """What was fitted to a pack or store; one of the two at least."""

    steps: Fitted | Calibrated | None
    loads: FittedLoads | None

    @property
    def source(self) -> str:
        """Name of the pack or store."""
        return self._any.source

    @property
    def evidence(self) -> str:
        """Kinds of evidence of its rows."""
        return self._any.evidence

    @property
    def gpus(self) -> frozenset[str]:
        """Names of the GPUs that the data hold."""
        return frozenset().union(*(one.gpus for one in (self.steps, self.loads) if one is not None))

    def engines(self, gpu: Gpu) -> tuple[tuple[str, str], ...]:
        """Return the engines, each with its version, that the data hold on `gpu`; all, if none is on it."""
        both = [one for one in (self.steps, self.loads) if one is not None]
        here = [one for one in both if gpu.name in one.gpus]
        return tuple(sorted({engine for one in here or both for engine in one.engines(gpu)}))

    def answering(self, deployment: Deployment) -> Fitted | Calibrated | FittedLoads:
        """Return what answers for `deployment`: its own step times, else its own loads, else what others tell of it."""
        if self.steps is None or self.loads is None:
            return self._any
        if self.loads.has(deployment) and self.steps.steps_of(deployment).extrapolates:
            return self.loads
        return self.steps

    def to_parts(self) -> dict[str, Any]:
        """Return the parts of a saved model, which :func:`open_fitted` reads."""
        parts = {} if self.loads is None else self.loads.to_parts()
        if isinstance(self.steps, Calibrated):
            return {"fitted": self.steps.prior.to_data(), PART: self.steps.to_data(), **parts}
        return parts if self.steps is None else {"fitted": self.steps.to_data(), **parts}

    @property
    def _any(self) -> Fitted | Calibrated | FittedLoads:
        one = self.steps or self.loads
        assert one is not None
        return one


def open_fitted(path: Path | None) -> Surrogates:
    """Read a saved model; the shipped one, of the pack ``trtllm-composed``, if `path` is ``None``.

    Raises
    ------
    InputError, StoreError
        As :func:`qplan.models.saved.load`; or the file holds neither step times nor measured loads.
    """
    with as_file(files("qplan.models").joinpath(SHIPPED)) as shipped:
        where = path or shipped
        parts = load(where, KIND).parts
    steps: Fitted | Calibrated | None = None
    if "fitted" in parts:
        steps = prior = Fitted.from_data(parts["fitted"], str(where))
        if PART in parts:
            steps = Calibrated.from_data(parts[PART], prior, str(where))
    loads = FittedLoads.from_parts(parts, str(where)) if "loads" in parts else None
    if steps is None and loads is None:
        raise StoreError(f"{where}: holds neither step times nor measured loads")
    return Surrogates(steps, loads)
