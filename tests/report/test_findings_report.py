"""Findings as text, JSON, a page and figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qplan.core.errors import InputError
from qplan.measure.findings.claims import findings
from qplan.measure.findings.points import measured_loads
from qplan.profiles.observations import from_rows
from qplan.report.findings import print_findings
from qplan.report.findings_page import write_findings


def rows(*, kv: bool = True) -> Iterator[dict[str, Any]]:
    """16 bits, and 8 with a slower compressed cache, at three rates, each twice."""
    for quantization, slower in (("BF16", 1.0), ("W8A16", 0.9), *((("W8A16-KV8-FP", 1.2),) if kv else ())):
        for qps in (1.0, 4.0, 16.0):
            for repeat in range(2):
                time_s = slower * (1 + 0.01 * repeat) * (1 + qps / 50)
                yield {
                    "model": "<llama>", "quantization": quantization, "gpu": "H200-SXM", "tp": 1, "engine": "vllm",
                    "engine_version": "1", "phase": "serving", "workload": "chat", "arrivals": "poisson",
                    "offered_qps": qps, "repeat": repeat, "status": "ok", "requests": int(20 * qps),
                    "achieved_qps": qps, "duration_s": 20.0, "ttft_p50_s": 0.1 * time_s, "tpot_p50_s": 0.01 * time_s,
                    "tpot_mean_s": 0.01 * time_s, "output_tokens_per_s": 100 * qps, "provenance": "measured",
                    "source": f"campaign x point {quantization}{qps}{repeat}",
                    "energy_note": "no energy counter: <none>",
                }  # fmt: skip


def test_text_has_verdicts_effects_and_step_times(capsys: pytest.CaptureFixture[str]) -> None:
    loads = measured_loads(from_rows(list(rows()), "made up"))
    print_findings("ours", loads, findings(loads), as_json=False)
    text = capsys.readouterr().out
    assert "cannot be told from this pack, because no run has energy (no energy counter: <none>)" in text
    assert "holds on average; alone: holds in 2 of 2" in text
    assert "x1.33 [" in text
    assert "Step times and power by quantization: <llama>, vllm 1 on H200-SXM" in text
    assert "idle (W)" not in text  # nothing has it
    assert "one run of TTFT p50 lies within" in text


def test_json_has_everything(capsys: pytest.CaptureFixture[str]) -> None:
    loads = measured_loads(from_rows(list(rows()), "made up"))
    print_findings("ours", loads, findings(loads), as_json=True)
    document = json.loads(capsys.readouterr().out)
    kv = next(one for one in document["findings"] if one["key"] == "kv-cache-and-latency")
    assert kv["verdict"] == "holds"
    part = kv["average"]["ttft_p50_s"][0]
    assert part["verdict"] == "holds"
    assert part["effect"]["value"] == pytest.approx(4 / 3)
    assert part["effect"]["low"] < 4 / 3 < part["effect"]["high"]
    assert len(kv["subjects"][0]["curves"]["chat"]["axis"]) == 3
    step = document["steps"][0]
    assert (step["quantization"], step["offered_qps"], step["power_w"]) == ("BF16", 1.0, None)
    assert step["batch"] == pytest.approx(100 * 0.01, rel=0.1)


def test_page_and_figures_show_every_claim(tmp_path: Path) -> None:
    loads = measured_loads(from_rows(list(rows()), "made up"))
    found = findings(loads)
    (page,) = write_findings("ours <pack>", loads, found, tmp_path / "found.html")
    text = page.read_text(encoding="utf-8")
    assert "<llama>" not in text
    assert "&lt;llama&gt;" in text
    assert all(one.claim in text for one in found)
    assert text.count("data:image/png") == sum(bool(one.subjects) for one in found) == 2
    files = write_findings("ours", loads, found, tmp_path / "found.png")
    assert {file.name for file in files} == {"found-kv-cache-and-latency.png", "found-weight-only-and-batch.png"}


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    loads = measured_loads(from_rows([row for row in rows(kv=False) if row["quantization"] == "BF16"], "made up"))
    with pytest.raises(InputError, match="tells nothing of any claim"):
        write_findings("ours", loads, findings(loads), tmp_path / "found.png")
