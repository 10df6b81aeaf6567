"""Error of predicted step times on points that no fit has seen, beside plain baselines.

Run by name: ``pytest -s tests/benchmarks/test_step_surrogate.py``. The data is the pack ``trtllm-composed``: composed
from kernel tables, whose own error against real engines its card states. What is shown is how well the surrogate
fills that pack, not how well it predicts an engine.

The fits never see the held-out points. Choices were less strict: the penalty, the knots of prefill attention, the level
of other tensor parallelism and how the residual fades were chosen on the A100, which is not among the figures; but the
other knots, and that there is a residual at all, were settled while looking at held-out points of every GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.quantization import Quantization
from qplan.core.workload import Workload
from qplan.models import validation
from qplan.models.closedloop import closed_loop
from qplan.models.profiled import COLUMNS
from qplan.models.sharing import SharingModel
from qplan.models.steps.fitting import fit_steps
from qplan.models.steps.loads import LoadPoints, fit_loads
from qplan.models.steps.points import StepPoints
from qplan.models.steps.surrogate import StepSurrogate
from qplan.models.steptimes import Bools, Floats
from qplan.profiles.packs import read_pack

pytestmark = pytest.mark.model_figures

GPUS = ("H100-SXM5-80GB", "H200-SXM", "L40S")
KINDS: dict[str, Callable[[StepPoints], Bools]] = {
    "batches in the middle": lambda p: _decode(p) & np.isin(p.batch, (4, 16, 64, 160)),
    "largest batches": lambda p: _decode(p) & (p.batch >= 256),
    "contexts in the middle": lambda p: _decode(p) & np.isin(_context(p), (128, 1024)),
    "longest contexts": lambda p: _decode(p) & (_context(p) >= 4096),
    "prompts in the middle": lambda p: ~_decode(p) & np.isin(_prompt(p), (48, 128, 512)),
    "longest prompts": lambda p: ~_decode(p) & (_prompt(p) >= 2048),
}
AXES: dict[str, Callable[[Deployment], str]] = {
    "tensor parallelism": lambda d: str(d.tp),
    "quantization": lambda d: str(d.quantization),
    "model": lambda d: str(d.model),
}


def _decode(points: StepPoints) -> Bools:
    return points.batch > 0


def _context(points: StepPoints) -> Floats:
    return points.kv_tokens / np.maximum(points.batch, 1)


def _prompt(points: StepPoints) -> Floats:
    return points.prefill_tokens / points.prompts


def pack_points(gpus: tuple[str, ...], keep: Callable[[Deployment], bool] = lambda _: True) -> StepPoints:
    points = StepPoints.of_table(read_pack("trtllm-composed", columns=COLUMNS).table, "trtllm-composed")
    chosen = np.array([str(d.gpu) in gpus and keep(d) for d in points.deployments])
    return points.take(chosen[points.index])


def predict(surrogate: StepSurrogate, points: StepPoints) -> Floats:
    predicted = np.zeros(len(points))
    for d in np.unique(points.index):
        mine = np.flatnonzero(points.index == d)
        work = (x[mine] for x in (points.prefill_tokens, points.batch, points.kv_tokens, points.prompts))
        predicted[mine] = surrogate.iteration_s(points.deployments[d], *work)
    return predicted


def line(x: Floats, y: Floats, at: Floats) -> Floats:
    """Interpolate linearly, the end segments prolonged."""
    if len(x) == 1:
        return np.full(len(at), y[0])
    left = np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 2)
    return y[left] + (y[left + 1] - y[left]) * (at - x[left]) / (x[left + 1] - x[left])


def interpolated(train: StepPoints, test: StepPoints, log: bool) -> Floats:
    """Interpolate within each deployment: prefill over prompt length by count; decode over batch, then context."""
    to, back = (np.log, np.exp) if log else (np.asarray, np.asarray)
    result = np.full(len(test), np.nan)
    for d in np.unique(test.index):
        own, asked = train.take(train.index == d), np.flatnonzero(test.index == d)
        decode = _decode(test)[asked]
        for count in np.unique(test.prompts[asked[~decode]]):
            known = np.flatnonzero(~_decode(own) & (own.prompts == count))
            known = known[np.argsort(_prompt(own)[known])]
            some = asked[~decode & (test.prompts[asked] == count)]
            at = to(_prompt(test)[some])
            result[some] = back(line(to(_prompt(own)[known]), to(own.time_s[known]), at))
        for context in np.unique(_context(test)[asked[decode]]):
            some = asked[decode & (_context(test)[asked] == context)]
            batches, times = [], []
            for batch in np.unique(own.batch[_decode(own)]):
                known = np.flatnonzero(own.batch == batch)
                known = known[np.argsort(_context(own)[known])]
                if len(known) > 1:
                    x, y = to(_context(own)[known]), to(own.time_s[known])
                    batches.append(batch)
                    times.append(line(x, y, to(np.array([context])))[0])
            result[some] = back(line(to(np.array(batches)), np.array(times), to(test.batch[some])))
    return result


def features(points: StepPoints) -> Floats:
    """Return what a plain regression sees: the iteration, the model's shape, the format, the GPU."""
    rows = [
        (
            np.log(d.model.parameters),
            np.log(d.model.layers),
            np.log(d.kv_bytes_per_token),
            d.quantization.bits_per_weight,
            d.quantization.activations.bits,
            d.quantization.activations.kind == "int",
            d.tp,
            d.gpu.bandwidth_tb_s,
            d.gpu.tflops_16,
        )
        for d in points.deployments
    ]
    iteration = np.log1p(np.stack([points.prefill_tokens, points.batch, points.kv_tokens, points.prompts], axis=1))
    return np.column_stack([iteration, np.array(rows, dtype=float)[points.index]])


def boosted(train: StepPoints) -> Callable[[StepPoints], Floats]:
    """Fit scikit-learn's gradient boosting to log times, without constraints, on at most 20,000 points."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    some = np.random.default_rng(0).permutation(len(train))[:20_000]
    model = HistGradientBoostingRegressor(learning_rate=0.2, random_state=0)
    model.fit(features(train)[some], np.log(train.time_s[some]))
    return lambda points: np.asarray(np.exp(model.predict(features(points))))


def over_axis(train: StepPoints, test: StepPoints, axis: str) -> Floats:
    """Interpolate times log-log over the axis held out, point by point of the deployments alike but for it.

    The axis is the number of GPUs or the model's parameters; of quantizations, the one nearest in bytes is taken.
    """
    values: dict[str, Callable[[Deployment], float]] = {
        "tensor parallelism": lambda d: d.tp,
        "quantization": lambda d: d.weight_bytes + d.kv_bytes_per_token,
        "model": lambda d: d.model.parameters,
    }
    value = values[axis]
    rest = [name for name in ("tensor parallelism", "quantization", "model") if name != axis]

    def cells(points: StepPoints) -> list[tuple[object, ...]]:
        alike = [(str(d.gpu), *(AXES[name](d) for name in rest)) for d in points.deployments]
        where = zip(points.prefill_tokens, points.prompts, points.batch, points.kv_tokens, strict=True)
        return [(*alike[d], *map(float, at)) for d, at in zip(points.index, where, strict=True)]

    known: dict[tuple[object, ...], dict[float, float]] = {}
    for cell, d, seconds in zip(cells(train), train.index, train.time_s, strict=True):
        known.setdefault(cell, {})[float(value(train.deployments[d]))] = float(seconds)
    result = np.full(len(test), np.nan)
    for n, (cell, d) in enumerate(zip(cells(test), test.index, strict=True)):
        if cell in known:
            at = float(value(test.deployments[d]))
            x = np.array(
                sorted(known[cell]) if axis != "quantization" else [min(known[cell], key=lambda v: abs(v - at))]
            )
            y = np.log([known[cell][v] for v in x])
            result[n] = np.exp(line(np.log(x), y, np.log([at]))[0])
    return result


def figures(predicted: Floats, measured: Floats) -> str:
    """Return median and 90th percentile of the absolute error, where there is a prediction."""
    error = 100 * np.abs(predicted / measured - 1)
    return f"{np.nanmedian(error):6.2f} /{np.nanquantile(error, 0.9):6.1f}"


def median(predicted: Floats, measured: Floats) -> float:
    return float(np.nanmedian(np.abs(predicted / measured - 1)))


def violations(predict_at: Callable[[StepPoints], Floats], points: StepPoints) -> float:
    """Return the share of iterations that get faster, by more than rounding, when they grow by half.

    By prompt tokens, by sequences of the same context, or by contexts.
    """
    some = points.take(np.isin(np.arange(len(points)), np.random.default_rng(1).permutation(len(points))[:10_000]))
    before = predict_at(some)
    falls = np.zeros(len(some), dtype=bool)
    longer = 1.5 * some.kv_tokens
    batch = np.ceil(1.5 * some.batch)
    more = some.kv_tokens * np.divide(batch, some.batch, out=np.ones(len(some)), where=some.batch > 0)
    for grown in (
        replace(some, prefill_tokens=1.5 * some.prefill_tokens),
        replace(some, batch=batch, kv_tokens=more),
        replace(some, kv_tokens=longer),
    ):
        falls |= predict_at(grown) < before * (1 - 1e-9)
    return float(falls.mean())


def show(capsys: pytest.CaptureFixture[str], *lines: str) -> None:
    with capsys.disabled():
        print("\n" + "\n".join(lines))  # noqa: T201


def test_points_held_out_within_deployments(capsys: pytest.CaptureFixture[str]) -> None:
    points = pack_points(GPUS, lambda d: str(d.model) in ("llama-2-13b", "llama-3.1-70b"))
    lines, won = [], {}
    for kind, choose in KINDS.items():
        held = choose(points)
        train, test = points.take(~held), points.take(held)
        surrogate, boosting = fit_steps(train), boosted(train)
        found = [
            predict(surrogate, test),
            interpolated(train, test, log=False),
            interpolated(train, test, log=True),
            boosting(test),
        ]
        falls = violations(partial(predict, surrogate), test), violations(boosting, test)
        cells = " ".join(f"{figures(one, test.time_s):>16}" for one in found)
        lines.append(f"{kind:24}{len(test):7}{cells}   {falls[0]:6.1%} {falls[1]:8.1%}")
        won[kind] = median(found[0], test.time_s) < min(median(one, test.time_s) for one in found[1:])
        assert falls[0] == 0
    title = f"Within deployments of {', '.join(GPUS)}: median / p90 of the absolute error, %"
    names = f"{'held out':24}{'points':>7}{'surrogate':>16}{'linear':>17}{'log-log':>17}{'boosting':>17}"
    show(capsys, title, f"{names}   times that fall: ours, boosting", *lines)
    # Along contexts a straight line has the smaller median: decode time is nearly linear in them, and so may be the
    # interpolation of the kernel tables that the pack was composed with. A profile's own grid is read, not predicted.
    assert [kind for kind, best in won.items() if not best] == ["contexts in the middle", "longest contexts"]


def test_whole_deployments_held_out(capsys: pytest.CaptureFixture[str]) -> None:
    points = pack_points(GPUS)
    points = points.take(np.random.default_rng(2).random(len(points)) < 1 / 8)
    lines = []
    for axis, of in AXES.items():
        names = np.array([of(d) for d in points.deployments])[points.index]
        found = np.full((3, len(points)), np.nan)
        falls = np.zeros(2)
        for name in np.unique(names):
            held = names == name
            train, test = points.take(~held), points.take(held)
            surrogate, boosting = fit_steps(train), boosted(train)
            found[:, held] = predict(surrogate, test), over_axis(train, test, axis), boosting(test)
            falls += held.mean() * np.array([violations(partial(predict, surrogate), test), violations(boosting, test)])
        cells = " ".join(f"{figures(one, points.time_s):>16}" for one in found)
        answered = np.isfinite(found[1]).mean()
        lines.append(f"{axis:24}{len(points):7}{cells}   {answered:6.0%}    {falls[0]:6.1%} {falls[1]:8.1%}")
        assert falls[0] == 0
        assert median(found[0], points.time_s) < min(median(one, points.time_s) for one in found[1:])
    title = f"Deployments held out, one value at a time, of {', '.join(GPUS)}: median / p90 of the absolute error, %"
    header = f"{'held out':24}{'points':>7}{'surrogate':>16}{'log-log':>17}{'boosting':>17}"
    show(capsys, title, f"{header}   log-log answers; times that fall: ours, boosting", *lines)


def test_loads_of_real_engines(capsys: pytest.CaptureFixture[str]) -> None:
    """Step times inferred from a few closed-loop runs of each deployment; the other runs judge them."""
    try:
        runs = validation.read_runs(validation.fetch())
    except InputError as error:
        pytest.skip(str(error))
    keys = sorted({(r.model, r.quantization, r.gpu, r.tp, r.engine) for r in runs})
    deployments = tuple(
        Deployment(Model.named(m), Quantization.parse(q), Gpu.named(g), tp, engine, "measured")
        for m, q, g, tp, engine in keys
    )
    index = np.array([keys.index((r.model, r.quantization, r.gpu, r.tp, r.engine)) for r in runs])
    order = np.random.default_rng(0).permutation(len(runs))
    rank = np.zeros(len(runs), dtype=int)
    for d in range(len(keys)):
        mine = order[index[order] == d]
        rank[mine] = np.arange(len(mine))
    test = [n for n in range(len(runs)) if rank[n] >= 5]  # the same for every number of runs learned from
    prior = fit_steps(pack_points(("H100-SXM5-80GB", "H200-SXM"), lambda d: str(d.model).startswith("llama-3.1")))
    lines = []
    for few in (0, 1, 3, 5):
        train = [n for n in range(len(runs)) if rank[n] < few]
        nan = np.full(len(train), np.nan)
        columns = (np.array([getattr(runs[n], name) for n in train], dtype=float) for name in
                   ("input_tokens", "output_tokens", "concurrency", "ttft_s", "tpot_s"))  # fmt: skip
        inputs, outputs, concurrency, ttft, tpot = columns
        points = LoadPoints(deployments, index[train], inputs, outputs, nan, concurrency, ttft, tpot)
        surrogate = fit_loads(points, prior)
        steps = surrogate.step_times(deployments)
        found = np.array(
            [
                np.concatenate(
                    closed_loop(
                        steps.take(index[[n]]), runs[n].input_tokens, runs[n].output_tokens, runs[n].concurrency
                    )
                )
                for n in test
            ]
        )
        measured = np.array([(runs[n].ttft_s, runs[n].tpot_s) for n in test])
        lines.append(f"{few:4}{figures(found[:, 1], measured[:, 1]):>20}{figures(found[:, 0], measured[:, 0]):>20}")
    title = f"{len(test)} closed-loop runs of {len(keys)} deployments ({validation.PACKAGE}): error, %"
    show(capsys, title, "runs learned from, of each; TPOT; TTFT", *lines)


def test_speed(capsys: pytest.CaptureFixture[str]) -> None:
    points = pack_points(GPUS)
    few = points.take(np.isin(np.arange(len(points)), np.random.default_rng(3).permutation(len(points))[:10_000]))
    started = time.process_time()
    surrogate = fit_steps(few)
    fit_s = time.process_time() - started
    rng = np.random.default_rng(4)
    count = 1_000_000
    prefill, batch = rng.integers(0, 4096, count).astype(float), rng.integers(0, 512, count).astype(float)
    kv = batch * rng.integers(16, 4096, count).astype(float)
    one = points.deployments[0]
    started = time.process_time()
    surrogate.iteration_s(one, prefill, batch, kv)
    iteration_s = time.process_time() - started
    deployments = [d for d in points.deployments if d.memory().fits]
    model = SharingModel.of(deployments, surrogate.step_times(deployments))
    workload = Workload.of("one", "chat", [(512, 128, 1.0)], "made up")
    rates = model.saturation_qps(workload, ())
    started = time.process_time()
    repeats = 5
    for share in np.linspace(0.1, 0.9, repeats):
        loaded = model.at(workload, rates * share)
        loaded.mean("ttft"), loaded.mean("tpot")
    pair_s = (time.process_time() - started) / (repeats * len(deployments))
    show(
        capsys,
        "CPU time of one core",
        f"fit of {len(few):,} rows: {fit_s:.1f} s",
        f"iteration times of one deployment: {count / iteration_s / 1e6:.1f} million a second",
        f"analytic mean TTFT and TPOT: {1 / pair_s:,.0f} pairs of deployment and rate a second",
    )
    assert fit_s < 30
