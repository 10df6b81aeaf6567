"""The claims of studies of quantized serving, each held against what was measured.

The claims are those of the study of eleven quantization methods on A100 and H100 (arXiv 2508.16712) and of public
kernel measurements. Each compares a quantization with the 16 bits (or the 16-bit KV cache) of the same system under the
same mix, at equal request rates or equal batches, so that no engine is compared with another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter

from qplan.measure.findings.contrasts import Contrast, Effect, Spread, Verdict
from qplan.measure.findings.points import ENERGY, TPOT, TTFT, LoadPoint, MeasuredLoads, Series

NO_SAVING = 0.95
"""A saving of less than 5 % counts as none."""

_SIXTEEN = 16
_NARROW = 1.5  # batches must span this factor for one to be small and one large
_RATE, _BATCH = attrgetter("offered_qps"), attrgetter("batch")


@dataclass(frozen=True, slots=True)
class Part:
    """One comparison of a claim.

    Attributes
    ----------
    what, where
        What is compared: at low load, in small batches ...; and the rates, batches or mixes that this is here.
    effect
        Quantized over 16 bits, or a ratio of two such ratios.
    above, threshold
        Which side of which ratio the claim names.
    """

    what: str
    where: str
    effect: Effect
    above: bool
    threshold: float

    @property
    def verdict(self) -> Verdict:
        """What it says of the claim."""
        return self.effect.verdict(self.threshold, above=self.above)


@dataclass(frozen=True, slots=True)
class Curve:
    """Quantized over 16 bits along an axis, with intervals of their own: what a claim's figure shows."""

    axis: tuple[float, ...]
    effects: tuple[Effect, ...]


@dataclass(frozen=True, slots=True)
class Subject:
    """A claim on one quantization of one system.

    Attributes
    ----------
    system, mix, quantization
        In words; the mix is empty where it is mixes that are compared.
    curves
        By name of the line; empty where there is nothing to draw.
    """

    system: str
    mix: str
    quantization: str
    metric: str
    parts: tuple[Part, ...]
    curves: dict[str, Curve]

    @property
    def verdict(self) -> Verdict:
        """Holds where every part holds, is contradicted where any part is."""
        return together(self.parts)


@dataclass(frozen=True, slots=True)
class Finding:
    """One claim against everything in a pack that tells of it.

    Attributes
    ----------
    key, claim, source
        A short name, the claim in words, and who makes it.
    axis
        What its curves are over.
    average
        By metric: the comparisons over the (geometric) mean of all subjects, whose verdict is the finding's.
    cannot_tell
        Why the pack tells nothing of it; ``None`` where it does.
    spreads
        By metric, how far repeats lie apart.
    notes
        What to know before reading the verdict.
    """

    key: str
    claim: str
    source: str
    axis: str
    subjects: tuple[Subject, ...]
    average: dict[str, tuple[Part, ...]]
    cannot_tell: str | None
    spreads: dict[str, Spread]
    notes: tuple[str, ...] = ()

    def counts(self) -> dict[Verdict, int]:
        """Return how many subjects have each verdict."""
        return {verdict: sum(one.verdict is verdict for one in self.subjects) for verdict in Verdict}

    @property
    def verdict(self) -> Verdict | None:
        """What the average of all subjects says; ``None`` where the pack cannot tell."""
        return None if self.cannot_tell else together([part for parts in self.average.values() for part in parts])


def together(parts: Sequence[Part]) -> Verdict:
    """Return the verdict of several comparisons: all must hold, and one that is contradicted contradicts."""
    verdicts = {part.verdict for part in parts}
    if Verdict.CONTRADICTED in verdicts:
        return Verdict.CONTRADICTED
    return Verdict.HOLDS if verdicts == {Verdict.HOLDS} else Verdict.UNDECIDED


def findings(loads: MeasuredLoads) -> tuple[Finding, ...]:
    """Hold every claim against measured loads."""
    made = (_energy, _weight_only, _kv_cache, partial(_lengths, _SHORT_OUTPUTS), partial(_lengths, _LONG_INPUTS))
    return tuple(make(loads) for make in made)


_STUDY = "arXiv 2508.16712"


@dataclass(frozen=True, slots=True)
class _Draft:
    """A part whose interval waits for the number of parts of its claim."""

    what: str
    where: str
    contrast: Contrast
    above: bool
    threshold: float = 1.0

    def part(self, metric: str, spread: Spread, tests: int) -> Part:
        effect = self.contrast.effect(metric, spread, tests)
        return Part(self.what, self.where, effect, self.above, self.threshold)


@dataclass(frozen=True, slots=True)
class _DraftSubject:
    one: Series
    mix: str
    metric: str
    parts: tuple[_Draft, ...]
    curves: dict[str, tuple[tuple[float, Contrast], ...]]


def _finished(
    key: str,
    claim: str,
    source: str,
    axis: str,
    drafts: Sequence[_DraftSubject],
    why_not: str,
    spreads: dict[str, Spread],
    notes: Sequence[str] = (),
) -> Finding:
    """Give every part its interval; `why_not` says why there is no draft."""
    tests = sum(len(draft.parts) for draft in drafts)
    subjects = tuple(
        Subject(
            str(draft.one.system),
            draft.mix,
            str(draft.one.quantization),
            draft.metric,
            tuple(part.part(draft.metric, spreads[draft.metric], tests) for part in draft.parts),
            {
                name: Curve(
                    tuple(x for x, _ in line),
                    tuple(contrast.effect(draft.metric, spreads[draft.metric], 1) for _, contrast in line),
                )
                for name, line in draft.curves.items()
            },
        )
        for draft in drafts
    )
    used = {draft.metric for draft in drafts}
    unknown = [metric for metric in spreads if metric in used and not spreads[metric].known]
    said = list(notes)
    if unknown:
        said.append(
            f"no load was measured twice: how far {' and '.join(unknown)} of one load lie apart is not known, "
            "and no effect can be told from chance"
        )
    return Finding(
        key,
        claim,
        source,
        axis,
        subjects,
        _average(drafts, spreads),
        None if drafts else why_not,
        {metric: spread for metric, spread in spreads.items() if metric in used},
        tuple(said),
    )


def _average(drafts: Sequence[_DraftSubject], spreads: dict[str, Spread]) -> dict[str, tuple[Part, ...]]:
    """Return each part over the mean of all subjects, by metric."""
    by_metric: dict[str, list[_DraftSubject]] = {}
    for draft in drafts:
        by_metric.setdefault(draft.metric, []).append(draft)
    tests = sum(len(some[0].parts) for some in by_metric.values())
    found = {}
    for metric, some in by_metric.items():
        means = [
            replace(parts[0], where="", contrast=Contrast.mean([part.contrast for part in parts]))
            for parts in zip(*(draft.parts for draft in some), strict=True)
        ]
        found[metric] = tuple(part.part(metric, spreads[metric], tests) for part in means)
    return found


def _energy(loads: MeasuredLoads) -> Finding:
    drafts = []
    for one, base in _against_16_bits(loads):
        ratios = _ratios(one.having(ENERGY), base.having(ENERGY), _RATE)
        if len(ratios) > 1:
            (low, below), (high, above) = _halves(ratios)
            parts = (
                _Draft("at low load", below, low, above=True, threshold=NO_SAVING),
                _Draft("at high load", above, high, above=False),
            )
            drafts.append(_DraftSubject(one, one.mix.name, ENERGY, parts, {one.mix.name: ratios}))
    return _finished(
        "energy-and-load",
        f"Quantization saves energy at high load, and none (less than {1 - NO_SAVING:.0%}) at low load",
        _STUDY,
        "offered load (req/s)",
        drafts,
        _why_no_pairs(loads)
        or _without(loads, ENERGY, f"no run has energy ({'; '.join(loads.energy_notes) or 'the rows do not say why'})")
        or "no quantization and its 16 bits have energy at two loads in common",
        {ENERGY: Spread.of(_all_points(loads), ENERGY)},
        ("Energy is gross, idle power included, for a generated token; halves of the loads are compared.",),
    )


def _weight_only(loads: MeasuredLoads) -> Finding:
    drafts, narrow = [], False
    for one, base in _against_16_bits(loads):
        format_ = one.quantization
        if not (format_.weights.bits < format_.activations.bits == _SIXTEEN == format_.kv.bits):
            continue
        ratios = _ratios(one.having(TPOT), base.having(TPOT), _BATCH)
        if len(ratios) < 2 or ratios[-1][0] < _NARROW * ratios[0][0]:
            narrow = True
            continue
        (small, first), (large, last) = ratios[0], ratios[-1]
        parts = (
            _Draft("in small batches", f"{small:.3g}", first, above=False),
            _Draft("in large batches, over small", f"{large:.3g}", last - first, above=True),
        )
        drafts.append(_DraftSubject(one, one.mix.name, TPOT, parts, {one.mix.name: ratios}))
    return _finished(
        "weight-only-and-batch",
        "Weight-only quantization speeds decoding up in small batches, and less in large ones",
        f"{_STUDY}; GEMMs on A100: 2.7 times faster with one row, not at all with 256",
        "batch (requests decoded together)",
        drafts,
        _why_no_pairs(loads)
        or _without(loads, TPOT, "no run has TPOT")
        or ("the batches that it shares with 16 bits span less than a factor of 1.5" if narrow else "")
        or "no weight-only quantization was measured beside 16 bits",
        {TPOT: Spread.of(_all_points(loads), TPOT)},
        ("TPOT at equal batches (Little's law), interpolated: equal rates would give the slower format larger ones.",),
    )


def _kv_cache(loads: MeasuredLoads) -> Finding:
    drafts = []
    for one in loads.series:
        base = loads.with_16_bit_cache(one)
        if one.quantization.kv.bits >= _SIXTEEN or base is None:
            continue
        for metric in (TTFT, TPOT):
            ratios = _ratios(_kept(one, metric), _kept(base, metric), _RATE)
            if ratios:
                whole = Contrast.mean([contrast for _, contrast in ratios])
                parts = (_Draft("over all loads", _between(ratios), whole, above=True),)
                drafts.append(_DraftSubject(one, one.mix.name, metric, parts, {one.mix.name: ratios}))
    return _finished(
        "kv-cache-and-latency",
        "A compressed KV cache costs latency",
        _STUDY,
        "offered load (req/s)",
        drafts,
        "no weights were measured with a KV cache of 16 bits and with a compressed one under the same mix"
        if loads.series
        else _why_no_pairs(loads),
        _kept_spreads(loads),
        (_KEPT_UP,),
    )


@dataclass(frozen=True, slots=True)
class _Lengths:
    """A claim that quantization hurts one latency more under one kind of mix than under the others."""

    key: str
    claim: str
    metric: str
    hurt: str
    other: str
    order: Callable[[Series], float]  # the mix with the least of it is the one that is hurt
    also: Callable[[Series], float]  # what must be equal for the comparison to be of one thing
    differ: str


_SHORT_OUTPUTS = _Lengths(
    "short-outputs-and-ttft",
    "Under quantization short outputs hurt TTFT",
    TTFT,
    "short outputs",
    "long outputs",
    lambda one: one.mix.output_tokens,
    lambda one: one.mix.input_tokens,
    "inputs",
)
_LONG_INPUTS = _Lengths(
    "long-inputs-and-tpot",
    "Under quantization long inputs hurt TPOT",
    TPOT,
    "long inputs",
    "short inputs",
    lambda one: -one.mix.input_tokens,
    lambda one: one.mix.output_tokens,
    "outputs",
)


def _lengths(about: _Lengths, loads: MeasuredLoads) -> Finding:
    metric = about.metric
    groups: dict[tuple[str, str], list[tuple[Series, tuple[tuple[float, Contrast], ...]]]] = {}
    for one, base in _against_16_bits(loads):
        ratios = _ratios(_kept(one, metric), _kept(base, metric), _RATE)
        if ratios and math.isfinite(about.order(one)):
            groups.setdefault((str(one.system), str(one.quantization)), []).append((one, ratios))
    drafts, mixed = [], False
    for several in groups.values():
        several.sort(key=lambda pair: about.order(pair[0]))
        (hurt, hurt_ratios), (other, other_ratios) = several[0], several[-1]
        if about.order(hurt) == about.order(other):
            continue
        mixed |= about.also(hurt) != about.also(other)
        first, second = (Contrast.mean([c for _, c in ratios]) for ratios in (hurt_ratios, other_ratios))
        parts = (
            _Draft(f"with {about.hurt}", hurt.mix.name, first, above=True),
            _Draft(f"with {about.hurt}, over {about.other}", other.mix.name, first - second, above=True),
        )
        curves = {hurt.mix.name: hurt_ratios, other.mix.name: other_ratios}
        drafts.append(_DraftSubject(hurt, "", metric, parts, curves))
    confounded = f"The mixes differ in their {about.differ} too: this cannot tell {about.hurt} from those."
    return _finished(
        about.key,
        about.claim,
        _STUDY,
        "offered load (req/s)",
        drafts,
        _why_no_pairs(loads)
        or _without(loads, metric, f"no run has {metric}")
        or "it has one mix, or mixes of like lengths, at loads that every format kept up with",
        _kept_spreads(loads),
        (_KEPT_UP, confounded) if mixed else (_KEPT_UP,),
    )


_KEPT_UP = "Rates at which either fell behind are left out: latencies of a growing queue are those of the run's length."


def _against_16_bits(loads: MeasuredLoads) -> Iterator[tuple[Series, Series]]:
    """Yield every quantized series with its 16 bits."""
    for one in loads.series:
        base = None if one.quantization.is_16_bit else loads.baseline(one)
        if base is not None:
            yield one, base


def _kept(one: Series, metric: str) -> tuple[LoadPoint, ...]:
    return tuple(point for point in one.having(metric) if point.kept_up)


def _all_points(loads: MeasuredLoads) -> list[LoadPoint]:
    return [point for one in loads.series for point in one.points]


def _kept_spreads(loads: MeasuredLoads) -> dict[str, Spread]:
    kept = [point for point in _all_points(loads) if point.kept_up]
    return {metric: Spread.of(kept, metric) for metric in (TTFT, TPOT)}


def _ratios(
    quantized: Sequence[LoadPoint], base: Sequence[LoadPoint], axis: Callable[[LoadPoint], float]
) -> tuple[tuple[float, Contrast], ...]:
    """Return quantized over base at places of the axis where both are known, rising; empty where there is none."""
    sides = [sorted((p for p in points if math.isfinite(axis(p))), key=axis) for points in (quantized, base)]
    if not all(sides):
        return ()
    mine, theirs = ([axis(point) for point in points] for points in sides)
    low, high = max(mine[0], theirs[0]), min(mine[-1], theirs[-1])
    if low > high:
        return ()
    places = sorted({low, high, *(x for x in mine if low <= x <= high)})
    return tuple((x, Contrast.at(sides[0], mine, x) - Contrast.at(sides[1], theirs, x)) for x in places)


def _halves(ratios: Sequence[tuple[float, Contrast]]) -> list[tuple[Contrast, str]]:
    """Return the means of the lower and of the upper half, and their ends; the one in the middle is in neither."""
    half = len(ratios) // 2
    return [(Contrast.mean([form for _, form in some]), _between(some)) for some in (ratios[:half], ratios[-half:])]


def _between(ratios: Sequence[tuple[float, Contrast]]) -> str:
    """Name the first and the last rate."""
    first, last = (f"{ratios[end][0]:.3g}" for end in (0, -1))
    return f"{first} req/s" if first == last else f"{first} to {last} req/s"


def _why_no_pairs(loads: MeasuredLoads) -> str:
    """Say why nothing can be compared with 16 bits; empty where something can."""
    if not loads.series:
        return "it has no run under an open loop that went well"
    if next(_against_16_bits(loads), None) is None:
        return "no quantization was measured beside 16 bits of the same system under the same mix"
    return ""


def _without(loads: MeasuredLoads, metric: str, why: str) -> str:
    """Return `why` where no point has a metric, else nothing."""
    return "" if any(one.having(metric) for one in loads.series) else why
