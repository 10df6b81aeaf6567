"""Predicts the time of any iteration of any deployment of known GPUs, by the nearest relatives that were timed.

The time is a sum of monotone parts (:mod:`qplan.models.steps.parts`), each with a factor, and for a deployment that was
timed itself what its decode iterations add (:mod:`qplan.models.steps.residual`). Factors are kept in a tree
of what is alike: a GPU; an engine of some version on it; an arithmetic (the format in which the linear layers are
multiplied); a quantization; a deployment. A deployment is predicted with the factors of the longest branch that was
fitted, and :meth:`StepSurrogate.level` says which: an unseen model or tensor parallelism falls back on its GPU and
quantization, an unseen quantization on its arithmetic, an unseen engine on another one, and an unknown GPU on its data
sheet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qplan.core.deployment import MAX_BATCHED_TOKENS, MAX_SEQUENCES, Deployment
from qplan.core.errors import StoreError
from qplan.models.iterations import IterationGrid
from qplan.models.steps.parts import NAMES, NOMINAL, Parts
from qplan.models.steps.residual import DecodeResidual
from qplan.models.steptimes import Floats, StepTimes

Branch = tuple[str, ...]
LEVELS = {
    0: "data sheet",
    1: "GPU",
    3: "GPU and engine",
    4: "GPU, engine and arithmetic",
    5: "GPU, engine and quantization",
    6: "deployment at other tensor parallelism",
    7: "deployment",
}
"""Depth of a branch, and what its factors were fitted to."""

_FORMAT = "qplan step surrogate"
_VERSION = 1
_RESIDUAL = ("batches", "contexts", "log_ratio")
_LARGEST_LOG_RATIO = 20.0
_TOKENS = np.array([1, 16, 32, 48, 64, 80, 96, 128, 160, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144])
_BATCHES = np.array([1, 2, 4, 8, 16, 32, 48, 64, 80, 96, 128, 160, 192, 256, 384, MAX_SEQUENCES])


@dataclass(frozen=True, slots=True)
class StepSurrogate:
    """Fitted factors of the parts, and what deployments' own decode iterations add to them.

    Made by :func:`qplan.models.steps.fitting.fit_steps`; without any factors it is the data sheet's roofline.

    Attributes
    ----------
    factors
        (M,) each, by branch.
    residuals
        By whole branch, of deployments whose decode iterations were timed on a grid.
    """

    factors: Mapping[Branch, Floats]
    residuals: Mapping[Branch, DecodeResidual] = field(default_factory=dict)

    def iteration_s(
        self,
        deployment: Deployment,
        prefill_tokens: Floats,
        batch: Floats,
        kv_tokens: Floats,
        prompts: Floats | float = 1.0,
    ) -> Floats:
        """Return the time, (N,) seconds, of iterations of `deployment`.

        It never falls when `prefill_tokens` or `kv_tokens` grow, nor with more sequences of the same mean context.

        Parameters
        ----------
        prefill_tokens, batch, kv_tokens : (N,)
            Prompt tokens over all prompts; decoding sequences; KV-cache tokens of these together.
        prompts : (N,) or one number
            Prompts, of equal length, that the prompt tokens belong to.
        """
        parts, factors = Parts.of(deployment), self.factors_of(deployment)
        residual = self.residuals.get(self.branch_for(deployment))
        if residual is None:
            return parts.time_s(factors, prefill_tokens, batch, kv_tokens, prompts)
        of_tokens = parts.time_s(parts.of_tokens(factors), prefill_tokens, batch, kv_tokens, prompts)
        return of_tokens + residual.rest_s(parts, factors, batch, kv_tokens)

    def level(self, deployment: Deployment) -> str:
        """Say what the factors that predict `deployment` were fitted to: one of :data:`LEVELS`, and of which engine.

        The engine is named where it is another, or of another version, than the deployment's.
        """
        branch = self.branch_for(deployment)
        other = len(branch) > 1 and branch[1:3] != (deployment.engine, deployment.engine_version)
        return LEVELS[len(branch)] + (f" of {branch[1]} {branch[2]}".rstrip() if other else "")

    def factors_of(self, deployment: Deployment) -> Floats:
        """Return the factors, (M,), that predict `deployment`."""
        branch = self.branch_for(deployment)
        return self.factors[branch] if branch else NOMINAL

    def engine_for(self, deployment: Deployment) -> tuple[str, str]:
        """Return the engine and version whose factors predict `deployment`.

        Its own where any were fitted on its GPU; else another version of its engine; else another engine.
        """
        own = deployment.engine, deployment.engine_version
        known = {
            (branch[1], branch[2]) for branch in self.factors if len(branch) == 3 and branch[0] == str(deployment.gpu)
        }
        return own if own in known or not known else max(known, key=lambda one: (one[0] == own[0], one))

    def branch_for(self, deployment: Deployment) -> Branch:
        """Return the branch whose factors predict `deployment`; empty where its data sheet does."""
        gpu, _, _, *below = branch_of(deployment)
        whole = (gpu, *self.engine_for(deployment), *below)
        return next((whole[:depth] for depth in sorted(LEVELS, reverse=True) if whole[:depth] in self.factors), ())

    def grid(self, deployment: Deployment) -> IterationGrid:
        """Tabulate the times of `deployment` for the simulator."""
        tokens = np.concatenate([[0.0], _prompt_axis(deployment.model.max_context)])
        batches = np.concatenate([[0.0], _BATCHES])
        contexts = _context_axis(deployment.model.max_context)
        p, b, c = np.meshgrid(tokens, batches, contexts, indexing="ij")
        time = self.iteration_s(deployment, p.ravel(), b.ravel(), (b * c).ravel()).reshape(p.shape)
        # Sums in another order differ in the last digit.
        for axis in range(3):
            time = np.maximum.accumulate(time, axis=axis)
        return IterationGrid(tokens, batches, contexts, time)

    def step_times(self, deployments: Sequence[Deployment]) -> StepTimes:
        """Tabulate prefill and decode times of `deployments`, for the analytic serving model."""
        longest = max(deployment.model.max_context for deployment in deployments)
        tokens, contexts = _prompt_axis(longest), _context_axis(longest)
        b, c = (axis.ravel() for axis in np.meshgrid(_BATCHES.astype(float), contexts, indexing="ij"))
        nothing = np.zeros(len(tokens))
        prefill = [self.iteration_s(deployment, tokens, nothing, nothing) for deployment in deployments]
        decode = [self.iteration_s(deployment, np.zeros(len(b)), b, b * c) for deployment in deployments]
        shape = len(deployments), len(_BATCHES), len(contexts)
        return StepTimes(tokens, np.stack(prefill), _BATCHES.astype(float), contexts, np.stack(decode).reshape(shape))

    def to_data(self) -> dict[str, Any]:
        """Return the surrogate as plain numbers, texts and lists."""
        branches = [
            {"branch": list(branch), "factors": factors.tolist()} for branch, factors in sorted(self.factors.items())
        ]
        residuals = [
            {"branch": list(branch), **{name: getattr(residual, name).tolist() for name in _RESIDUAL}}
            for branch, residual in sorted(self.residuals.items(), key=lambda item: item[0])
        ]
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "parts": list(NAMES),
            "branches": branches,
            "residuals": residuals,
        }

    @classmethod
    def from_data(cls, data: Any, where: str = "step surrogate") -> StepSurrogate:
        """Read what :meth:`to_data` returned.

        Raises
        ------
        StoreError
            When `data` is anything else; `where` names it.
        """
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise StoreError(f"{where}: not a step surrogate; expected the format '{_FORMAT}'")
        if data.get("version") != _VERSION or data.get("parts") != list(NAMES):
            raise StoreError(f"{where}: made by another version of qplan; fit it again")
        entries, residuals = data.get("branches"), data.get("residuals")
        if not isinstance(entries, list) or not isinstance(residuals, list):
            raise StoreError(f"{where}: 'branches' or 'residuals' is not a list")
        return cls(
            dict(_entry(entry, f"{where}, branch {n}") for n, entry in enumerate(entries, 1)),
            dict(_residual(entry, f"{where}, residual {n}") for n, entry in enumerate(residuals, 1)),
        )


def branch_of(deployment: Deployment) -> Branch:
    """Return the whole branch of `deployment`, from its GPU down to itself."""
    quantization = deployment.quantization
    activations = quantization.activations
    stored = "" if quantization.weights.bits == activations.bits else " from fewer bits"
    return (
        str(deployment.gpu),
        deployment.engine,
        deployment.engine_version,
        f"{activations.bits}-bit {activations.kind}{stored}",
        str(quantization),
        str(deployment.model),
        str(deployment.tp),
    )


def _entry(entry: Any, where: str) -> tuple[Branch, Floats]:
    factors = _numbers(entry, "factors", where)
    if factors.shape != (len(NAMES),) or (factors < 0).any():
        raise StoreError(f"{where}: expected 'factors', {len(NAMES)} numbers of at least 0")
    return _named(entry, where), factors


def _residual(entry: Any, where: str) -> tuple[Branch, DecodeResidual]:
    batches, contexts, log_ratio = (_numbers(entry, name, where) for name in _RESIDUAL)
    axes = all(
        axis.ndim == 1 and len(axis) > 1 and axis[0] > 0 and (np.diff(axis) > 0).all() for axis in (batches, contexts)
    )
    if not axes or log_ratio.shape != (len(batches), len(contexts)) or (np.abs(log_ratio) > _LARGEST_LOG_RATIO).any():
        raise StoreError(f"{where}: expected rising 'batches' and 'contexts', and a 'log_ratio' for each pair")
    return _named(entry, where), DecodeResidual(batches, contexts, log_ratio)


def _named(entry: Any, where: str) -> Branch:
    branch = entry.get("branch")
    if not isinstance(branch, list) or len(branch) not in LEVELS or not all(isinstance(name, str) for name in branch):
        raise StoreError(f"{where}: expected 'branch', a list of names")
    return tuple(branch)


def _numbers(entry: Any, name: str, where: str) -> Floats:
    """Return the field `name` of `entry`, a list of finite numbers or of such lists."""
    values = entry.get(name) if isinstance(entry, dict) else None
    try:
        numbers = np.array(values if isinstance(values, list) else None)
    except ValueError:  # lists of unlike lengths
        numbers = np.array(None)
    if numbers.dtype.kind not in "if" or not np.isfinite(numbers).all():
        raise StoreError(f"{where}: expected '{name}', a list of finite numbers")
    return numbers.astype(float)


def _prompt_axis(longest: int) -> Floats:
    """Return prompt tokens up to the longest prompt or the largest iteration, whichever is more."""
    last = max(longest, MAX_BATCHED_TOKENS)
    return np.concatenate([_TOKENS, _doubling(MAX_BATCHED_TOKENS, last, 4)]).astype(float)


def _context_axis(longest: int) -> Floats:
    return np.concatenate([[1.0], _doubling(16, max(longest, 32), 2)])


def _doubling(first: int, last: int, points: int) -> Floats:
    """Return a geometric axis from `first` to `last`, with `points` to a doubling."""
    return (
        np.geomspace(first, last, max(2, round(points * np.log2(last / first)) + 1))
        if last > first
        else np.array([float(first)])
    )
