"""What a point sends: when, and what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qplan.core.errors import InputError, MeasurementError, nearest
from qplan.core.workload import Workload
from qplan.measure.campaign.block import Stopped
from qplan.measure.load.arrivals import Arrivals
from qplan.measure.load.prompts import SOURCES, Prompt, Vocabulary, dataset_prompts, learn_vocabulary, synthetic_prompts
from qplan.measure.load.traces import read_trace
from qplan.profiles.workloads import read_workload

if TYPE_CHECKING:
    from qplan.measure.campaign.points import Point
    from qplan.measure.campaign.rig import Rig
    from qplan.measure.load.requests import Floats

_TRACES = (".csv", ".jsonl", ".json")
_MOST_REQUESTS = 1_000_000  # of one run; its prompts are all in memory
_MOST_PROMPT_TOKENS = 500_000_000


def schedule_and_prompts(point: Point, rig: Rig, rate_qps: float | None) -> tuple[Floats, list[Prompt]]:
    """Return when to send, shape ``(n,)``, and what, `n` prompts.

    Parameters
    ----------
    rate_qps
        Requests per second; ``None`` replays a trace at the point's speed-up.
    """
    if rate_qps is None:
        assert point.speedup is not None
        trace = read_trace(Path(point.source), "workload")
        if point.duration_s is not None:
            trace = trace.first(point.duration_s * point.speedup)
        schedule_s = trace.schedule(point.speedup)[: point.requests]
        return schedule_s, trace.prompts(vocabulary(rig), seed=point.seed)[: len(schedule_s)]
    arrivals = Arrivals.parse(point.arrivals, "arrivals")
    count = point.requests or rate_qps * (point.duration_s or 0.0)
    if count > _MOST_REQUESTS:
        raise InputError(f"{point}: {count:,.0f} requests; expected at most {_MOST_REQUESTS:,} in one run")
    schedule_s = arrivals.schedule(rate_qps, duration_s=point.duration_s, count=point.requests, seed=point.seed)
    if not len(schedule_s):
        raise InputError(f"{point}: no request arrives within {point.duration_s:g} s; expected a longer run")
    return schedule_s, prompts(point, rig, len(schedule_s))


def prompts(point: Point, rig: Rig, count: int) -> list[Prompt]:
    """Return `count` prompts of the point's workload."""
    workload = synthetic_workload(point.source)
    if workload is not None:
        tokens = count * workload.mean_input_tokens
        if tokens > _MOST_PROMPT_TOKENS:
            raise InputError(
                f"{point}: {count:,} prompts of {workload.name} have {tokens:,.0f} tokens; "
                f"expected at most {_MOST_PROMPT_TOKENS:,} in one run"
            )
        return synthetic_prompts(workload, count, vocabulary(rig), seed=point.seed)
    longest = rig.job.target.context_tokens
    return dataset_prompts(point.source, count, seed=point.seed, longest_tokens=longest, where="workload")


def check_source(source: str, where: str) -> str:
    """Return the name of what prompts are made from, if there is such a thing; `where` names the flag in an error."""
    workload = synthetic_workload(source, where)
    if workload is not None:
        return workload.name
    if source.casefold() not in SOURCES and "/" not in source and not Path(source).exists():
        choices = (*Workload.names(), *SOURCES)
        raise InputError(
            f"{where}: unknown workload '{source}'; expected one of {', '.join(choices)}, isl=TOKENS,osl=TOKENS, "
            f"a trace, or a data set's path or OWNER/NAME{nearest(source, choices)}"
        )
    return source


def synthetic_workload(source: str, where: str = "workload") -> Workload | None:
    """Return the length mix of a named workload, of given lengths, or of a trace; ``None`` for a data set's name."""
    if Workload.named(source) is not None or "=" in source or Path(source).suffix.casefold() == ".csv":
        return read_workload(source, where)
    if Path(source).suffix.casefold() in _TRACES[1:] and Path(source).is_file():
        return _lengths_of(source)
    return None


def mean_lengths(source: str, prompts: Sequence[Prompt]) -> dict[str, float | None]:
    """Return the mean lengths that were asked for: the mix's, or of real texts the replies' alone."""
    workload = synthetic_workload(source)
    if workload is not None:
        return {"input_tokens": workload.mean_input_tokens, "output_tokens": workload.mean_output_tokens}
    asked = sum(prompt.output_tokens for prompt in prompts) / max(len(prompts), 1)
    return {"input_tokens": None, "output_tokens": asked}


def vocabulary(rig: Rig) -> Vocabulary:
    """Return words that the server's tokenizer keeps whole, learned once; common ones where it tells no usage."""
    if rig.vocabulary is None:
        try:
            rig.vocabulary = learn_vocabulary(
                rig.server.endpoint, timeout_s=rig.job.deadlines.request_s, stopping=rig.stopping
            )
        except MeasurementError:
            if rig.stopping():
                raise Stopped from None
            rig.server.check()
            rig.vocabulary = Vocabulary()
    return rig.vocabulary


def _lengths_of(source: str) -> Workload | None:
    """Return the lengths of a Mooncake trace; ``None`` where the file is a data set."""
    try:
        trace = read_trace(Path(source), "workload")
    except InputError:
        return None
    lengths = [
        (float(i), float(o), 1.0)
        for i, o in zip(trace.input_tokens.tolist(), trace.output_tokens.tolist(), strict=True)
    ]
    return Workload.of(Path(source).name, "general", lengths, f"trace {source}")
