"""How fast predictions are, and how long a fit takes; run with ``pytest -s tests/benchmarks/test_predictions.py``.

Seconds are of CPU, on one core. A prediction is that of one deployment at one load: p50 and p90 of TTFT and TPOT, and
watts, all five. The table is made once for a workload, in the time stated; its error is against the model itself, at
loads that the table was not made of.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest

from qplan.core import Workload
from qplan.models.load import open_surrogate
from qplan.models.power.energy import energy
from qplan.models.profiled import COLUMNS, profiled
from qplan.models.serving_table import QUANTITIES, ServingTable
from qplan.models.sharing import SharingModel
from qplan.profiles.packs import read_pack

pytestmark = pytest.mark.model_figures

DEPLOYMENTS = 24  # drawn from the pack
PREDICTIONS, CHECKED = 1_000_000, 4_000
PACK = "trtllm-composed"


@pytest.mark.parametrize("workload", ["chat", "code"])
def test_a_million_predictions_a_second(workload: str) -> None:
    found = profiled(read_pack(PACK, columns=COLUMNS).table, PACK)
    mix = Workload.named(workload)
    assert found is not None
    assert mix is not None
    draw = np.random.default_rng(1)
    chosen = np.sort(draw.choice(len(found.deployments), DEPLOYMENTS, replace=False))
    deployments, steps = [found.deployments[one] for one in chosen], found.steps.take(chosen)
    start = time.process_time()
    table = ServingTable.of(deployments, steps, mix)
    made_s = time.process_time() - start

    index = draw.integers(0, DEPLOYMENTS, PREDICTIONS)
    rate = draw.random(PREDICTIONS) * table.stable_qps[index]
    table.at(index[:1000], rate[:1000])
    start = time.process_time()
    table.at(index, rate)
    table_s = time.process_time() - start

    index = draw.integers(0, DEPLOYMENTS, CHECKED)
    odds = np.exp(draw.uniform(-14, 9, CHECKED))
    rate = odds / (1 + odds) * table.stable_qps[index]
    some, taken = [deployments[one] for one in index], steps.take(index)
    start = time.process_time()
    loaded = SharingModel.of(some, taken).at(mix, rate)
    exact = [loaded.percentile(name[:4], float(name[6:])) for name in QUANTITIES[:-1]]
    exact.append(energy(some, taken, mix, rate, loaded).power_w)
    model_s = time.process_time() - start
    off = np.abs(table.at(index, rate) / np.column_stack(exact) - 1)
    sys.stdout.write(
        f"\n{workload}, {DEPLOYMENTS} deployments of {PACK}: {PREDICTIONS / table_s / 1e6:.2f} million predictions/s "
        f"from the table, {CHECKED / model_s:,.0f}/s by the model\n"
        f"  made in {made_s:.1f} s of {len(table.axis) / DEPLOYMENTS:.0f} loads each: pays from "
        f"{made_s / (model_s / CHECKED) / DEPLOYMENTS:.0f} predictions of each deployment\n  largest error at "
        + f"{CHECKED} loads: "
        + ", ".join(f"{name} {100 * worst:.2f} %" for name, worst in zip(QUANTITIES, off.max(axis=0), strict=True))
        + "\n"
    )
    assert off.max() < 0.005
    assert PREDICTIONS / table_s > 1e6


@pytest.mark.parametrize("name", ["pooled-curves", "monotone-boosting"])
def test_a_fit_of_ten_thousand_rows(name: str) -> None:
    """The Gaussian process takes up to 4,000 rows and says so."""
    draw = np.random.default_rng(0)
    configurations, loads = 625, 2.0 ** np.arange(0, 8.5, 0.5)
    features = draw.standard_normal((configurations, 4))
    configuration = np.repeat(np.arange(configurations), len(loads))
    load = np.tile(loads, configurations)
    X = np.column_stack([load, configuration // 5, configuration, features[configuration]])
    knee = 30 * np.exp(features[configuration, 0])
    y = np.exp(features[configuration, 1]) * (1 + load / knee) * np.exp(0.03 * draw.standard_normal(len(load)))
    held = load == loads[7]
    surrogate = open_surrogate(name, 0, (1, 2))
    start = time.process_time()
    surrogate.fit(X[~held], y[~held])
    fit_s = time.process_time() - start
    error = np.abs(surrogate.predict(X[held]) / y[held] - 1).mean()
    sys.stdout.write(
        f"\n{name}: {(~held).sum():,} rows of {configurations} configurations fitted in {fit_s:.1f} s; "
        f"{100 * error:.1f} % off at the load left out, where runs scatter by 2.4 %\n"
    )
    assert fit_s < 30
