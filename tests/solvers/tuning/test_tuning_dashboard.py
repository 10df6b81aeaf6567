"""optuna-dashboard opens a study of ``qplan tune``: its front page and its interface answer."""

from __future__ import annotations

import json
import threading
import urllib.request
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest

from qplan.solvers.tuning.setup import enumerate_table, open_job
from qplan.solvers.tuning.study import storage_at
from qplan.solvers.tuning.tunefile import parse_tuning
from qplan.solvers.tuning.worker import work

PLAN = """\
name: shown
models: [{name: smollm2-135m, context: 512, max_sequences: 8}]
space: {quantization: [F16, Q8_0, Q4_0], gpu: cpu, engine: llamacpp}
objectives: [saturation, perplexity:english]
workload: isl=16,osl=8
slo: [p90:ttft=1s]
budget: 3
"""


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the dashboard's own web framework
def test_the_dashboard_opens_the_study(tmp_path: Path) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    tuning = parse_tuning(PLAN, "t.yaml")
    with storage_at(str(tmp_path / "study.db")) as storage:
        job = open_job(tuning, storage, *enumerate_table(tuning, "llamacpp-cpu"), "llamacpp-cpu")
        work(job, emit=lambda _: None, stopping=lambda: False)
        with make_server("127.0.0.1", 0, dashboard.wsgi(storage), handler_class=Quiet) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                at = f"http://127.0.0.1:{server.server_port}"
                with urllib.request.urlopen(f"{at}/dashboard", timeout=30) as page:
                    assert "<title>Optuna Dashboard" in page.read().decode()
                with urllib.request.urlopen(f"{at}/api/studies", timeout=30) as answer:
                    studies = json.load(answer)["study_summaries"]
                with urllib.request.urlopen(f"{at}/api/studies/{studies[0]['study_id']}?after=0", timeout=30) as answer:
                    study = json.load(answer)
            finally:
                server.shutdown()
                thread.join()
    assert [one["study_name"] for one in studies] == ["shown"]
    assert len(study["trials"]) == 3
    assert study["objective_names"] == ["saturation", "perplexity:english"]
    assert {trial["number"] for trial in study["best_trials"]} == {trial.number for trial in job.study.best_trials}
