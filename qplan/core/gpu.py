"""GPUs: what quantization needs to know of them, and what an hour of one costs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

from qplan.core.catalogue import rows
from qplan.core.errors import InputError, nearest
from qplan.core.units import GIB, parse_number


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator. Peaks are dense (no sparsity); ``None`` where the part lacks the format.

    Attributes
    ----------
    compute_capability
        CUDA compute capability as a tuple, ``(9, 0)`` for Hopper; ``None`` for a CPU.
    memory_gib, bandwidth_tb_s
        Device memory, and its bandwidth in 10^12 bytes/s.
    tflops_16, tflops_fp8, tops_int8
        Tensor-core peaks in 10^12 operations/s.
    interconnect_gb_s
        10^9 bytes/s per GPU and direction to its peers in the node.
    idle_w, tdp_w
        Watts.
    price_per_hour
        US dollars per GPU and hour, on demand, as `price_source` listed it on `price_date`.
    price_instance_gpus
        GPUs of the machine that the price is of; ``None`` for a user's own price.
    """

    name: str
    architecture: str
    compute_capability: tuple[int, int] | None
    memory_gib: float
    bandwidth_tb_s: float
    tflops_16: float
    tflops_fp8: float | None
    tops_int8: float | None
    interconnect: str
    interconnect_gb_s: float | None
    idle_w: float | None
    tdp_w: float | None
    price_per_hour: float
    price_source: str
    price_date: str
    price_instance_gpus: int | None
    aliases: tuple[str, ...] = ()

    @property
    def memory_bytes(self) -> float:
        """Device memory in bytes."""
        return self.memory_gib * GIB

    @property
    def is_cpu(self) -> bool:
        """Whether this is a host without an accelerator."""
        return self.compute_capability is None

    def priced(self, price_per_hour: float, source: str = "--price") -> Gpu:
        """Return this GPU at the user's own price in $/h."""
        return replace(
            self, price_per_hour=price_per_hour, price_source=source, price_date="", price_instance_gpus=None
        )

    @classmethod
    def named(cls, name: str, where: str = "--gpu") -> Gpu:
        """Find a GPU of the catalogue by name or alias, in any case; `where` names the flag in an error."""
        gpu = _by_alias().get(_fold(name))
        if gpu is None:
            known = [gpu.name for gpu in cls.catalogue()]
            raise InputError(f"{where}: unknown GPU '{name}'; known are {', '.join(known)}{nearest(name, _by_alias())}")
        return gpu

    @staticmethod
    def catalogue() -> tuple[Gpu, ...]:
        """Return the GPUs that ship with qplan."""
        return _catalogue()

    def __str__(self) -> str:
        """Print the canonical name."""
        return self.name


def parse_prices(texts: tuple[str, ...], where: str = "--price") -> dict[str, float]:
    """Read ``h100=2.99`` pairs as $/h by canonical GPU name."""
    prices = {}
    for gpu, number, text in _pairs(texts, where, example="h100=2.99"):
        if number is None:
            raise InputError(f"{where}: '{text}' gives no price; expected something like h100=2.99")
        prices[gpu.name] = parse_number(number, where)
        if prices[gpu.name] < 0:
            raise InputError(f"{where}: '{text}' is negative; expected $/h per GPU")
    return prices


def parse_inventory(texts: tuple[str, ...], where: str = "--gpus") -> dict[str, float]:
    """Read ``a100=16,h100`` as the number of GPUs to be had by canonical name; without a number there is no limit."""
    counts = {}
    for gpu, number, text in _pairs(texts, where, example="a100=16,h100=8"):
        if number is not None and not number.strip().isdecimal():
            raise InputError(f"{where}: '{text}' does not give a whole number of GPUs")
        counts[gpu.name] = math.inf if number is None else float(number)
    return counts


def _pairs(texts: tuple[str, ...], where: str, *, example: str) -> list[tuple[Gpu, str | None, str]]:
    """Split ``NAME=NUMBER,NAME`` into GPU, number (``None`` where there is none) and the text of each part."""
    pairs: list[tuple[Gpu, str | None, str]] = []
    for text in (part for whole in texts for part in whole.split(",")):
        name, equals, number = text.partition("=")
        if not name.strip():
            raise InputError(f"{where}: cannot read '{text}'; expected something like {example}")
        gpu = Gpu.named(name.strip(), where)
        if any(gpu.name == seen.name for seen, _, _ in pairs):
            raise InputError(f"{where}: {gpu.name} is given twice")
        pairs.append((gpu, number if equals else None, text))
    return pairs


def _fold(name: str) -> str:
    return name.strip().casefold().replace(" ", "-").replace("_", "-").removeprefix("nvidia-")


@cache
def _catalogue() -> tuple[Gpu, ...]:
    return tuple(_from_row(row) for row in rows("gpus.csv"))


@cache
def _by_alias() -> dict[str, Gpu]:
    return {_fold(alias): gpu for gpu in _catalogue() for alias in (gpu.name, *gpu.aliases)}


def _from_row(row: dict[str, str]) -> Gpu:
    def number(column: str) -> float | None:
        return float(row[column]) if row[column] else None

    major, _, minor = row["compute_capability"].partition(".")
    return Gpu(
        name=row["name"],
        architecture=row["architecture"],
        compute_capability=(int(major), int(minor or 0)) if major else None,
        memory_gib=float(row["memory_gib"]),
        bandwidth_tb_s=float(row["bandwidth_tb_s"]),
        tflops_16=float(row["tflops_16"]),
        tflops_fp8=number("tflops_fp8"),
        tops_int8=number("tops_int8"),
        interconnect=row["interconnect"],
        interconnect_gb_s=number("interconnect_gb_s"),
        idle_w=number("idle_w"),
        tdp_w=number("tdp_w"),
        price_per_hour=float(row["price_per_hour_usd"]),
        price_source=row["price_source"],
        price_date=row["price_date"],
        price_instance_gpus=int(row["price_instance_gpus"]),
        aliases=tuple(alias.strip() for alias in row["aliases"].split(";") if alias.strip()),
    )
