"""The timestamps beside a pack, summed up by point."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qplan.profiles.timestamps import differences, latencies
from qplan.report.output import console, print_json, print_table

if TYPE_CHECKING:
    import pyarrow as pa

    from qplan.profiles.packs import Pack

JSON_SCHEMA_VERSION = 1
_SHOWN = ("ttft_p50_s", "ttft_p90_s", "ttft_p99_s", "tpot_p50_s", "tpot_p90_s", "tpot_p99_s")
_HEADER = (
    *("point", "requests", "failed", "TTFT p50 (s)", "p90", "p99", "TPOT p50 (s)", "p90", "p99"),
    "off by",
)


def print_requests(pack: Pack, table: pa.Table, *, as_json: bool) -> None:
    """Print the latencies of each point, told from the timestamps, and how far they are from the pack's own."""
    observations = pack.table.to_pylist()
    apart = differences(observations, table)
    names = {str(row["source"]): _named(row) for row in observations}
    points = [
        {"source": one.point, "point": names.get(one.point), **one.columns(), "off_by": apart.get(one.point)}
        for one in latencies(table)
    ]
    if as_json:
        print_json({"schema_version": JSON_SCHEMA_VERSION, "pack": pack.card.name, "points": points})
        return
    print_table(_HEADER, [_row(point) for point in points])
    worst = max(apart.values(), default=0.0)
    without = sum(point["off_by"] is None for point in points)
    console().print(
        f"{table.num_rows} requests of {len(points)} points; their latencies are the pack's within {worst:.2g}"
        + (f"; {without} points have no observation that went well" if without else ""),
        markup=False,
    )


def _named(row: dict[str, Any]) -> str:
    rate = "" if row["offered_qps"] is None else f"{row['offered_qps']:g} req/s"
    repeat = f"#{row['repeat'] + 1}" if row["repeat"] else ""
    return " ".join(
        filter(None, (row["model"], row["quantization"], row["engine"], row["settings"], row["workload"], rate, repeat))
    )


def _row(point: dict[str, Any]) -> tuple[object, ...]:
    shown = ("–" if point[name] is None else f"{point[name]:.4g}" for name in _SHOWN)
    off = "–" if point["off_by"] is None else f"{point['off_by']:.1g}"
    return (point["point"] or point["source"], point["requests"], point["failed_requests"], *shown, off)
