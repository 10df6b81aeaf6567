"""How every configuration of a study is measured: the requests, the load, the SLOs, the time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qplan.core.errors import InputError, nearest
from qplan.core.slo import Slo
from qplan.core.units import parse_fraction, parse_rate
from qplan.core.workload import Workload
from qplan.profiles.yamlfile import Entry
from qplan.solvers.tuning.entries import distinct, optional

_DEADLINES = ("start", "request", "saturation", "quality")


@dataclass(frozen=True, slots=True)
class Conditions:
    """How every configuration is measured.

    Attributes
    ----------
    workload
        Request mix, by name or lengths.
    qps, share
        The load that latencies are read at: a rate, or a share of the saturation rate; neither where none is needed.
    deadlines_s
        Longest times by name: start, request, saturation, quality.
    """

    workload: str = ""
    slos: tuple[Slo, ...] = ()
    qps: float | None = None
    share: float | None = None
    arrivals: str = "poisson"
    attainment: float = 0.95
    duration_s: float = 30.0
    warm_up_s: float = 5.0
    seed: int = 0
    quality_api: str = "chat"
    devices: tuple[int, ...] = ()
    deadlines_s: Mapping[str, float] | None = None


def read_conditions(fields: Mapping[str, Entry]) -> Conditions:
    """Read how every configuration is measured, from the keys of the file."""
    from qplan.measure.endpoint import APIS

    qps, share = _load(fields["load"]) if "load" in fields else (None, None)
    conditions = Conditions(
        workload=optional(fields, "workload", _workload, ""),
        slos=Slo.parse_all([item.string() for item in fields["slo"].listed()], fields["slo"].where)
        if "slo" in fields
        else (),
        qps=qps,
        share=share,
        arrivals=optional(fields, "arrivals", _arrivals, "poisson"),
        attainment=optional(fields, "attainment", Entry.share, 0.95),
        duration_s=optional(fields, "duration", Entry.duration, 30.0),
        warm_up_s=optional(fields, "warm_up", lambda e: 0.0 if e.text == "0" else e.duration(), 5.0),
        seed=optional(fields, "seed", lambda e: e.count(0, 2**32 - 1), 0),
        quality_api=optional(fields, "quality_api", lambda e: e.one_of(APIS), "chat"),
        devices=optional(fields, "devices", lambda e: tuple(distinct(e, lambda i: i.count(least=0))), ()),
        deadlines_s=_deadlines(fields["deadlines"]) if "deadlines" in fields else None,
    )
    if conditions.duration_s <= conditions.warm_up_s:
        where = fields.get("duration", fields.get("warm_up", fields["name"])).where
        raise InputError(
            f"{where}: {conditions.duration_s:g} s of load end before {conditions.warm_up_s:g} s of warm-up"
        )
    return conditions


def _workload(entry: Entry) -> str:
    text = entry.string()
    if Workload.named(text) is not None:
        return text.casefold()
    if "=" in text:
        return entry.read(Workload.fixed).name
    names = Workload.names()
    raise InputError(
        f"{entry.where}: unknown workload '{text}'; expected one of {', '.join(names)}, or isl=TOKENS,osl=TOKENS"
        f"{nearest(text, names)}"
    )


def _arrivals(entry: Entry) -> str:
    from qplan.measure.load.arrivals import Arrivals

    return str(entry.read(Arrivals.parse))


def _load(entry: Entry) -> tuple[float | None, float | None]:
    text = entry.string()
    if text.endswith("%"):
        share = parse_fraction(text, entry.where)
        if not 0 < share <= 2:
            raise entry.wrong("a share of the saturation rate above 0% and up to 200%")
        return None, share
    qps = parse_rate(text, entry.where)
    if qps <= 0:
        raise entry.wrong("a rate of more than 0, such as 2qps, or a share of saturation, such as 50%")
    return qps, None


def _deadlines(entry: Entry) -> Mapping[str, float]:
    return {name: value.duration() for name, value in entry.mapping(_DEADLINES).items()}
