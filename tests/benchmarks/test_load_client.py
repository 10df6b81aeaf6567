"""What the load client costs and how far its clock is off, against a server of known delays.

Run with ``pytest tests/benchmarks/test_load_client.py -s`` on a machine that does nothing else: client and server share
it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from qplan.measure.endpoint import Endpoint
from qplan.measure.load.arrivals import Arrivals
from qplan.measure.load.prompts import Prompt
from qplan.measure.load.requests import Requests
from qplan.measure.load.run import run_load
from qplan.measure.load.validity import bottleneck
from tests.measure.fake_server import fake_server

TTFT_S, ITL_S, TOKENS = 0.05, 0.01, 20
PROMPTS = [Prompt("one two three", 3, TOKENS)]
TRIES = 5


def offered(url: str, rate_qps: float, count: int, processes: int = 1) -> Requests:
    schedule = Arrivals().schedule(rate_qps, count=count, seed=1)
    requests = run_load(Endpoint(url, "fake"), schedule, PROMPTS, timeout_s=30, processes=processes)
    assert requests.ok.all()
    return requests


def errors(requests: Requests) -> tuple[float, float]:
    """Relative error of the mean TTFT and TPOT."""
    ttft, tpot = requests.ttft_s.mean(), requests.tpot_s.mean()
    return abs(float(ttft) / TTFT_S - 1), abs(float(tpot) / ITL_S - 1)


def test_error_at_20_requests_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server(ttft_s=TTFT_S, itl_s=ITL_S) as url:
        found = [errors(offered(url, 20, 200)) for _ in range(TRIES)]
    ttft, tpot = min(found)  # what disturbs a run only adds to it
    with capsys.disabled():
        print(f"\n20 req/s: TTFT {ttft:.2%} off, TPOT {tpot:.2%} off; all tries {found}")  # noqa: T201
    assert ttft <= 0.02
    assert tpot <= 0.02


def test_400_requests_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server(ttft_s=TTFT_S, itl_s=ITL_S) as url:
        runs = [offered(url, 400, 4000) for _ in range(TRIES)]
    best = min(runs, key=lambda run: errors(run)[0])
    cpu_ms = min(run.cpu_s / len(run) * 1e3 for run in runs)
    with capsys.disabled():
        print(  # noqa: T201
            f"\n400 req/s: TTFT {errors(best)[0]:.1%} off, CPU {cpu_ms:.2f} ms a request, 99 % sent within "
            f"{np.percentile(best.lag_s, 99) * 1e3:.1f} ms; all tries: TTFT "
            f"{[f'{errors(run)[0]:.1%}' for run in runs]}, CPU {[f'{run.cpu_s / len(run) * 1e3:.2f}' for run in runs]}"
        )
    assert bottleneck(best) is None
    assert errors(best)[0] < 0.1
    assert cpu_ms <= 0.6


def test_arrivals_of_four_processes_are_poisson(capsys: pytest.CaptureFixture[str]) -> None:
    rate, bin_s = 50.0, 0.04
    with fake_server() as url:
        schedule = Arrivals().schedule(rate, count=1500, seed=4)
        prompts = [Prompt("one", 1, 1)]
        requests = run_load(Endpoint(url, "fake"), schedule, prompts, timeout_s=30, processes=4)
    sent = np.sort(requests.sent_s)
    counts = np.bincount((sent / bin_s).astype(int))[:-1]
    fano = counts.var() / counts.mean()
    pvalue = stats.kstest(np.diff(sent), "expon", args=(0, 1 / rate)).pvalue
    with capsys.disabled():
        print(f"\n4 processes: Fano factor {fano:.3f}, KS p-value {pvalue:.3f}")  # noqa: T201
    assert fano == pytest.approx(1, abs=0.1)
    assert pvalue > 0.01


def local_tokenizer(folder: Path) -> str:
    """Write a tokenizer of whole words, since aiperf wants one and has none that needs no network; return its path."""
    words = {"[UNK]": 0, "one": 1, "two": 2, "three": 3}
    tokenizer: dict[str, object] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
    }
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", "eos_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)


def test_ratio_to_aiperf(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """CPU time of both clients for the same requests in the same run."""
    aiperf = shutil.which("aiperf")
    if aiperf is None:
        pytest.skip("aiperf is not installed: no executable of that name on PATH")
    import resource

    rate, count = 100, 1000
    with fake_server(ttft_s=TTFT_S, itl_s=ITL_S) as url:
        ours = offered(url, rate, count)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [
            *(aiperf, "profile", "--model", "gpt2", "--url", url, "--endpoint-type", "completions", "--streaming"),
            *("--request-rate", str(rate), "--request-count", str(count), "--isl", "3", "--osl", str(TOKENS)),
            *("--tokenizer", local_tokenizer(tmp_path / "words"), "--artifact-dir", str(tmp_path), "--ui", "none"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stdout[-2000:]
    theirs_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    report = json.loads(next(tmp_path.rglob("*aiperf.json")).read_text())
    with capsys.disabled():
        print(  # noqa: T201
            f"\n{rate} req/s: CPU {ours.cpu_s / count * 1e3:.2f} ms a request, aiperf {theirs_s / count * 1e3:.2f} ms "
            f"with its start, ratio {theirs_s / ours.cpu_s:.1f}; TTFT {ours.ttft_s.mean() * 1e3:.1f} ms and "
            f"{report['time_to_first_token']['avg']:.1f} ms, truth {TTFT_S * 1e3:g} ms"
        )
    assert ours.cpu_s < theirs_s
