"""What ``qplan fit llamacpp-cpu`` is worth; run with ``pytest -s tests/benchmarks/test_measured_loads.py``.

Every figure is of rows that had no part in choosing, fitting or calibrating what predicts them. The runs are short
(5 to 30 requests), so that repeats of one load differ by tens of per cent, which no surrogate can foresee. Lengths are
left out one of two at a time: what is left knows nothing of lengths, and the figures show it.
"""

import numpy as np
import pytest

from qplan.models.fitting import fit_rows
from qplan.profiles.packs import read_pack
from qplan.report.fits import print_report

pytestmark = pytest.mark.model_figures


def test_llamacpp_cpu() -> None:
    report = fit_rows(read_pack("llamacpp-cpu").table, "llamacpp-cpu", None, lambda *_: None)
    print_report(report, as_json=False)
    covered = {
        what: np.mean([one.coverage[0.9] for one in report.loads if one.what == what])
        for what in ("load, in between", "configuration", "deployment")
    }
    assert covered["load, in between"] > 0.82  # 0.87 to 0.93 was aimed at: TPOT misses it
    assert covered["configuration"] > 0.85
    assert covered["deployment"] > 0.85
    error = {(one.metric, one.what): one.median_error for one in report.loads}
    assert error["ttft_p50_s", "load, in between"] < 0.25
