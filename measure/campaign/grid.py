"""The grid of a plan: the valid combinations in the order they are measured, and the others with the reason.

A *block* is one start of an engine and the points that are measured while it runs. With ``order: interleaved`` repeats
are outermost, neighbours differ in quantization, and every other repeat runs backwards, so that a slow drift of the
machine falls on all quantizations alike; each repeat starts the engines anew. With ``order: grouped`` a block holds
all repeats of its deployment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.quantization import Quantization
from qplan.core.workload import Workload
from qplan.measure.campaign.plan import CampaignPlan, PlannedEngine, PlannedModel, Traffic
from qplan.measure.campaign.points import LOAD, QUALITY, SATURATION, Point, Target
from qplan.measure.engines import open_engine
from qplan.measure.engines.contract import Engine


@dataclass(frozen=True, slots=True)
class Refused:
    """A combination that is not measured, and why."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Block:
    """One start of an engine, and what is measured while it runs.

    Attributes
    ----------
    after
        Numbers of the blocks that must be over before this one begins: its rates are shares of what they find, its
        quality is compared with theirs.
    """

    target: Target
    points: tuple[Point, ...]
    after: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Grid:
    """Blocks in order, and the combinations that are not measured."""

    blocks: tuple[Block, ...]
    refused: tuple[Refused, ...]

    @property
    def points(self) -> tuple[Point, ...]:
        """Every point, in order."""
        return tuple(point for block in self.blocks for point in block.points)


def make_grid(plan: CampaignPlan) -> Grid:
    """Multiply a plan out."""
    engines = {engine.name: open_engine(engine.name) for engine in plan.engines}
    targets: list[Target] = []
    traffic: dict[str, list[Traffic]] = {}
    refused: list[Refused] = []
    for model in plan.models:
        traffic[model.name] = []
        for mix in plan.traffic:
            reason = _too_long(mix, model)
            if reason is None:
                traffic[model.name].append(mix)
            else:
                refused.append(Refused(f"{model.name}: {mix.name}", reason))
        for target in _targets(plan, model):
            reason = refusal(target, plan.gpu, plan.devices, engines[target.engine])
            if reason is None:
                targets.append(target)
            else:
                refused.append(Refused(str(target), reason))
    blocks = list(_blocks(plan, targets, traffic))
    return Grid(tuple(_with_dependencies(blocks)), tuple(refused))


def baseline_of(target: Target, targets: Sequence[Target]) -> Target | None:
    """Return the unquantized deployment that the quality of `target` is compared with, or ``None``."""
    for other in targets:
        alike = (other.model, other.engine, other.settings) == (target.model, target.engine, target.settings)
        if alike and other.is_unquantized:
            return other
    return None


def _targets(plan: CampaignPlan, model: PlannedModel) -> Iterator[Target]:
    """Every deployment of a model, quantization varying fastest and the unquantized one first."""
    quantizations = sorted(plan.quantizations, key=lambda quantization: not quantization.is_16_bit)
    for engine in plan.engines:
        for tp in plan.tp:
            for quantization in quantizations:
                yield _target(plan, model, engine, quantization, tp)


def _target(
    plan: CampaignPlan, model: PlannedModel, engine: PlannedEngine, quantization: Quantization, tp: int
) -> Target:
    return Target(
        model=model.name,
        weights=model.checkpoints.get(str(quantization), model.weights),
        quantization=str(quantization),
        gpu=plan.gpu.name,
        tp=tp,
        engine=engine.name,
        settings=dict(engine.settings),
        context_tokens=model.context_tokens,
        max_sequences=model.max_sequences,
    )


def refusal(target: Target, gpu: Gpu, devices: Sequence[int], engine: Engine) -> str | None:
    """Say why a deployment cannot be measured on these GPUs, or return ``None``."""
    if gpu.is_cpu and target.tp > 1:
        return "tensor parallelism needs GPUs"
    if devices and target.tp > len(devices):
        return f"needs {target.tp} GPUs; the plan has {len(devices)}"
    return gpu_refusal(gpu, target) or engine.refusal(target.serving(tuple(devices[: target.tp])))


def gpu_refusal(gpu: Gpu, target: Target) -> str | None:
    """Say why the GPU lacks the kernels or the memory; a CPU's engines know better themselves."""
    if gpu.is_cpu:
        return None
    quantization = Quantization.parse(target.quantization)
    try:
        model = Model.named(target.model)
    except InputError:  # of a model that is not in the catalogue nothing is known
        return quantization.refusal(gpu)
    try:
        return Deployment(model, quantization, gpu, target.tp, target.engine).refusal()
    except InputError as error:
        return str(error)


def _too_long(mix: Traffic, model: PlannedModel) -> str | None:
    """Say that a mix has requests longer than the context, where its lengths are known beforehand."""
    workload = Workload.named(mix.source) or (Workload.fixed(mix.source) if "=" in mix.source else None)
    if workload is None or workload.longest <= model.context_tokens:
        return None
    return f"its longest request has {workload.longest:g} tokens; the context is {model.context_tokens}"


def _blocks(plan: CampaignPlan, targets: Sequence[Target], traffic: dict[str, list[Traffic]]) -> Iterator[Block]:
    rounds = [[r] for r in range(plan.repeats)] if plan.order == "interleaved" else [list(range(plan.repeats))]
    for number, repeats in enumerate(rounds):
        for target in targets if number % 2 == 0 else reversed(targets):
            points = tuple(p for r in repeats for p in _points(plan, target, traffic[target.model], r))
            if points:
                yield Block(target, points)


def _points(plan: CampaignPlan, target: Target, traffic: Sequence[Traffic], repeat: int) -> Iterator[Point]:
    """Points of one deployment and repeat: per mix the search first, since shares wait for it; then quality."""
    loads = sorted(plan.loads, key=lambda load: not load.is_search)
    for mix in traffic:
        search = Point(
            target,
            SATURATION,
            repeat,
            workload=mix.name,
            source=mix.source,
            arrivals=plan.arrivals,
            slo=",".join(map(str, plan.slos)),
            attainment=plan.attainment,
            warm_up_s=plan.warm_up_s,
            seed=plan.seed + repeat,
        )
        run = replace(search, kind=LOAD, duration_s=plan.duration_s, requests=plan.requests)
        if mix.speedup is not None:
            yield replace(run, arrivals=f"trace x{mix.speedup:g}", speedup=mix.speedup)
            continue
        for load in loads:
            yield search if load.is_search else replace(run, qps=load.qps, share=load.share)
    if repeat == 0 and target.tp == plan.tp[0]:
        api = None if plan.quality_api == "chat" else plan.quality_api
        for task in plan.quality:
            yield Point(target, QUALITY, repeat, task=task, api=api, seed=plan.seed)


def _with_dependencies(blocks: list[Block]) -> Iterator[Block]:
    """Let shares wait for the search of the first repeat, and compared quality for the baseline's."""
    first: dict[str, int] = {}
    for number, block in enumerate(blocks):
        first.setdefault(str(block.target), number)
    targets = [block.target for block in blocks]
    for number, block in enumerate(blocks):
        after = {first[str(block.target)]} if any(point.share is not None for point in block.points) else set()
        baseline = baseline_of(block.target, targets)
        if baseline is not None and any(point.kind == QUALITY for point in block.points):
            after.add(first[str(baseline)])
        yield Block(block.target, block.points, tuple(sorted(after - {number})))
