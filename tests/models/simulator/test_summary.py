from __future__ import annotations

import numpy as np
import pytest

from qplan.core import InputError, Slo
from qplan.models.simulator.state import COMPLETION
from qplan.models.simulator.summary import Sketch, Summary


@pytest.mark.parametrize("percentile", [0, 1, 50, 90, 99.9, 100])
def test_percentiles_are_within_the_stated_error(percentile: float) -> None:
    values = np.random.default_rng(1).lognormal(-3, 2, 5000)
    sketch = Sketch()
    for part in np.array_split(values, 7):
        sketch.add(part)
    exact = float(np.percentile(values, percentile, method="lower"))
    assert sketch.percentile(percentile) == pytest.approx(exact, rel=Sketch.RELATIVE_ERROR * 1.01)
    assert sketch.mean == pytest.approx(values.mean())
    assert sketch.count == 5000


def test_of_nothing_there_is_no_percentile() -> None:
    assert np.isnan(Sketch().percentile(50))
    assert np.isnan(Sketch().mean)


def test_attainment_counts_refused_requests_as_missed() -> None:
    done = np.zeros(4, COMPLETION)
    done["ttft_s"] = [0.1, 0.5, 0.1, np.nan]
    done["tpot_s"] = [0.01, 0.01, np.nan, np.nan]
    done["e2e_s"] = [1.0, 1.0, 0.1, np.nan]
    done["preemptions"] = [0, 2, 0, 0]
    summary = Summary([Slo("ttft", 0.2, 90), Slo("tpot", 0.02, 90)])
    summary.add(done[:2])
    summary.add(done[2:])
    assert (summary.requests, summary.rejected, summary.preemptions) == (4, 1, 2)
    assert summary.met == [2, 3]
    assert summary.met_all == 2
    assert summary.latencies["tpot"].count == 2


def test_gaps_between_tokens_are_not_kept() -> None:
    with pytest.raises(InputError, match="no single gaps"):
        Summary([Slo("itl", 0.1, 90)])
