"""From raw timestamps to what a run shows: latency percentiles with intervals, attainment, goodput, tokens.

Everything is taken over a :class:`Window` in which the load is steady. Latencies are those of the requests that were
due in the window and succeeded; attainment and goodput count the others as misses. Tokens and completions are those
that arrived in the window, whenever they were asked for, as the energy of that window is theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qplan.core.slo import Slo
from qplan.measure.load.requests import NOT_SAID, Floats, Mask, Outcome, Requests
from qplan.measure.load.validity import bottleneck

PERCENTILES = (50, 90, 95, 99)
_WITH_INTERVAL = ("ttft", "tpot")
_RESAMPLES = 1000
_LARGEST_SHARE = 0.3
_BLOCK_CELLS = 4_000_000


@dataclass(frozen=True, slots=True)
class Window:
    """Part of a run, in seconds since its start."""

    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.end_s - self.start_s

    def holds(self, times_s: Floats) -> Mask:
        """Say which of `times_s`, shape ``(n,)``, lie in the window."""
        return (times_s >= self.start_s) & (times_s < self.end_s)


def steady_window(requests: Requests, warm_up_s: float | None = None) -> Window:
    """Return the part of a run in which the load was steady.

    It starts after `warm_up_s`, and ends with the last request that was due (afterwards the server only drains). Unless
    it is given, the warm-up is the 90th percentile of the time that a request took: that long the number of requests in
    the server still rises, since by Little's law it is the rate times that time. It is at most 30 % of the run.
    """
    if not len(requests):
        return Window(0.0, 0.0)
    first_s, last_s = float(requests.scheduled_s[0]), float(requests.scheduled_s[-1])
    if warm_up_s is None:
        took_s = (requests.end_s - requests.sent_s)[requests.outcome != Outcome.CANCELLED]
        warm_up_s = float(np.percentile(took_s, 90)) if len(took_s) else 0.0
        warm_up_s = min(warm_up_s, _LARGEST_SHARE * (last_s - first_s))
    # The last request itself is in: half-open windows would leave out the one that ends them. Where few requests were
    # due, all of them may belong to the warm-up: the window is then empty.
    start_s = first_s + warm_up_s
    return Window(start_s, max(start_s, float(np.nextafter(last_s, np.inf))))


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens that a server worked off in a window: of prompts (by their first token), and generated."""

    input: float
    output: float


def tokens_within(requests: Requests, window: Window) -> Tokens | None:
    """Count the tokens that arrived in `window`; ``None`` where a server did not say how many there were.

    Generated tokens are told per request: they are shared out evenly over its chunks. A failed request counts with one
    token a chunk.
    """
    counts = np.diff(requests.offsets)
    told = requests.output_tokens != NOT_SAID
    if np.any(requests.ok & ~told):
        return None
    per_chunk = np.where(told & (counts > 0), requests.output_tokens / np.maximum(counts, 1), 1.0)
    generated = np.repeat(per_chunk, counts)[window.holds(requests.chunk_s)].sum()
    begun = window.holds(requests.first_token_s) & (requests.input_tokens != NOT_SAID)
    return Tokens(float(requests.input_tokens[begun].sum()), float(generated))


def values(requests: Requests, metric: str) -> Floats:
    """Return each request's `metric` (``ttft``, ``tpot``, ``itl`` or ``e2e``) in seconds, shape ``(n,)``.

    The ITL of a request is its longest gap.
    """
    found: Floats = getattr(requests, f"{metric}_s")
    return found


def meets(requests: Requests, slos: Sequence[Slo]) -> Mask:
    """Say which requests met every SLO, shape ``(n,)``.

    A failure meets none. A request of one token has no TPOT and one of a single chunk no ITL: they meet those. Where
    the server did not say how many tokens there were, TPOT is unknown and counts as missed.
    """
    met = requests.ok.copy()
    single = {
        "tpot": (requests.output_tokens == 1) | (requests.output_tokens == 0),
        "itl": np.diff(requests.offsets) < 2,
    }
    for slo in slos:
        met &= (values(requests, slo.metric) <= slo.threshold_s) | single.get(slo.metric, False)
    return met


def attainment(requests: Requests, slos: Sequence[Slo]) -> float | None:
    """Return the share of `requests` that met every SLO; ``None`` where none was judged.

    Requests that we cancelled are left out, except those that had already waited too long for their first token.
    """
    met = meets(requests, slos)
    judged = requests.outcome != Outcome.CANCELLED
    for slo in slos:
        if slo.metric == "ttft":
            waited_s = np.where(np.isnan(requests.ttft_s), requests.end_s - requests.sent_s, requests.ttft_s)
            judged |= waited_s > slo.threshold_s
    return float(met[judged].mean()) if judged.any() else None


def bootstrap(sample: Floats, percentile: float | None = None, *, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the mean, or of `percentile`, of `sample`, shape ``(n,)``, in the order of arrival.

    Circular block bootstrap (Politis and Romano 1992) with blocks of ``n ** (1/3)``: requests that queue behind each
    other are alike, and resampling them one by one would promise too narrow an interval.
    """
    count = len(sample)
    block = max(1, round(count ** (1 / 3)))
    starts = -(-count // block)
    random = np.random.default_rng(seed)
    estimates = []
    for first in range(0, _RESAMPLES, rows := max(1, _BLOCK_CELLS // count)):
        begin = random.integers(0, count, (min(rows, _RESAMPLES - first), starts, 1))
        drawn = sample[(begin + np.arange(block)).reshape(len(begin), -1)[:, :count] % count]
        estimates.append(drawn.mean(axis=1) if percentile is None else np.percentile(drawn, percentile, axis=1))
    low, high = np.percentile(np.concatenate(estimates), [2.5, 97.5])
    return float(low), float(high)


def observation_columns(
    requests: Requests, *, window: Window | None = None, slos: Sequence[Slo] = (), seed: int = 0
) -> dict[str, float | int | str | None]:
    """Return the columns of ``schema.csv`` that a serving run fills, apart from those that identify it.

    Parameters
    ----------
    requests
        The whole run.
    window
        Where the load was steady; :func:`steady_window` unless given.
    slos
        What `slo_attainment` and `goodput_qps` are held to; without any, both are ``None``.
    seed
        Of the bootstrap.
    """
    window = window or steady_window(requests)
    due = requests.take(window.holds(requests.scheduled_s))
    duration_s = window.duration_s
    columns: dict[str, float | int | str | None] = {
        "requests": len(due),
        "failed_requests": int(due.failed.sum()),
        "duration_s": duration_s,
    }
    columns |= _status(requests, due)
    for metric, sample in (
        ("ttft", due.ttft_s[due.ok]),
        ("tpot", due.tpot_s),
        ("itl", due.gaps_s),
        ("e2e", due.e2e_s),
        ("ttft_scheduled", due.ttft_scheduled_s[due.ok]),
    ):
        columns |= _summary(metric, sample[np.isfinite(sample)], seed)
    columns["schedule_lag_p99_s"] = float(np.percentile(due.lag_s, 99)) if len(due) else None
    tokens = tokens_within(requests, window)
    rated = duration_s > 0
    ended = np.where(requests.ok, requests.end_s, np.nan)
    columns["achieved_qps"] = float(window.holds(ended).sum() / duration_s) if rated else None
    columns["output_tokens_per_s"] = tokens.output / duration_s if rated and tokens is not None else None
    columns["slo_attainment"] = attainment(due, slos) if slos else None
    columns["goodput_qps"] = float(meets(due, slos).sum() / duration_s) if slos and rated else None
    return columns


def _summary(metric: str, sample: Floats, seed: int) -> dict[str, float | None]:
    names = [f"{metric}_mean_s", *(f"{metric}_p{percentile}_s" for percentile in PERCENTILES)]
    if not len(sample):
        found: dict[str, float | None] = dict.fromkeys(names)
    else:
        found = dict(zip(names, [float(sample.mean()), *np.percentile(sample, PERCENTILES).tolist()], strict=True))
    if metric in _WITH_INTERVAL:
        for name, percentile in (("mean", None), ("p90", 90)):
            ends = bootstrap(sample, percentile, seed=seed) if len(sample) > 1 else (None, None)
            found |= {f"{metric}_{name}_low_s": ends[0], f"{metric}_{name}_high_s": ends[1]}
    return found


def _status(requests: Requests, due: Requests) -> dict[str, str | None]:
    invalid = bottleneck(requests)
    if invalid:
        return {"status": "invalid", "reason": invalid}
    if not len(due):
        return {"status": "failed", "reason": "no request was due after the warm-up; expected a longer run"}
    if not due.ok.any():
        reasons = Counter(reason for reason, failed in zip(due.reason, due.failed, strict=True) if failed)
        most = reasons.most_common(1)
        return {"status": "failed", "reason": f"no request succeeded: {most[0][0]}" if most else "no request ended"}
    return {"status": "ok", "reason": None}
