"""What a table of measured observations says, with repeats brought together, ready to be printed or drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from qplan.core.errors import InputError
from qplan.core.quantization import KV16, Quantization
from qplan.measure.energy.per_token import joules_per_token
from qplan.measure.findings.points import Server

if TYPE_CHECKING:
    import pyarrow as pa

PHASES = ("serving", "saturation", "quality")
LATENCIES = tuple(f"{metric}_{q}_s" for metric in ("ttft", "tpot") for q in ("p50", "p90", "p99"))
_LOAD_COLUMNS = (*LATENCIES, "achieved_qps", "goodput_qps", "slo_attainment", "output_tokens_per_s", "server_cpu_cores")
_SYSTEM_COLUMNS = ("model", "engine", "engine_version", "gpu", "tp", "provenance")


@dataclass(frozen=True, slots=True)
class Spread:
    """A value over repeats: their median, and the range of the repeats and of their own intervals."""

    value: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None], lows: Iterable[Any] = (), highs: Iterable[Any] = ()) -> Spread | None:
        """Sum up what is known; ``None`` where nothing is."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        low = min([*known, *(low for low in lows if low is not None)])
        high = max([*known, *(high for high in highs if high is not None)])
        return cls(median(known), low, high, len(known))


@dataclass(frozen=True, slots=True, order=True)
class System(Server):
    """What serves, and how that is known."""

    provenance: str


@dataclass(frozen=True, slots=True)
class Variant:
    """A system with its quantization.

    Attributes
    ----------
    bits
        Bits per weight, stored; ``None`` for a scheme that the catalogue does not have.
    bits_measured
        Whether `bits` was measured, rather than taken from the catalogue.
    scheme
        Weights and activations alone.
    kv
        Format of the KV cache: ``KV16``, ``KV8-INT`` ...
    settings
        Engine settings that differ from the adapter's own, as JSON; empty for none.
    """

    system: System
    quantization: str
    settings: str
    bits: float | None
    bits_measured: bool
    scheme: str
    kv: str


@dataclass(frozen=True, slots=True)
class Load:
    """One offered rate of one variant and workload."""

    variant: Variant
    workload: str
    slo: str
    arrivals: str
    offered_qps: float
    requests: int
    failed_requests: int
    values: Mapping[str, Spread]


@dataclass(frozen=True, slots=True)
class Saturation:
    """The highest rate that met the SLOs."""

    variant: Variant
    workload: str
    slo: str
    arrivals: str
    qps: Spread


@dataclass(frozen=True, slots=True)
class Score:
    """One quality metric of one task; `change` is against the unquantized baseline on the same items."""

    variant: Variant
    task: str
    metric: str
    items: int | None
    score: Spread
    baseline: float | None
    change: Spread | None


@dataclass(frozen=True, slots=True)
class Failure:
    """A point that could not be measured."""

    variant: Variant
    phase: str
    point: str
    status: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything that is shown.

    Attributes
    ----------
    facts
        Distinct values of what the rows say of themselves: host, driver, source, command, day.
    energy_notes
        Why energy is missing or doubtful.
    closed_loop
        Rows of closed-loop load, which have no place on an axis of offered rates.
    """

    variants: tuple[Variant, ...]
    loads: tuple[Load, ...]
    saturations: tuple[Saturation, ...]
    scores: tuple[Score, ...]
    failures: tuple[Failure, ...]
    facts: Mapping[str, tuple[str, ...]]
    energy_notes: tuple[str, ...]
    rows: int
    closed_loop: int

    @property
    def systems(self) -> tuple[System, ...]:
        """Every system, in order."""
        return tuple(sorted({variant.system for variant in self.variants}))


def summarize_measured(observations: pa.Table) -> Measured:
    """Bring the repeats of measured points together.

    Parameters
    ----------
    observations
        Rows with every column of the schema; those of phases that measuring does not write are left out.

    Raises
    ------
    InputError
        There is no row of a serving run, a saturation search or a quality metric.
    """
    rows: list[dict[str, Any]] = [row for row in observations.to_pylist() if row["phase"] in PHASES]
    if not rows:
        found = sorted({str(phase) for phase in observations["phase"].to_pylist()}) or ["nothing"]
        raise InputError(f"nothing to report: expected rows of {', '.join(PHASES)}; found {', '.join(found)}")
    variants = _variants(rows)
    of = {id(row): variants[_variant_key(row)] for row in rows}
    ok = [row for row in rows if row["status"] == "ok"]
    notes = {str(row["energy_note"]) for row in ok if row["phase"] == "serving" and row["energy_note"]}
    return Measured(
        variants=tuple(sorted(set(variants.values()), key=_order)),
        loads=tuple(_loads(ok, of)),
        saturations=tuple(_saturations(ok, of)),
        scores=tuple(_scores(ok, of)),
        failures=tuple(_failures(rows, of)),
        facts={name: _distinct(rows, name) for name in ("host", "driver", "source", "command", "measured_on")},
        energy_notes=tuple(sorted(notes)),
        rows=len(rows),
        closed_loop=sum(row["phase"] == "serving" and row["offered_qps"] is None for row in ok),
    )


def _variants(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[Any, ...], Variant]:
    """Find every variant; measured bits per weight of one row stand for the scheme on the whole system."""
    measured: dict[tuple[Any, ...], float] = {}
    for row in rows:
        if row["bits_per_weight"] is not None:
            measured.setdefault((_system(row), _split(row["quantization"])[0]), row["bits_per_weight"])
    variants = {}
    for row in rows:
        scheme, kv, nominal = _split(row["quantization"])
        bits = measured.get((_system(row), scheme))
        variants[_variant_key(row)] = Variant(
            system=_system(row),
            quantization=row["quantization"],
            settings=row["settings"] or "",
            bits=nominal if bits is None else bits,
            bits_measured=bits is not None,
            scheme=scheme,
            kv=kv,
        )
    return variants


def _split(quantization: str) -> tuple[str, str, float | None]:
    """Return scheme, KV format and the catalogue's bits per weight; a name that qplan does not know is its own."""
    try:
        known = Quantization.parse(quantization)
    except InputError:
        return quantization, "KV16", None
    kind = "FP" if known.kv.kind == "float" else "INT"
    return known.scheme, "KV16" if known.kv == KV16 else f"KV{known.kv.bits}-{kind}", known.bits_per_weight


def _loads(rows: Sequence[Mapping[str, Any]], of: Mapping[int, Variant]) -> Iterable[Load]:
    serving = [row for row in rows if row["phase"] == "serving" and row["offered_qps"] is not None]
    for (variant, workload, slo, arrivals, qps), group in _groups(
        serving, of, "workload", "slo", "arrivals", "offered_qps"
    ):
        spreads = {name: _with_interval(group, name) for name in _LOAD_COLUMNS}
        joules = [_joules(row) for row in group]
        spreads["j_per_token"] = Spread.of(gross for gross, _ in joules)
        spreads["j_per_token_above_idle"] = Spread.of(above for _, above in joules)
        yield Load(
            variant=variant,
            workload=workload or "unnamed",
            slo=slo or "",
            arrivals=arrivals or "",
            offered_qps=qps,
            requests=sum(row["requests"] or 0 for row in group),
            failed_requests=sum(row["failed_requests"] or 0 for row in group),
            values={name: spread for name, spread in spreads.items() if spread is not None},
        )


def _saturations(rows: Sequence[Mapping[str, Any]], of: Mapping[int, Variant]) -> Iterable[Saturation]:
    searched = [row for row in rows if row["phase"] == "saturation"]
    for (variant, workload, slo, arrivals), group in _groups(searched, of, "workload", "slo", "arrivals"):
        lows, highs = (row["saturation_low_qps"] for row in group), (row["saturation_high_qps"] for row in group)
        qps = Spread.of((row["saturation_qps"] for row in group), lows, highs)
        if qps is not None:
            yield Saturation(variant, workload or "unnamed", slo or "", arrivals or "", qps)


def _scores(rows: Sequence[Mapping[str, Any]], of: Mapping[int, Variant]) -> Iterable[Score]:
    judged = [row for row in rows if row["phase"] == "quality"]
    for (variant, task, metric), group in _groups(judged, of, "task", "metric"):
        score = Spread.of(*([row[name] for row in group] for name in ("score", "score_low", "score_high")))
        changes = ("score_change", "score_change_low", "score_change_high")
        if score is not None:
            yield Score(
                variant=variant,
                task=task,
                metric=metric,
                items=max((row["items"] for row in group if row["items"] is not None), default=None),
                score=score,
                baseline=next((row["baseline_score"] for row in group if row["baseline_score"] is not None), None),
                change=Spread.of(*([row[name] for row in group] for name in changes)),
            )


def _failures(rows: Sequence[Mapping[str, Any]], of: Mapping[int, Variant]) -> Iterable[Failure]:
    counts: dict[tuple[Any, ...], int] = {}
    for row in rows:
        if row["status"] != "ok":
            key = (of[id(row)], row["phase"], _point(row), row["status"], (row["reason"] or "no reason given").strip())
            counts[key] = counts.get(key, 0) + 1
    for key in sorted(counts, key=lambda key: (_order(key[0]), key[1:])):
        yield Failure(*key, count=counts[key])


def _point(row: Mapping[str, Any]) -> str:
    """Name the point of a row beside its variant."""
    rate = "" if row["offered_qps"] is None else f"{row['offered_qps']:g} req/s"
    parts = (row["workload"], rate, row["task"], row["metric"])
    return ", ".join(part for part in parts if part)


def _groups(
    rows: Sequence[Mapping[str, Any]], of: Mapping[int, Variant], *names: str
) -> Iterable[tuple[tuple[Any, ...], list[Mapping[str, Any]]]]:
    """Gather the rows of one variant and the same values in the named columns, in a steady order."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((of[id(row)], *(row[name] for name in names)), []).append(row)

    def order(key: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_order(key[0]), *((value is not None, value if value is not None else "") for value in key[1:]))

    for key in sorted(groups, key=order):
        yield key, groups[key]


def _with_interval(group: Sequence[Mapping[str, Any]], name: str) -> Spread | None:
    """Spread of a column over repeats, and over its bootstrap intervals where the schema has them."""
    lows, highs = (f"{name.removesuffix('_s')}_{end}_s" for end in ("low", "high"))
    return Spread.of((row[name] for row in group), (row.get(lows) for row in group), (row.get(highs) for row in group))


def _joules(row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """J/token of one row, gross and above idle, over the tokens of the same window."""
    rate, seconds = row["output_tokens_per_s"], row["duration_s"]
    if rate is None or seconds is None:
        return None, None
    return joules_per_token(row["energy_j"], seconds, rate * seconds, row["idle_power_w"])


def _order(variant: Variant) -> tuple[Any, ...]:
    """Order by system, then from many bits to few."""
    return (variant.system, -(variant.bits or 0), variant.scheme, variant.kv != "KV16", variant.kv, variant.settings)


def _distinct(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[str, ...]:
    return tuple(sorted({str(row[name]) for row in rows if row[name]}))


def _system(row: Mapping[str, Any]) -> System:
    return System(*(row[name] for name in _SYSTEM_COLUMNS))


def _variant_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (_system(row), row["quantization"], row["settings"] or "")
