"""Power of a replica from how busy its iterations keep memory and tensor cores.

:mod:`qplan.models.power.curves` has the law. The shares of peak bandwidth and of peak arithmetic count the useful
work alone (:mod:`qplan.models.steps.roofline`), over the time that the iteration really takes.

An operation in 8 bits costs a fraction of one in 16 bits, ``op_energy_8``, measured on large FP8 GEMMs; INT8 is taken
to cost the same. What dequantizing weight-only formats costs beside the 16-bit operations is not in the model, and
neither is what an engine does between kernels, other than the time it takes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError, nearest
from qplan.core.gpu import Gpu
from qplan.models.iterations import IterationGrid
from qplan.models.power.curves import Architecture, Curve, Ratio, mean_curve
from qplan.models.steps.roofline import Terms, peak_flops, terms
from qplan.models.steptimes import Bools, Floats

COVERAGE = 0.9  # of every range of measured over predicted below
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Power:
    """Power of iterations of one replica, all its GPUs together; arrays are (N,), in watts.

    Attributes
    ----------
    lower_w, upper_w
        Range to expect the truth in, in 90 % of cases.
    extrapolates
        Whether utilisation, or the GPU itself, lies outside of what was measured.
    """

    power_w: Floats
    lower_w: Floats
    upper_w: Floats
    extrapolates: Bools


@dataclass(frozen=True, slots=True)
class PowerModel:
    """Power of any GPU of the catalogue that has a TDP.

    Attributes
    ----------
    architectures
        The fitted ones. GPUs of any other get the mean curve.
    op_energy_8
        Energy of an 8-bit operation over that of a 16-bit one.
    same_architecture, other_architecture
        Error, on top of an architecture's own, on a GPU of it that was not measured; and that of a GPU of an
        architecture that was not fitted.
    beyond
        Error, on top of the others, above the largest utilisation of the data.
    """

    architectures: tuple[Architecture, ...]
    op_energy_8: float
    same_architecture: Ratio
    other_architecture: Ratio
    beyond: Ratio

    @classmethod
    def shipped(cls) -> PowerModel:
        """Return the model whose coefficients come with qplan."""
        return _shipped()

    def curve(self, gpu: Gpu) -> Curve:
        """Return the power curve of `gpu`.

        Raises
        ------
        InputError
            When its power is not modelled; :meth:`refusal` says why.
        """
        refusal = self.refusal(gpu)
        if refusal is not None:
            raise InputError(f"{gpu}: {refusal}")
        own = self._architecture(gpu)
        return own.curve if own else mean_curve([known.curve for known in self.architectures])

    def refusal(self, gpu: Gpu) -> str | None:
        """Say why the power of `gpu` is not modelled, or return ``None`` when it is."""
        if gpu.is_cpu:
            return "power is modelled for GPUs only; no counter of a CPU's energy was to be had"
        if gpu.tdp_w is None:
            return "power is modelled as a share of the TDP, which the catalogue does not have"
        return None

    def provenance(self, gpu: Gpu) -> str:
        """Say in words where the power of `gpu` comes from."""
        own = self._architecture(gpu)
        if own is None:
            known = " and ".join(known.name for known in self.architectures)
            return f"transferred from {known} by share of TDP; {gpu.architecture} was not measured"
        if gpu.name in own.gpus:
            return f"fitted: {own.source}"
        return f"transferred from {', '.join(own.gpus)} by share of TDP; fitted: {own.source}"

    def is_measured(self, gpu: Gpu) -> bool:
        """Whether the data hold this very GPU."""
        own = self._architecture(gpu)
        return own is not None and gpu.name in own.gpus

    def error(self, gpu: Gpu) -> Ratio:
        """Return the range of measured over predicted to expect on `gpu`, within the utilisations of the data."""
        own = self._architecture(gpu)
        if own is None:
            return self.other_architecture
        return own.error if gpu.name in own.gpus else own.error * self.same_architecture

    def idle_w(self, deployment: Deployment) -> float:
        """Return the watts of a replica that serves nothing, over all its GPUs."""
        gpu = deployment.gpu
        return self.curve(gpu).idle * _tdp_w(gpu) * deployment.tp

    def power(self, deployment: Deployment, work: Terms, time_s: Floats) -> Power:
        """Return the power of a replica of `deployment` in iterations of `work` that take `time_s` (N,) seconds.

        Where `time_s` is 0 the replica is idle.
        """
        gpu, tp = deployment.gpu, deployment.tp
        curve = self.curve(gpu)
        memory_share, compute_share = self.shares(deployment, work, time_s)
        own = self._architecture(gpu)
        support = [own] if own else list(self.architectures)
        beyond = (memory_share > max(known.max_memory_share for known in support)) | (
            compute_share > max(known.max_compute_share for known in support)
        )
        power_w = curve.at(memory_share, compute_share) * _tdp_w(gpu) * tp
        within, outside = self.error(gpu), self.error(gpu) * self.beyond
        return Power(
            power_w,
            power_w * np.where(beyond, outside.lower, within.lower),
            np.minimum(power_w * np.where(beyond, outside.upper, within.upper), _tdp_w(gpu) * tp),
            beyond | (not self.is_measured(gpu)),
        )

    def shares(self, deployment: Deployment, work: Terms, time_s: Floats) -> tuple[Floats, Floats]:
        """Return the shares of peak bandwidth and of peak 16-bit arithmetic, (N,) each, that iterations use.

        An 8-bit operation counts by its energy.
        """
        peak = deployment.gpu.tflops_16 * 1e12
        in_16_bits = peak_flops(deployment.gpu, deployment.quantization) == peak
        gemm_flops = work.gemm_flops * (1.0 if in_16_bits else self.op_energy_8)
        compute_s = (gemm_flops + work.head_flops + work.attention_flops) / peak
        per_s = np.divide(1.0, time_s, out=np.zeros(np.shape(time_s)), where=np.asarray(time_s) > 0)
        return work.memory_s * per_s, compute_s * per_s

    def grid(self, deployment: Deployment, iterations: IterationGrid) -> Floats:
        """Return the watts of a replica, (P, B, C), at the points of `iterations`."""
        axes = (iterations.prefill_tokens, iterations.batches, iterations.context_tokens)
        prefill, batch, context = (one.ravel() for one in np.meshgrid(*axes, indexing="ij"))
        power = self.power(deployment, terms(deployment, prefill, batch, batch * context), iterations.time_s.ravel())
        return power.power_w.reshape(iterations.time_s.shape)

    def to_data(self) -> dict[str, Any]:
        """Return the model as plain data, which :meth:`from_data` reads."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any], where: str = "power model") -> PowerModel:
        """Read what :meth:`to_data` wrote.

        Raises
        ------
        InputError
            When a field is missing, unknown, of another kind or out of its range.
        """
        if not isinstance(data, Mapping):
            raise InputError(f"{where}: expected an object with the fields of a power model")
        fields = dict(data)
        version = fields.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise InputError(f"{where}: schema_version is {version!r}; this qplan reads {SCHEMA_VERSION}")
        try:
            architectures = tuple(_architecture(entry) for entry in fields.pop("architectures"))
            ratios: dict[str, Any] = {name: Ratio(**fields.pop(name)) for name in _RATIOS}
            model = cls(architectures=architectures, **ratios, **fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{where}: not a power model of schema version {SCHEMA_VERSION}: {error}") from None
        _check(model, where)
        return model

    def _architecture(self, gpu: Gpu) -> Architecture | None:
        return next((known for known in self.architectures if known.name == gpu.architecture), None)


def power_grid(deployment: Deployment, iterations: IterationGrid) -> tuple[Floats, float]:
    """Return the watts of a replica at the points of `iterations`, (P, B, C), and its idle watts.

    Raises
    ------
    InputError
        When the power of the deployment's GPU is not modelled.
    """
    model = PowerModel.shipped()
    return model.grid(deployment, iterations), model.idle_w(deployment)


_RATIOS = ("same_architecture", "other_architecture", "beyond")


def _tdp_w(gpu: Gpu) -> float:
    assert gpu.tdp_w is not None  # refused before
    return gpu.tdp_w


def _architecture(entry: Mapping[str, Any]) -> Architecture:
    own = Architecture(**{**entry, "curve": Curve(**entry["curve"]), "error": Ratio(**entry["error"])})
    return replace(own, gpus=tuple(own.gpus))


def _check(model: PowerModel, where: str) -> None:
    """Raise :class:`InputError` unless every number is one that a fit can give."""
    if not model.architectures:
        raise InputError(f"{where}: no architecture; expected at least one")
    known = {gpu.architecture for gpu in Gpu.catalogue()}
    for own in model.architectures:
        if own.name not in known:
            raise InputError(f"{where}: unknown architecture {own.name!r}{nearest(str(own.name), known)}")
    ratios = [getattr(model, name) for name in _RATIOS] + [own.error for own in model.architectures]
    positive = [
        ("op_energy_8", model.op_energy_8),
        *(("ratio", value) for one in ratios for value in asdict(one).values()),
    ]
    for own in model.architectures:
        positive += [(f"{own.name}: {name}", value) for name, value in asdict(own.curve).items()]
        positive += [(f"{own.name}: {name}", getattr(own, name)) for name in ("max_memory_share", "max_compute_share")]
    for name, value in positive:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise InputError(f"{where}: {name} is {value!r}; expected a positive number")
    if any(own.curve.idle >= 1 for own in model.architectures):
        raise InputError(f"{where}: idle power is not below the TDP; expected a fraction under 1")
    if any(one.lower > one.upper for one in ratios):
        raise InputError(f"{where}: a range of errors whose lower end is above its upper one")


@cache
def _shipped() -> PowerModel:
    name = "coefficients.json"
    data = json.loads(files(__package__).joinpath(name).read_text(encoding="utf-8"))
    data.pop("card")
    return PowerModel.from_data(data, name)
