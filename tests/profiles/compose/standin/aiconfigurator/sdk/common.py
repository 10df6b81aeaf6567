"""Modes, as the real package spells them."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Mode(NamedTuple):
    memory: float
    name: str


class GEMMQuantMode(Enum):
    float16 = Mode(2, "float16")
    int8_wo = Mode(1, "int8_wo")
    int4_wo = Mode(0.5, "int4_wo")
    fp8 = Mode(1, "fp8")
    sq = Mode(1, "sq")


class FMHAQuantMode(Enum):
    float16 = Mode(2, "float16")
    fp8 = Mode(1, "fp8")


class KVCacheQuantMode(Enum):
    float16 = Mode(2, "float16")
    fp8 = Mode(1, "fp8")
