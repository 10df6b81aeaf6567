"""What damages a model: the terms of the surrogate, each with what is believed of it before any figure is seen.

The divergence of a quantized model (nats per token) is a sum of what its weights, activations and KV cache do, times
what is particular to the model and to this scheme on it::

    divergence = (weights + activations + cache) * model family * model * scheme on this model
    loss of a benchmark = sensitivity(kind, size) * divergence + running(kind)        loss = -ln(retention)

Each factor is the exponential of a linear form, so that nothing is ever better than 16 bits, nor a quantized cache
than a 16-bit one. The beliefs:

bits
    Rounding error falls fourfold a bit (-2 ln 2 in the logarithm), faster below four. Bits are the stored ones a
    weight, so group size, outliers and GGUF's mixes count as what they are.
method
    Shifts the logarithm, and tilts it below four bits; methods are drawn from one population, so one without figures
    is the population's mean with its spread.
size
    Larger models lose less, the more so at low bits, and their benchmarks stand more of the same divergence.
kind
    Maths and code answer wrongly after one wrong token: more sensitive than choices among given answers.
running
    Benchmarks of 8-bit weights lose about half a percent where the divergence is next to nothing: other kernels, and
    templates and harnesses that were tuned with the 16-bit model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from qplan.core.quantization import Quantization
from qplan.models.quality.evidence import family_of, size_of

Terms = tuple[tuple[str, float], ...]

TYPICAL_BILLIONS = 7.0
FOUR_BITS = 4.0


@dataclass(frozen=True, slots=True)
class Spread:
    """How much effects vary that only figures can tell, as standard deviations of logarithms.

    Attributes
    ----------
    family, model, scheme
        Of the divergence: between families, models of one family, and schemes on one model.
    kind
        Of the sensitivity to divergence: between models, on one kind of benchmark.
    benchmark
        Of a benchmark's loss around what all this lets expect.
    """

    family: float = 0.35
    model: float = 0.2
    scheme: float = 0.3
    kind: float = 0.35
    benchmark: float = 0.75


def parts(model: str, quantization: Quantization, kinds: tuple[str, ...] = ()) -> tuple[Terms, ...]:
    """Return the linear forms whose exponentials sum to a figure: of what is quantized, and of running it.

    Several `kinds` stand for their geometric mean, none for the divergence itself.
    """
    size = _log_size(model)
    shared: Terms = ((f"family {family_of(model)}", 1.0), (f"model {model}", 1.0))
    if quantization.scheme not in ("BF16", "FP16"):
        shared += ((f"scheme {quantization.scheme} on {model}", 1.0),)
    shared += sensitivity(model, kinds) if kinds else ()
    of = (_weights(quantization, size), _activations(quantization, size), _cache(quantization, size, model))
    found = tuple((*part, *shared) for part in map(tuple, of) if part)
    if kinds and quantization.weights.bits < 16:
        by_kind = tuple((f"for {kind}", 1 / len(kinds)) for kind in kinds)
        found += ((("running", 1.0), (f"runs {method_of(quantization)}", 1.0), ("running by size", size), *by_kind),)
    return found


def sensitivity(model: str, kinds: tuple[str, ...]) -> Terms:
    """Return the linear form of a benchmark's loss over the divergence, as a logarithm."""
    share = 1 / len(kinds)
    by_kind = tuple(term for kind in kinds for term in ((f"for {kind}", share), (f"kind {kind} of {model}", share)))
    return (("sensitivity", 1.0), ("sensitivity by size", _log_size(model)), *by_kind)


def method_of(quantization: Quantization) -> str:
    """Return how weights were rounded; GGUF's K types and its older ones differ, as do floats and integers."""
    method = quantization.method
    if method == "gguf":
        return "gguf-k" if "_K" in quantization.scheme else "gguf-legacy"
    if method.endswith("weight-only") or method == "smoothquant":
        return "rtn"  # SmoothQuant moves outliers into weights that are then rounded to nearest
    return method


def belief(name: str, spread: Spread) -> tuple[float, float]:
    """Return mean and standard deviation of an effect before any figure is seen."""
    if name in _BELIEFS:
        return _BELIEFS[name]
    sort = name.partition(" ")[0]
    if sort in ("family", "model", "scheme", "kind"):
        return 0.0, getattr(spread, sort)
    return _POPULATIONS[sort]


def _log_size(model: str) -> float:
    return math.log((size_of(model) or TYPICAL_BILLIONS) / TYPICAL_BILLIONS)


def _weights(quantization: Quantization, size: float) -> Iterator[tuple[str, float]]:
    if quantization.weights.bits == 16:
        return
    missing = FOUR_BITS - quantization.bits_per_weight
    low = max(0.0, missing)
    method = method_of(quantization)
    yield from (("weights", 1.0), ("bits", missing), (f"method {method}", 1.0))
    yield ("weights of small models", size) if size < 0 else ("weights of large models", size)
    if quantization.weights.kind == "float" and quantization.weights.bits == 8:
        yield "8-bit float weights", 1.0
    if low:
        yield from (("low bits", low * low), ("low bits by size", low * size), (f"tilt {method}", low))


def _activations(quantization: Quantization, size: float) -> Iterator[tuple[str, float]]:
    if quantization.activations.bits < 16:
        form = quantization.activations
        outliers_apart = " outliers apart" if quantization.method == "llm.int8" else ""
        yield from ((f"activations {form.bits} {form.kind}{outliers_apart}", 1.0), ("activations by size", size))


def _cache(quantization: Quantization, size: float, model: str) -> Iterator[tuple[str, float]]:
    if quantization.kv.bits < 16:
        form = f"{quantization.kv.bits} {quantization.kv.kind}"
        yield from ((f"cache {form}", 1.0), ("cache by size", size), (f"scheme of cache {form} on {model}", 1.0))


_FOURFOLD = 2 * math.log(2)
_BELIEFS = {
    "weights": (math.log(0.03), 0.7),
    "bits": (_FOURFOLD, 0.2),
    "low bits": (0.3, 0.2),
    "weights of small models": (-0.2, 0.1),
    "weights of large models": (-0.1, 0.1),
    "low bits by size": (-0.1, 0.1),
    "8-bit float weights": (2.0, 1.0),  # with three mantissa bits they are as good as integers of five to six bits
    "method rtn": (0.3, 0.4),
    "activations 8 int": (math.log(0.01), 1.0),
    "activations 8 float": (math.log(0.005), 1.0),
    "activations 4 float": (math.log(0.05), 1.0),
    "activations 8 int outliers apart": (math.log(0.003), 1.0),
    "activations by size": (-0.1, 0.1),
    "cache 8 int": (math.log(0.003), 1.0),
    "cache 8 float": (math.log(0.002), 0.7),
    "cache 4 int": (math.log(0.03), 1.0),
    "cache by size": (-0.2, 0.2),
    "running": (math.log(0.004), 0.7),
    "running by size": (-0.1, 0.1),
    "sensitivity": (math.log(0.5), 0.5),
    "sensitivity by size": (-0.1, 0.1),
    "for knowledge": (0.0, 0.2),
    "for commonsense": (-0.3, 0.4),
    "for maths": (0.6, 0.4),
    "for code": (0.6, 0.4),
    "for instructions": (0.2, 0.4),
    "for reading": (0.0, 0.4),
}
_POPULATIONS = {"method": (0.0, 0.5), "tilt": (0.0, 0.5), "runs": (0.0, 0.5)}
