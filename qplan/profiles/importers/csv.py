"""CSV files with a header, whose columns are qplan's or are mapped to them.

``--map p50_ttft=ttft_p50_s:ms`` reads the column ``p50_ttft``, in milliseconds, as ``ttft_p50_s``; ``--map
note=`` leaves a column out. A column that is neither qplan's nor mapped is an error: numbers are not lost
in silence.
"""

from __future__ import annotations

import csv
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from qplan.core.errors import InputError, nearest
from qplan.core.units import DURATIONS, RATES, SIZES
from qplan.profiles.observations import from_rows
from qplan.profiles.schema import Column, columns, names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa

    from qplan.profiles.importers import Given

UNITS: dict[str, dict[str, float]] = {
    "s": DURATIONS,
    "1/s": RATES,
    "bytes": SIZES,
    "J": {"mJ": 1e-3, "J": 1.0, "kJ": 1e3, "Wh": 3600.0, "kWh": 3.6e6},
    "W": {"mW": 1e-3, "W": 1.0, "kW": 1e3},
}
"""Units that a column of a schema unit can be given in, as factors."""


class _Target(NamedTuple):
    """Where a column of the file goes."""

    column: Column
    factor: float


def read(path: Path, given: Given) -> pa.Table:
    """Return one row for each line; what a line leaves blank is null."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return from_rows(list(_rows(path, csv.reader(file, strict=True), given)), str(path))
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file; expected CSV") from None
    except csv.Error as error:
        raise InputError(f"{path}: not CSV: {error}") from None


def _rows(path: Path, lines: Any, given: Given) -> Iterator[dict[str, Any]]:
    header = next(lines, None)
    if not header:
        raise InputError(f"{path}: no header line")
    targets = _targets(path, header, given.column_map)
    for cells in lines:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise InputError(f"{path}, line {lines.line_num}: {len(cells)} cells where the header has {len(header)}")
        where = f"{path}, line {lines.line_num}"
        row = {
            target.column.name: _value(cell.strip(), target, f"{where}, column '{name}'")
            for name, cell, target in zip(header, cells, targets, strict=True)
            if target is not None
        }
        yield given.complete(row, path.name)


def _targets(path: Path, header: list[str], column_map: tuple[str, ...]) -> list[_Target | None]:
    """Say for each column of the file which column it is read as; ``None`` for one that is left out."""
    known = {column.name: column for column in columns()}
    mapped = {}
    for item in column_map:
        source, sign, target = item.partition("=")
        if not sign or source not in header:
            raise InputError(
                f"--map {item}: {path} has no column '{source}'{nearest(source, header)}"
                if sign
                else f"--map {item}: expected SOURCE=COLUMN or SOURCE=COLUMN:UNIT"
            )
        mapped[source] = _target(item, target, known) if target else None
    targets: list[_Target | None] = []
    for name in header:
        if name not in mapped and name not in known:
            raise InputError(
                f"{path}: column '{name}' is not one of qplan's{nearest(name, names())}; "
                f"map it (--map '{name}=COLUMN:UNIT') or leave it out (--map '{name}=')"
            )
        targets.append(mapped[name] if name in mapped else _Target(known[name], 1.0))
    taken = [target.column.name for target in targets if target is not None]
    for name in taken:
        if taken.count(name) > 1:
            raise InputError(f"{path}: two columns are read as '{name}'")
    return targets


def _target(item: str, target: str, known: dict[str, Column]) -> _Target:
    """Read ``COLUMN`` or ``COLUMN:UNIT``."""
    name, _, unit = target.partition(":")
    if name not in known:
        raise InputError(f"--map {item}: unknown column '{name}'{nearest(name, known)}")
    units = UNITS.get(known[name].unit, {})
    if unit and unit not in units:
        expected = f"expected one of {', '.join(units)}" if units else f"'{name}' has no other units"
        raise InputError(f"--map {item}: unknown unit '{unit}'; {expected}{nearest(unit, units)}")
    return _Target(known[name], units[unit] if unit else 1.0)


def _value(cell: str, target: _Target, where: str) -> str | int | float | None:
    """Read a cell as its column's type."""
    if not cell:
        return None
    if target.column.type == "str":
        return cell
    try:
        value = float(cell)
    except ValueError:
        raise InputError(f"{where}: '{cell}' is not a number") from None
    if not math.isfinite(value) or value < 0:
        raise InputError(f"{where}: {cell} is not possible; expected a finite number, at least 0")
    if target.column.type == "float":
        return value * target.factor
    if value != int(value):
        raise InputError(f"{where}: {cell} is not a whole number")
    return int(value)
