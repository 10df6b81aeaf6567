"""Time of an iteration as a sum of parts, each of which never falls when the iteration grows.

The roofline (:mod:`qplan.models.steps.roofline`) is cut into bands: the linear layers' time between 0 and 2 tokens,
2 and 4, ... , the KV cache's between 0 and 1 MB a layer, 1 and 10 MB, and so on. A part is the ideal time of what
falls into its band; what is fitted is one factor a part, the inverse of an efficiency. With factors of at least 0 the
sum is monotone, piecewise linear and, beyond the last band, proportional to the work, as physics is: additive monotone
splines whose knots lie where hardware changes its mind (tiles of a GEMM, the block that an attention kernel handles).

Every deployment has the same parts, so their factors can be shared.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from qplan.core.deployment import Deployment
from qplan.models.steps.roofline import Terms, terms, weight_bytes_read
from qplan.models.steptimes import Floats, Ints

_WEIGHTS, _ANY, _TOKENS, _ANSWERS, _KV, _PAIRS, _PADDED = range(7)  # variables; from _PADDED on one for each block

_GEMM_KNOTS = (2, 4, 8, 16, 32, 48, 64, 80, 96, 128, 160, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192)  # tokens
_ALLREDUCE_KNOTS = (64, 512)  # tokens
_KV_KNOTS = (1e6, 1e7, 1e8)  # bytes of one layer on one GPU
_ATTENTION_KNOTS = (1e-5,)  # ideal seconds of prefill attention in one layer
_BLOCKS = (64, 256, 1024)  # tokens: a sequence shorter than a block may cost as much as one that fills it
_ALLREDUCE_LATENCY_S = 5e-6
_SAMPLING_S = 1e-6
_TP_SIZES = ((2, 2), (4, 4), (8, np.inf))  # all-reduce algorithms change with the size of the group

_PLAIN = (
    ("weights", 1.2),
    ("launch", 1.5),
    *((f"gemm from {low}", 1.5) for low in (0, *_GEMM_KNOTS)),
    ("head", 1.2),
    ("sampling", 0.0),
    *((f"kv from {low:.0e} B" if low else "kv from 0", 1.2) for low in (0.0, *_KV_KNOTS)),
    *((f"kv in blocks of {block}", 0.0) for block in _BLOCKS),
    *((f"prefill attention from {low:.0e} s" if low else "prefill attention from 0", 2.5)
      for low in (0.0, *_ATTENTION_KNOTS)),
    ("allreduce latency", 1.0),
    *((f"allreduce from {low}", 1.5) for low in (0, *_ALLREDUCE_KNOTS)),
)  # fmt: skip
_OF_TP = tuple(
    (f"{name} at tp {least}", 0.0) for least, _ in _TP_SIZES for name, _ in _PLAIN if name.startswith("allreduce")
)
NAMES: tuple[str, ...] = tuple(name for name, _ in (*_PLAIN, *_OF_TP))
# Factors before any measurement: usual shares of the peaks (weights and KV cache 80 % of bandwidth, GEMMs 65 % of the
# tensor cores, attention 40 %). What a kind of part adds to another starts at nothing.
NOMINAL: Floats = np.array([factor for _, factor in (*_PLAIN, *_OF_TP)])
# Parts of one kind share this name: their efficiencies are first learned together.
KINDS: tuple[str, ...] = tuple(name.split(" from ")[0] for name in NAMES)


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one deployment's iterations; arrays are (M,), in the order of :data:`NAMES`.

    Attributes
    ----------
    variable
        What the part grows with.
    low, high
        Its band.
    rate_s
        Ideal seconds per unit of the variable within the band.
    """

    deployment: Deployment
    variable: Ints
    low: Floats
    high: Floats
    rate_s: Floats

    @classmethod
    def of(cls, deployment: Deployment) -> Parts:
        """Cut the roofline of `deployment` into parts."""
        one, cached = (_one(terms(deployment, *(np.array([n]) for n in work))) for work in ((0.0, 1, 0), (0.0, 1, 1)))
        layers, tp = deployment.model.layers, deployment.tp
        kv_s, pair_s = cached["kv_s"] - one["kv_s"], cached["attention_s"] - one["attention_s"]
        kv_bytes = deployment.kv_bytes_per_token / layers
        rows = [(_WEIGHTS, 0.0, np.inf, 1.0), (_ANY, 0.0, np.inf, one["launch_s"])]
        rows += _bands(_TOKENS, _GEMM_KNOTS, one["gemm_s"])
        rows += [(_ANSWERS, 0.0, np.inf, one["head_s"]), (_ANSWERS, 0.0, np.inf, _SAMPLING_S)]
        rows += _bands(_KV, tuple(knot / kv_bytes for knot in _KV_KNOTS), kv_s)
        rows += [(_PADDED + n, 0.0, np.inf, kv_s) for n in range(len(_BLOCKS))]
        rows += _bands(_PAIRS, tuple(knot * layers / pair_s for knot in _ATTENTION_KNOTS), pair_s)
        for least, most in ((2, np.inf), *_TP_SIZES):
            here = float(least <= tp <= most)
            rows.append((_ANY, 0.0, np.inf, here * one["allreduces"] * _ALLREDUCE_LATENCY_S))
            rows += _bands(_TOKENS, _ALLREDUCE_KNOTS, here * one["allreduce_s"])
        variable, low, high, rate = zip(*rows, strict=True)
        return cls(deployment, np.array(variable), np.array(low), np.array(high), np.array(rate))

    def columns(
        self, prefill_tokens: Floats, batch: Floats, kv_tokens: Floats, prompts: Floats | float = 1.0
    ) -> Floats:
        """Return the ideal time of each part, (N, M) seconds; arguments as of :func:`roofline.terms`."""
        variables = self._variables(prefill_tokens, batch, kv_tokens, prompts)
        values = np.stack([variables[n] for n in range(_PADDED + len(_BLOCKS))], axis=1)[:, self.variable]
        ideal: Floats = self.rate_s * np.clip(values - self.low, 0.0, self.high - self.low)
        return ideal

    def time_s(
        self,
        factors: Floats,
        prefill_tokens: Floats,
        batch: Floats,
        kv_tokens: Floats,
        prompts: Floats | float = 1.0,
    ) -> Floats:
        """Return the sum of the parts times `factors` (M,), in (N,) seconds.

        The same as ``columns(...) @ factors``, without the (N, M) array.
        """
        total: Floats = np.zeros(np.shape(prefill_tokens))
        slopes = factors * self.rate_s
        for n, values in self._variables(prefill_tokens, batch, kv_tokens, prompts).items():
            mine = (self.variable == n) & (slopes > 0)
            if not mine.any():
                continue
            knots = np.unique(np.concatenate([self.low[mine], self.high[mine]]))
            knots = knots[np.isfinite(knots)]
            heights = np.clip(knots[:, None] - self.low[mine], 0.0, (self.high - self.low)[mine]) @ slopes[mine]
            last = slopes[mine & np.isinf(self.high)].sum()
            total += last * values if len(knots) == 1 else np.interp(values, knots, heights)
            if len(knots) > 1:
                total += last * np.maximum(values - knots[-1], 0.0)
        return total

    def of_tokens(self, factors: Floats) -> Floats:
        """Return `factors` with those of parts that grow with the KV cache set to 0."""
        tokens: Floats = np.where((self.variable == _KV) | (self.variable >= _PADDED), 0.0, factors)
        return tokens

    def _variables(
        self, prefill_tokens: Floats, batch: Floats, kv_tokens: Floats, prompts: Floats | float
    ) -> dict[int, Floats]:
        prefill, decode, cached = (np.asarray(n, dtype=float) for n in (prefill_tokens, batch, kv_tokens))
        tokens = prefill + decode
        some = (tokens > 0).astype(float)
        bandwidth = self.deployment.gpu.bandwidth_tb_s * 1e12
        experts = self.deployment.model.experts > 1
        read = weight_bytes_read(self.deployment, tokens if experts else np.ones(1)) / bandwidth
        return {
            _WEIGHTS: read * some,
            _ANY: some,
            _TOKENS: tokens,
            _ANSWERS: decode + prompts * (prefill > 0),
            _KV: cached,
            _PAIRS: prefill**2 / (2 * np.maximum(prompts, 1.0)),
            **{_PADDED + n: np.maximum(cached, block * decode) for n, block in enumerate(_BLOCKS)},
        }


def _one(work: Terms) -> dict[str, float]:
    """Return the terms of a single iteration as numbers."""
    return {
        name: float(getattr(work, name)[0])
        for name in ("launch_s", "gemm_s", "head_s", "kv_s", "attention_s", "allreduce_s", "allreduces")
    }


def _bands(variable: int, knots: tuple[float, ...], rate_s: float) -> list[tuple[int, float, float, float]]:
    """Cut a part at `knots`."""
    edges = (0.0, *map(float, knots), np.inf)
    return [(variable, low, high, rate_s) for low, high in pairwise(edges)]
