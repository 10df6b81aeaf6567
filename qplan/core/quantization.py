"""Quantization schemes in the field's notation.

``W4A16`` is 4-bit weights and 16-bit activations; a suffix names the number kind (``-INT``, ``-FP``) or the method
(``-AWQ``, ``-GPTQ``) where bits alone do not tell; ``KV8-FP`` or ``KV4-INT`` names a quantized KV cache. Where weights,
activations and cache are of one kind the field writes it once: ``W8A8KV8-FP``, ``W4A8KV4``; else the cache is
appended: ``W4A16-KV8-FP``, ``Q4_0-KV8-INT``. :meth:`Quantization.parse` reads every spelling of the catalogue
(``fp8``, ``awq``, ``SmoothQuant``, ``LLM.int8()``, ``Q4_K_M`` ...) and ``str`` prints the canonical one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache

from qplan.core.catalogue import rows
from qplan.core.errors import InputError, nearest
from qplan.core.gpu import Gpu

_KV = re.compile(r"[-+_ ]?kv(?P<bits>\d+)(?:[-_](?P<kind>int|fp))?$", re.IGNORECASE)
_FP8_KV_CAPABILITY = (8, 9)  # TensorRT-LLM's support matrix: FP8 KV cache from Ada on


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """Bits of a number and whether it is an ``int`` or a ``float``."""

    bits: int
    kind: str


KV16 = NumberFormat(16, "float")
_KV_FORMATS = {
    (8, "int"): NumberFormat(8, "int"),
    (8, "fp"): NumberFormat(8, "float"),
    (4, "int"): NumberFormat(4, "int"),
}


@dataclass(frozen=True, slots=True)
class Quantization:
    """How weights, activations and KV cache are stored and computed.

    Attributes
    ----------
    scheme
        Canonical name of weights and activations alone, ``W4A16-AWQ``.
    method
        ``none``, ``awq``, ``gptq``, ``smoothquant``, ``fp8``, ``qserve``, ``gguf`` ...
    group_size
        Weights that share a scale; ``None`` for per channel or per tensor.
    bits_per_weight
        Stored bits of a quantized weight with its share of scales, zero points and outliers.
    quantizes_embeddings
        Whether embeddings and output head are quantized too (GGUF) or stay at 16 bits.
    min_compute_capability
        Lowest CUDA compute capability with kernels; ``None`` for any.
    runs_on_cpu
        Whether a CPU engine runs the scheme.
    needs
        What hardware or kernels it needs, in words.
    """

    scheme: str
    method: str
    weights: NumberFormat
    activations: NumberFormat
    group_size: int | None
    bits_per_weight: float
    quantizes_embeddings: bool
    min_compute_capability: tuple[int, int] | None
    runs_on_cpu: bool
    needs: str
    kv: NumberFormat = KV16

    @classmethod
    def parse(cls, text: str, where: str = "--quant") -> Quantization:
        """Read a quantization in any known spelling; `where` names the flag in an error."""
        base, kv = _split_kv(text.strip(), where)
        scheme = _by_alias().get(base.casefold())
        if scheme is None and base.casefold() == "w8a8":
            raise InputError(f"{where}: '{text}' does not say the number kind; expected W8A8-INT or W8A8-FP")
        if scheme is None:
            known = [known.scheme for known in cls.catalogue()]
            raise InputError(
                f"{where}: unknown quantization '{text}'; expected one of {', '.join(known[:12])} ... or a GGUF type, "
                f"each also with -KV8-INT or -KV8-FP{nearest(base, known)}"
            )
        return replace(scheme, kv=kv)

    @staticmethod
    def catalogue() -> tuple[Quantization, ...]:
        """Return every scheme that qplan knows, with a 16-bit KV cache."""
        return _catalogue()

    @property
    def is_16_bit(self) -> bool:
        """Whether weights, activations and KV cache are all 16 bits: the baseline of the studies."""
        return self.weights.bits == self.activations.bits == self.kv.bits == 16

    @property
    def kv_bits_per_value(self) -> float:
        """Stored bits of a KV-cache value; below 8 bits, 128 values share a 16-bit scale and zero point (QServe)."""
        return self.kv.bits + (32 / 128 if self.kv.bits < 8 else 0)

    def refusal(self, gpu: Gpu) -> str | None:
        """Say why `gpu` cannot run this, or return ``None`` when it can."""
        if gpu.is_cpu:
            return None if self.runs_on_cpu else f"{self} has no CPU kernels: it needs {self.needs}"
        assert gpu.compute_capability is not None
        checks = [
            (self.min_compute_capability, self.needs),
            (_FP8_KV_CAPABILITY if self.kv == NumberFormat(8, "float") else None, "an FP8 KV cache"),
        ]
        for capability, what in checks:
            if capability is not None and gpu.compute_capability < capability:
                have = ".".join(map(str, gpu.compute_capability))
                want = ".".join(map(str, capability))
                return f"{self} needs {what} (compute capability {want}); {gpu.name} ({gpu.architecture}) has {have}"
        return None

    def __str__(self) -> str:
        """Print the canonical notation."""
        if self.kv.bits == 16:
            return self.scheme
        kind = "FP" if self.kv.kind == "float" else "INT"
        if self.scheme == f"W8A8-{kind}" and self.kv.bits == 8:
            return f"W8A8KV8-{kind}"
        if self.scheme == "W4A8" and self.kv.bits == 4:
            return "W4A8KV4"
        return f"{self.scheme}-KV{self.kv.bits}-{kind}"


def _split_kv(text: str, where: str) -> tuple[str, NumberFormat]:
    """Split ``W8A8KV8-FP`` into ``W8A8-FP`` and the format of its KV cache."""
    match = _KV.search(text)
    if match is None:
        return text, KV16
    base, bits = text[: match.start()], int(match["bits"])
    kind = (match["kind"] or "").casefold()
    scheme = _by_alias().get(base.casefold())
    if bits == 16:
        return base, KV16
    if not kind and bits == 4:
        kind = "int"
    if not kind and scheme is not None and scheme.activations.bits == 8:
        kind = "fp" if scheme.activations.kind == "float" else "int"
    if (bits, kind) not in _KV_FORMATS:
        raise InputError(f"{where}: cannot tell the KV-cache format of '{text}'; expected KV8-INT, KV8-FP or KV4-INT")
    if base.casefold() == "w8a8":
        base = f"W8A8-{kind}"
    return base, _KV_FORMATS[bits, kind]


@cache
def _catalogue() -> tuple[Quantization, ...]:
    return tuple(_from_row(row) for row in rows("quantizations.csv"))


@cache
def _by_alias() -> dict[str, Quantization]:
    return {
        alias.strip().casefold(): scheme
        for row, scheme in zip(rows("quantizations.csv"), _catalogue(), strict=True)
        for alias in (row["name"], *row["aliases"].split(";"))
    }


def _from_row(row: dict[str, str]) -> Quantization:
    major, _, minor = row["min_compute_capability"].partition(".")
    return Quantization(
        scheme=row["name"],
        method=row["method"],
        weights=NumberFormat(int(row["weight_bits"]), row["weight_kind"]),
        activations=NumberFormat(int(row["activation_bits"]), row["activation_kind"]),
        group_size=int(row["group_size"]) if row["group_size"] else None,
        bits_per_weight=float(row["bits_per_weight"]),
        quantizes_embeddings=row["quantized_parts"] == "all",
        min_compute_capability=(int(major), int(minor)) if major else None,
        runs_on_cpu=row["cpu"] == "yes",
        needs=row["needs"],
    )
