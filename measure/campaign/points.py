"""Points of a campaign: what exactly is measured, and by which key it is known again.

Everything here is plain data, so that it can be kept as JSON and sent to another process or machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

from qplan.core.quantization import Quantization
from qplan.measure.engines.contract import Serving

UNSAID = "unknown"
"""What an owner did not say of a server."""

LOAD, SATURATION, QUALITY = "load", "saturation", "quality"


@dataclass(frozen=True)  # without slots, which would leave no room for what is computed once
class Target:
    """A deployment to measure: a model in a quantization on an engine.

    Attributes
    ----------
    quantization
        Canonical notation.
    gpu
        Name of the GPU's kind.
    """

    model: str
    weights: str
    quantization: str
    gpu: str
    tp: int
    engine: str
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    context_tokens: int = 2048
    max_sequences: int = 8

    def serving(self, devices: tuple[int, ...] = ()) -> Serving:
        """Return what the engine's adapter is asked for, on these GPUs."""
        return Serving(
            model=self.model,
            weights=self.weights,
            quantization=Quantization.parse(self.quantization),
            tp=self.tp,
            devices=devices,
            context_tokens=self.context_tokens,
            max_sequences=self.max_sequences,
            settings=self.settings,
        )

    @cached_property
    def text(self) -> str:
        """Everything that tells this deployment from another, as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @cached_property
    def is_unquantized(self) -> bool:
        """Whether this can be the baseline of others; not where nobody said what is served."""
        return self.quantization != UNSAID and Quantization.parse(self.quantization).is_16_bit

    def columns(self) -> dict[str, Any]:
        """Return the identity columns of its observations, the engine's version left out."""
        return {
            "model": self.model,
            "quantization": self.quantization,
            "gpu": self.gpu,
            "tp": self.tp,
            "engine": self.engine,
            "settings": json.dumps(dict(self.settings), sort_keys=True) if self.settings else None,
        }

    def __str__(self) -> str:
        """Print what tells it from its neighbours."""
        tp = f" TP{self.tp}" if self.tp > 1 else ""
        settings = "".join(f" {name}={value}" for name, value in sorted(self.settings.items()))
        said = [text for text in (self.model, self.quantization, self.engine) if text != UNSAID]
        return f"{' '.join(said)}{tp}{settings}"


@dataclass(frozen=True)
class Point:
    """One thing to measure on one deployment.

    Attributes
    ----------
    kind
        ``load``, ``saturation`` or ``quality``.
    repeat
        Number of the repetition, from 0.
    workload, source, speedup
        Name of the request mix, what its prompts are made from, and the speed at which a trace is replayed.
    qps, share
        The load: a rate, or a share of the saturation rate; neither for a search, a replay, or quality.
    task
        What quality is judged on.
    slo
        SLOs, comma-separated.
    api
        How a model is asked in a quality task; ``None``, as older campaigns have it, is ``chat``.
    """

    target: Target
    kind: str
    repeat: int
    workload: str = ""
    source: str = ""
    speedup: float | None = None
    qps: float | None = None
    share: float | None = None
    task: str = ""
    arrivals: str = ""
    slo: str = ""
    attainment: float | None = None
    duration_s: float | None = None
    requests: int | None = None
    warm_up_s: float | None = None
    seed: int = 0
    api: str | None = None

    @cached_property
    def key(self) -> str:
        """Digest of everything that tells this point from another."""
        # What is None is left out, so that a field added later leaves the keys of older points as they were.
        own = [f"{name}={value!r}" for name in _OWN_FIELDS if (value := getattr(self, name)) is not None]
        return hashlib.sha256("\n".join((self.target.text, *own)).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return the point as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Point:
        """Read what :meth:`to_json` wrote."""
        return cls(**{**document, "target": Target(**document["target"])})

    def __str__(self) -> str:
        """Print in a few words."""
        repeat = f" #{self.repeat + 1}" if self.repeat else ""
        if self.kind == QUALITY:
            return f"{self.target}: {self.task}{repeat}"
        if self.kind == SATURATION:
            load = "find saturation"
        elif self.share is not None:
            load = f"{self.share:.0%} of saturation"
        else:
            load = "replay" if self.qps is None else f"{self.qps:g} qps"
        return f"{self.target}: {self.workload}, {load}{repeat}"


_OWN_FIELDS = tuple(field.name for field in fields(Point) if field.name != "target")
