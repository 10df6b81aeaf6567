"""Quantities with units: parsed and printed at the edges, plain SI numbers inside.

Inside qplan a duration is seconds, a rate requests per second, a size bytes. Only this module knows that a
person writes ``50ms`` or ``40qps`` and reads ``80 GiB``.
"""

from __future__ import annotations

import math
import re

from qplan.core.errors import InputError, nearest

_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([^\d\s].*)?", re.IGNORECASE)

DURATIONS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
RATES = {"qps": 1.0, "rps": 1.0, "req/s": 1.0, "/s": 1.0, "/min": 1 / 60, "/h": 1 / 3600}
SIZES = {
    "B": 1.0,
    "kB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "TB": 1e12,
    "KiB": 2.0**10,
    "MiB": 2.0**20,
    "GiB": 2.0**30,
    "TiB": 2.0**40,
}
POWERS = {"W": 1.0, "kW": 1e3, "MW": 1e6}
GIB = 2**30


def parse_duration(text: str, where: str) -> float:
    """Read ``1s``, ``50ms`` or ``2min`` as seconds; a bare number is seconds. `where` names the flag."""
    return _quantity(text, DURATIONS, "s", where, example="1s or 50ms")


def parse_rate(text: str, where: str) -> float:
    """Read ``40``, ``40qps`` or ``90/min`` as requests per second. `where` names the flag."""
    return _quantity(text, RATES, "qps", where, example="40 or 40qps")


def parse_power(text: str, where: str) -> float:
    """Read ``40kW`` or ``700W`` as watts; a bare number is watts. `where` names the flag."""
    return _quantity(text, POWERS, "W", where, example="40kW or 700W")


def parse_fraction(text: str, where: str) -> float:
    """Read ``99%`` or ``0.99`` as a fraction. `where` names the flag."""
    number, _, rest = text.strip().partition("%")
    if rest or not number:
        raise InputError(f"{where}: '{text}' is not a share; expected something like 99% or 0.99")
    value = parse_number(number, where)
    return value / 100 if "%" in text else value


def parse_number(text: str, where: str) -> float:
    """Read a finite number, or say that `where` expected one."""
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{where}: '{text}' is not a number") from None
    if not math.isfinite(value):
        raise InputError(f"{where}: '{text}' is not a finite number")
    return value


def format_duration(seconds: float) -> str:
    """Print seconds as a person reads them: ``1.2 s``, ``45 ms``, ``320 us``."""
    if not math.isfinite(seconds):
        return "∞" if seconds > 0 else "—"
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if abs(seconds) >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def format_bytes(count: float) -> str:
    """Print bytes in GiB, the unit of GPU memory, or MiB when small."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.1f} MiB"


def _quantity(text: str, units: dict[str, float], bare: str, where: str, *, example: str) -> float:
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{where}: '{text}' is not a quantity; expected something like {example}")
    number = parse_number(match[1], where)
    unit = (match[2] or bare).strip()
    if unit in units:
        return number * units[unit]
    folded = {name.casefold(): scale for name, scale in units.items()}
    if unit.casefold() not in folded:
        raise InputError(
            f"{where}: unknown unit '{unit}' in '{text}'; expected one of {', '.join(units)}{nearest(unit, units)}"
        )
    return number * folded[unit.casefold()]
