"""Where the figures end: what a question asks beyond them, in plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qplan.core.quantization import NumberFormat, Quantization
from qplan.models.quality.effects import TYPICAL_BILLIONS, method_of
from qplan.models.quality.evidence import Evidence, size_of

_SIZE_MARGIN = 1.5  # a model this many times smaller or larger than any with figures is outside their range
_BITS_MARGIN = 0.5
_NEAR_BITS = 1.0  # how models of a size stand 8 bits says nothing of how they stand 2


@dataclass(frozen=True, slots=True)
class Support:
    """What the figures are of.

    Attributes
    ----------
    sizes
        Bits a weight and billions of parameters, of every figure of quantized weights and known size.
    cache_sizes
        Billions of parameters of the figures of a quantized KV cache.
    fewest_bits
        Bits a weight where a method's figures end, by method.
    activations, caches
        Formats that some figure has.
    """

    sizes: tuple[tuple[float, float], ...]
    cache_sizes: tuple[float, ...]
    fewest_bits: dict[str, float]
    activations: frozenset[NumberFormat]
    caches: frozenset[NumberFormat]

    @classmethod
    def of(cls, evidence: Sequence[Evidence]) -> Support:
        """Sum up `evidence`."""
        sizes, cache_sizes = set(), set()
        fewest_bits: dict[str, float] = {}
        for one in evidence:
            billions, scheme = size_of(one.model), one.quantization
            if scheme.weights.bits < 16:
                bits, method = scheme.bits_per_weight, method_of(scheme)
                fewest_bits[method] = min(bits, fewest_bits.get(method, math.inf))
                if billions is not None:
                    sizes.add((bits, billions))
            if scheme.kv.bits < 16 and billions is not None:
                cache_sizes.add(billions)
        return cls(
            tuple(sorted(sizes)),
            tuple(sorted(cache_sizes)),
            fewest_bits,
            frozenset(one.quantization.activations for one in evidence),
            frozenset(one.quantization.kv for one in evidence),
        )

    def warnings(self, model: str, wanted: Quantization) -> tuple[str, ...]:
        """Say how `wanted` on `model` lies outside the figures; nothing where it lies among them."""
        found = []
        if wanted.weights.bits < 16:
            fewest = self.fewest_bits.get(method_of(wanted))
            if fewest is None:
                found.append(f"no figure of {wanted.scheme}'s method ({wanted.method}): taken for a typical one")
            elif wanted.bits_per_weight < fewest - _BITS_MARGIN:
                found.append(
                    f"{wanted.scheme} stores {wanted.bits_per_weight:.3g} bits a weight; figures of its method end at "
                    f"{fewest:.3g}"
                )
        if wanted.activations.bits < 16 and wanted.activations not in self.activations:
            found.append(f"no figure of {_named(wanted.activations)} activations")
        if wanted.kv.bits < 16 and wanted.kv not in self.caches:
            found.append(f"no figure of a {_named(wanted.kv)} KV cache")
        return (*found, *self._size_warning(model, wanted))

    def _size_warning(self, model: str, wanted: Quantization) -> tuple[str, ...]:
        size = size_of(model)
        if size is None:
            return (f"the size of {model} is unknown: taken for one of {TYPICAL_BILLIONS:g}B parameters",)
        sizes = (
            [billions for bits, billions in self.sizes if bits <= wanted.bits_per_weight + _NEAR_BITS]
            if wanted.weights.bits < 16
            else self.cache_sizes
        )
        if not sizes or min(sizes) / _SIZE_MARGIN <= size <= max(sizes) * _SIZE_MARGIN:
            return ()
        return (
            f"{model} has {size:.3g}B parameters; figures at these bits are of {min(sizes):.3g}B to {max(sizes):.3g}B",
        )


def _named(form: NumberFormat) -> str:
    return f"{form.bits}-bit {form.kind}"
