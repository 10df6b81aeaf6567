"""Where the iteration times of a deployment come from.

The pack's own step times, where it has them; else, of an engine on a CPU, its runs under load
(:mod:`qplan.models.steps.additive`); else the surrogate that was fitted to other deployments, with a warning that says
to which.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError, nearest
from qplan.models.calibrated_source import SUFFIX, read_source
from qplan.models.fitted import Fitted
from qplan.models.iterations import IterationGrid
from qplan.models.profiled import KEYS, Profiled, codes_of, deployment_of, keys_of, numbers_of
from qplan.models.simulator.grids import grid_of
from qplan.models.steps.additive import fit_additive
from qplan.models.steptimes import Floats
from qplan.models.surrogates import open_fitted
from qplan.profiles.sources import read_profiles

if TYPE_CHECKING:
    import pyarrow as pa

    from qplan.models.calibrated import Calibrated

CPU_SEQUENCES = 8
"""Sequences at once of an engine on a CPU: as campaigns measure unless they say otherwise."""

_UNCROWDED = 0.35  # of the highest rate that was run
_MEDIANS = ("offered_qps", "input_tokens", "ttft_p50_s", "tpot_p50_s")


@dataclass(frozen=True, slots=True)
class Times:
    """Iteration times of a deployment, found in full: with its engine.

    Attributes
    ----------
    provenance
        What the times stand on.
    warning
        Why they may be off; empty where the deployment itself was profiled.
    """

    deployment: Deployment
    grid: IterationGrid
    provenance: str
    warning: str = ""


@dataclass(frozen=True)
class Source:
    """Profiles, and what answers for deployments that they lack.

    Attributes
    ----------
    profiles
        Pack by name or path, store, or file of `qplan fit`.
    models
        Names of the models whose rows are read.
    fitted
        File of `qplan fit` that answers for what `profiles` lack; by default `profiles` themselves, if they are one,
        else the shipped model.
    """

    profiles: str
    models: tuple[str, ...]
    fitted: Path | None = None

    def times_of(self, wanted: Deployment, max_sequences: int | None = None) -> Times:
        """Return the iteration times of a deployment, of any engine where it names none.

        Parameters
        ----------
        max_sequences
            That the engine runs at once, where somebody said it.

        Raises
        ------
        InputError, StoreError
            Nothing tells them; or a pack, store or file cannot be read.
        """
        if self._profiled is not None:
            for n, one in enumerate(self._profiled.deployments):
                if _same(one, wanted):
                    # The host's time before a first token is no part of an iteration.
                    whole = self._profiled.steps.first_token is None
                    left = "" if whole else "; corrections of TTFT beyond step times are not simulated"
                    return Times(one, grid_of(self._profiled.steps, n), self._profiled.provenance[n] + left)
        if wanted.gpu.is_cpu:
            return self._of_runs(wanted, max_sequences or CPU_SEQUENCES)
        return self._of_surrogate(wanted)

    def _of_runs(self, wanted: Deployment, max_sequences: int) -> Times:
        """Fit iteration times to the medians of runs at low load, where most requests meet no other."""
        rows = None if self.profiles.endswith(SUFFIX) else self._runs()
        keys, index = ([], np.zeros(0)) if rows is None or not rows.num_rows else keys_of(rows)
        known = [deployment_of(key, self.profiles) for key in keys]
        number = next((n for n, one in enumerate(known) if _same(one, wanted)), None)
        if rows is None or number is None:
            near = nearest(str(wanted), map(str, known))
            raise InputError(f"{self.profiles} has neither step times nor loads of {_named(wanted)}{near}")
        mine = [numbers_of(rows, name)[index == number] for name in _MEDIANS]
        low = mine[0] <= _UNCROWDED * mine[0].max()
        _, input_tokens, ttft_s, tpot_s = (values[low] for values in mine)
        nothing, one = np.zeros(len(input_tokens)), np.ones(len(input_tokens))

        def alone(grid: IterationGrid) -> tuple[Floats, Floats]:
            return grid.at(input_tokens, nothing, nothing), grid.at(nothing, one, input_tokens)

        steps = fit_additive(input_tokens, ttft_s, tpot_s, alone, max_sequences)
        return Times(
            known[number],
            steps.grid(max_sequences),
            f"measured ({self.profiles}): iteration times fitted to {len(input_tokens)} runs at low load",
            f"{wanted}: no iteration was timed; fitted to runs at low load, as if batching gained nothing",
        )

    def _of_surrogate(self, wanted: Deployment) -> Times:
        steps = self._surrogate
        prior = steps if isinstance(steps, Fitted) else steps.prior
        known = [one for one in steps.engines(wanted.gpu) if wanted.engine in ("", one[0])]
        engine, version = wanted.engine, wanted.engine_version
        if not version and known:
            engine, version = prior.steps.engine_for(wanted)
            engine, version = (engine, version) if (engine, version) in known else known[-1]
        deployment = replace(wanted, engine=engine, engine_version=version)
        found = steps.steps_of(deployment)
        grid = steps.steps.grid(deployment) if isinstance(steps, Fitted) else grid_of(found.times, 0)
        return Times(deployment, grid, found.provenance, "; ".join(found.warnings))

    def _runs(self) -> pa.Table:
        """Read the runs at a request rate that show the medians of both latencies."""
        columns = (*KEYS, "phase", "status", *_MEDIANS)
        rows = read_profiles(self.profiles, self.models, columns).table
        good = np.ones(rows.num_rows, bool)
        for name in _MEDIANS:
            good &= np.isfinite(numbers_of(rows, name))
        for name, value in (("phase", "serving"), ("status", "ok")):
            codes, values = codes_of(rows, name)
            good &= np.array(values)[codes] == value
        return rows.filter(good)

    @cached_property
    def _profiled(self) -> Profiled | None:
        return read_source(self.profiles, self.models).found

    @cached_property
    def _surrogate(self) -> Fitted | Calibrated:
        file = self.fitted or (Path(self.profiles) if self.profiles.endswith(SUFFIX) else None)
        steps = open_fitted(file).steps
        if steps is None:
            raise InputError(f"{file}: holds measured loads and no step times; simulating needs a fit to step times")
        return steps


def _named(deployment: Deployment) -> str:
    engine = f" under {deployment.engine} {deployment.engine_version}".rstrip() if deployment.engine else ""
    return f"{deployment}{engine}"


def _same(one: Deployment, wanted: Deployment) -> bool:
    """Say whether `one` is what is wanted, of any engine or version where that names none."""
    names = [(each.model.name, str(each.quantization), each.gpu.name, each.tp) for each in (one, wanted)]
    engine = wanted.engine in ("", one.engine) and wanted.engine_version in ("", one.engine_version)
    return names[0] == names[1] and engine
