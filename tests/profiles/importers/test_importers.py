"""Samples are hand-made after the formats' own writers; each names the version it follows."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qplan.core.errors import InputError, QplanError
from qplan.profiles.importers import Given, formats, read_file
from qplan.profiles.schema import arrow_schema

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pyarrow as pa

    Rows = Callable[..., pa.Table]

SAID = Given(
    model="meta-llama/Llama-3.1-8B",
    quantization="awq",
    gpu="h100",
    tp=1,
    engine="vllm",
    engine_version="0.33.0",
)

# vllm/benchmarks/serve.py, vLLM 0.33: --percentile-metrics ttft,tpot,itl,e2el --metric-percentiles 50,90,99
VLLM: dict[str, Any] = {
    "date": "20261120-093011",
    "endpoint_type": "vllm",
    "backend": "vllm",
    "label": None,
    "model_id": "meta-llama/Llama-3.1-8B",
    "tokenizer_id": "meta-llama/Llama-3.1-8B",
    "num_prompts": 200,
    "request_rate": 4.0,
    "burstiness": 1.0,
    "max_concurrency": None,
    "duration": 50.0,
    "completed": 198,
    "failed": 2,
    "total_input_tokens": 43_560,
    "total_output_tokens": 35_640,
    "request_throughput": 3.96,
    "request_goodput": 3.5,
    "output_throughput": 712.8,
    "total_token_throughput": 1584.0,
    "max_output_tokens_per_s": 1400.0,
    "max_concurrent_requests": 31,
    "rtfx": 0.0,
    **{
        f"{statistic}_{metric}_ms": value * factor
        for metric, value in (("ttft", 50.0), ("tpot", 10.0), ("itl", 9.5), ("e2el", 1900.0))
        for statistic, factor in (
            ("mean", 1.1),
            ("median", 1.0),
            ("std", 0.3),
            ("p50", 1.0),
            ("p90", 1.5),
            ("p99", 3.0),
        )
    },
}


def _summary(mean: float, spread: float = 1.0) -> dict[str, Any]:
    """A DistributionSummary of guidellm, over successful, incomplete and errored requests."""
    cut = {"p001": 0.5, "p01": 0.6, "p05": 0.7, "p10": 0.8, "p25": 0.9, "p50": 1.0, "p75": 1.2}
    tail = {"p90": 1.5, "p95": 2.0, "p99": 3.0, "p999": 4.0}
    one = {
        "mean": mean,
        "median": mean,
        "mode": mean,
        "variance": 1.0,
        "std_dev": 1.0,
        "min": mean / 2,
        "max": mean * 4,
        "count": 90,
        "total_sum": mean * 90,
        "percentiles": {name: mean * factor**spread for name, factor in (cut | tail).items()},
        "pdf": None,
    }
    empty = {**one, "mean": 0.0, "count": 0, "percentiles": dict.fromkeys(cut | tail, 0.0)}
    return {"successful": one, "incomplete": empty, "errored": empty, "total": one}


def _guidellm_benchmark(strategy: dict[str, Any]) -> dict[str, Any]:
    return {
        "type_": "generative_benchmark",
        "config": {
            "id_": "b",
            "run_id": "r",
            "run_index": 0,
            "strategy": strategy,
            "constraints": {},
            "backend": {"target": "http://localhost:8000", "model": "Qwen/Qwen3-8B"},
        },
        "metrics": {
            "request_totals": {"successful": 90, "incomplete": 6, "errored": 4, "total": 100},
            "requests_per_second": _summary(1.5, 0),
            "request_concurrency": _summary(3.0, 0),
            "request_latency": _summary(2.0),
            "prompt_token_count": _summary(256.0, 0),
            "output_token_count": _summary(128.0, 0),
            "time_to_first_token_ms": _summary(80.0),
            "time_per_output_token_ms": _summary(15.0),
            "inter_token_latency_ms": _summary(14.0),
            "output_tokens_per_second": _summary(192.0, 0),
        },
        "requests": {"successful": [{"inter_token_latency_ms": 14.0}] * 20, "incomplete": [], "errored": []},
        "start_time": 1763640000.0,
        "end_time": 1763640060.0,
        "duration": 60.0,
    }


# guidellm 0.6: GenerativeBenchmarksReport, a sweep of which three strategies are kept
GUIDELLM: dict[str, Any] = {
    "metadata": {"version": 1, "guidellm_version": "0.6.0", "python_version": "3.12.3", "platform": "Linux"},
    "args": {"profile": "sweep", "rate": None, "backend": "openai_http"},
    "benchmarks": [
        _guidellm_benchmark({"type_": "constant", "rate": 1.6, "max_concurrency": 512}),
        _guidellm_benchmark({"type_": "concurrent", "streams": 8, "rampup_duration": 0.0}),
        _guidellm_benchmark({"type_": "throughput", "max_concurrency": None}),
    ],
}


def _block(unit: str, avg: float) -> dict[str, Any]:
    tail = {
        "p1": 0.5,
        "p5": 0.6,
        "p10": 0.7,
        "p25": 0.9,
        "p50": 1.0,
        "p75": 1.1,
        "p90": 1.4,
        "p95": 1.7,
        "p99": 2.0,
    }
    quantiles = {name: avg * factor for name, factor in tail.items()}
    return {
        "unit": unit,
        "avg": avg,
        "min": avg / 2,
        "max": avg * 3,
        "std": 1.0,
        "count": 95,
        "sum": avg * 95,
    } | quantiles


# aiperf 0.13: JsonExportData, schema 1.5; `exclude_unset` leaves defaults out
AIPERF: dict[str, Any] = {
    "schema_version": "1.5",
    "aiperf_version": "0.13.0",
    "benchmark_id": "b",
    "input_config": {
        "models": {"items": [{"name": "Qwen/Qwen3-8B"}]},
        "endpoint": {"urls": ["http://localhost:8000"], "streaming": True},
        "phases": [
            {"name": "warmup", "type": "concurrency", "concurrency": 1, "requests": 5},
            {"name": "profiling", "type": "poisson", "rate": 2.0, "requests": 100},
        ],
    },
    "was_cancelled": False,
    "start_time": "2026-11-20T09:30:11.123456",
    "end_time": "2026-11-20T09:31:01.123456",
    "time_to_first_token": _block("ms", 60.0),
    "inter_token_latency": _block("ms", 12.0),
    "request_latency": _block("ms", 1500.0),
    "input_sequence_length": _block("tokens", 512.0),
    "output_sequence_length": _block("tokens", 120.0),
    "request_count": {"unit": "requests", "avg": 95.0},
    "error_request_count": {"unit": "requests", "avg": 5.0},
    "request_throughput": {"unit": "requests/sec", "avg": 1.9},
    "output_token_throughput": {"unit": "tokens/sec", "avg": 228.0},
    "goodput": {"unit": "requests/sec", "avg": 1.7},
    "benchmark_duration": {"unit": "sec", "avg": 50.0},
}

SAMPLES = {"vllm": VLLM, "guidellm": GUIDELLM, "aiperf": AIPERF}


def import_json(folder: Path, document: Any, format_name: str, said: Given = SAID) -> list[dict[str, Any]]:
    file = folder / "run.json"
    file.write_text(json.dumps(document))
    rows: list[dict[str, Any]] = read_file(file, format_name, said).to_pylist()
    return rows


class TestVllm:
    def test_a_run_becomes_a_row_in_seconds(self, tmp_path: Path) -> None:
        [row] = import_json(tmp_path, VLLM, "vllm")
        assert (row["model"], row["quantization"], row["gpu"], row["tp"]) == (
            "llama-3.1-8b",
            "W4A16-AWQ",
            "H100-SXM5-80GB",
            1,
        )
        assert (row["phase"], row["provenance"], row["status"], row["source"]) == (
            "serving",
            "measured",
            "ok",
            "run.json",
        )
        assert (row["offered_qps"], row["concurrency"]) == (4.0, None)
        assert (row["input_tokens"], row["output_tokens"]) == (220.0, 180.0)
        assert (row["requests"], row["failed_requests"]) == (200, 2)
        assert row["ttft_mean_s"] == pytest.approx(0.055)
        assert row["ttft_p99_s"] == pytest.approx(0.15)
        assert (row["tpot_p50_s"], row["tpot_p95_s"]) == (pytest.approx(0.01), None)
        assert row["itl_p90_s"] == pytest.approx(9.5e-3 * 1.5)
        assert row["e2e_p99_s"] == pytest.approx(5.7)
        assert (row["achieved_qps"], row["goodput_qps"], row["output_tokens_per_s"]) == (3.96, 3.5, 712.8)
        assert (row["duration_s"], row["measured_on"]) == (50.0, "2026-11-20")

    def test_appended_runs_are_all_read(self, tmp_path: Path) -> None:
        file = tmp_path / "runs.json"
        file.write_text("\n".join(json.dumps({**VLLM, "request_rate": rate}) for rate in (1.0, 2.0)))
        assert read_file(file, "vllm", SAID)["offered_qps"].to_pylist() == [1.0, 2.0]

    def test_a_closed_loop_has_a_concurrency_and_a_burst_is_invalid(self, tmp_path: Path) -> None:
        [row] = import_json(tmp_path, {**VLLM, "request_rate": "inf", "max_concurrency": 16}, "vllm")
        assert (row["offered_qps"], row["concurrency"], row["status"]) == (None, 16.0, "ok")
        [row] = import_json(tmp_path, {**VLLM, "request_rate": "inf"}, "vllm")
        assert (row["status"], row["reason"]) == ("invalid", "every request was sent at once: no steady load")

    def test_a_run_without_a_success_is_a_failure_without_latencies(self, tmp_path: Path) -> None:
        zeros = {name: 0.0 for name in VLLM if name.endswith("_ms")}
        [row] = import_json(tmp_path, {**VLLM, **zeros, "completed": 0, "failed": 200}, "vllm")
        assert (row["status"], row["failed_requests"], row["ttft_p50_s"]) == ("failed", 200, None)

    def test_older_files_have_failures_between_the_lines(self, tmp_path: Path) -> None:
        older = {name: value for name, value in VLLM.items() if name != "failed"}
        [row] = import_json(tmp_path, older, "vllm")
        assert (row["requests"], row["failed_requests"]) == (200, 2)

    def test_a_ramp_has_no_one_rate(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="the request rate ramps up"):
            import_json(tmp_path, {**VLLM, "ramp_up_strategy": "linear"}, "vllm")


class TestGuidellm:
    def test_each_strategy_becomes_a_row(self, tmp_path: Path) -> None:
        constant, concurrent, throughput = import_json(
            tmp_path,
            GUIDELLM,
            "guidellm",
            Given(quantization="fp8", gpu="l40s", tp=1, engine="vllm", engine_version="0.33.0"),
        )
        assert (constant["offered_qps"], constant["concurrency"]) == (1.6, None)
        assert (concurrent["offered_qps"], concurrent["concurrency"]) == (None, 8.0)
        assert throughput["status"] == "invalid"
        assert (constant["model"], constant["quantization"]) == ("qwen3-8b", "W8A8-FP")
        assert (constant["requests"], constant["failed_requests"]) == (94, 4)
        assert constant["ttft_p99_s"] == pytest.approx(0.24)
        assert constant["e2e_p50_s"] == pytest.approx(2.0)
        assert (constant["duration_s"], constant["measured_on"]) == (60.0, "2025-11-20")

    def test_its_itl_is_our_tpot_and_its_tpot_is_not_read(self, tmp_path: Path) -> None:
        row = import_json(tmp_path, GUIDELLM, "guidellm")[0]
        assert row["tpot_p90_s"] == pytest.approx(14e-3 * 1.5)
        assert row["itl_mean_s"] == pytest.approx(14e-3)
        assert row["itl_p90_s"] is None
        assert row["source"] == "run.json (TPOT weighted by tokens)"

    def test_tpot_is_over_requests_where_all_are_there(self, tmp_path: Path) -> None:
        report = copy.deepcopy(GUIDELLM)
        each = [{"inter_token_latency_ms": float(value)} for value in range(1, 91)]
        report["benchmarks"][0]["requests"]["successful"] = each
        row = import_json(tmp_path, report, "guidellm")[0]
        assert row["tpot_mean_s"] == pytest.approx(45.5e-3)
        assert row["tpot_p50_s"] == pytest.approx(45.5e-3)
        assert row["itl_mean_s"] == pytest.approx(14e-3)
        assert row["source"] == "run.json"

    def test_no_success_is_a_failure(self, tmp_path: Path) -> None:
        report = copy.deepcopy(GUIDELLM)
        report["benchmarks"] = report["benchmarks"][:1]
        report["benchmarks"][0]["metrics"]["request_totals"] |= {"successful": 0, "errored": 100}
        [row] = import_json(tmp_path, report, "guidellm")
        assert (row["status"], row["failed_requests"], row["tpot_p50_s"]) == ("failed", 100, None)


class TestAiperf:
    def test_a_summary_becomes_a_row(self, tmp_path: Path) -> None:
        [row] = import_json(
            tmp_path,
            AIPERF,
            "aiperf",
            Given(quantization="bf16", gpu="a100", tp=2, engine="trtllm", engine_version="1.2"),
        )
        assert (row["model"], row["gpu"], row["offered_qps"], row["concurrency"]) == (
            "qwen3-8b",
            "A100-SXM4-80GB",
            2.0,
            None,
        )
        assert row["tpot_p99_s"] == pytest.approx(24e-3)
        assert row["itl_mean_s"] is None
        assert row["ttft_p95_s"] == pytest.approx(0.102)
        assert (row["requests"], row["failed_requests"]) == (100, 5)
        assert (row["duration_s"], row["goodput_qps"], row["measured_on"]) == (50.0, 1.7, "2026-11-20")

    def test_older_versions_keep_the_load_elsewhere(self, tmp_path: Path) -> None:
        # aiperf 0.3: UserConfig
        older = {"endpoint": {"model_names": ["Qwen/Qwen3-8B"]}, "loadgen": {"concurrency": 4}}
        [row] = import_json(tmp_path, {**AIPERF, "input_config": older}, "aiperf")
        assert (row["offered_qps"], row["concurrency"]) == (None, 4.0)

    def test_the_unit_is_taken_at_its_word(self, tmp_path: Path) -> None:
        [row] = import_json(tmp_path, {**AIPERF, "time_to_first_token": _block("sec", 0.06)}, "aiperf")
        assert row["ttft_p50_s"] == pytest.approx(0.06)
        with pytest.raises(InputError, match="'time_to_first_token' has unit 'fortnight'"):
            import_json(tmp_path, {**AIPERF, "time_to_first_token": _block("fortnight", 1)}, "aiperf")

    def test_a_cancelled_run_and_one_without_a_load_are_invalid(self, tmp_path: Path) -> None:
        [row] = import_json(tmp_path, {**AIPERF, "was_cancelled": True}, "aiperf")
        assert (row["status"], row["reason"]) == ("invalid", "the run was cancelled")
        [row] = import_json(tmp_path, {**AIPERF, "input_config": {}}, "aiperf")
        assert row["status"] == "invalid"


class TestCsv:
    def test_columns_are_mapped_and_converted(self, tmp_path: Path) -> None:
        file = tmp_path / "t.csv"
        file.write_text(
            "rate,p50 ttft,e2e_p50_s,Joules,note,gpu\n120,45,1.5,2,fine,l40s\n\n240,50,,,,l40s\n",
            encoding="utf-8-sig",
        )
        maps = ("rate=offered_qps:/min", "p50 ttft=ttft_p50_s:ms", "Joules=energy_j:kJ", "note=")
        said = Given(model="my-model", quantization="bf16", tp=1, engine="e", engine_version="1", column_map=maps)
        first, second = read_file(file, "csv", said).to_pylist()
        assert (first["model"], first["gpu"]) == ("my-model", "L40S")
        assert (first["offered_qps"], first["energy_j"], first["e2e_p50_s"]) == (2.0, 2000.0, 1.5)
        assert first["ttft_p50_s"] == pytest.approx(0.045)
        assert (second["offered_qps"], second["energy_j"]) == (4.0, None)

    @pytest.mark.parametrize(
        ("text", "maps", "message"),
        [
            ("offered_qps,ttft\n1,2\n", (), "column 'ttft' is not one of qplan's"),
            ("offered_qps\n1\n", ("x=tp",), "no column 'x'"),
            ("x\n1\n", ("x",), "expected SOURCE=COLUMN"),
            ("x\n1\n", ("x=ttft_p50",), "unknown column 'ttft_p50'; did you mean 'ttft_p50_s'?"),
            ("x\n1\n", ("x=ttft_p50_s:msec",), "unknown unit 'msec'; expected one of us, "),
            ("x\n1\n", ("x=tp:ms",), "'tp' has no other units"),
            ("x,tp\n1,1\n", ("x=tp",), "two columns are read as 'tp'"),
            ("offered_qps\nfast\n", (), "line 2, column 'offered_qps': 'fast' is not a number"),
            ("offered_qps\nnan\n", (), "line 2, column 'offered_qps': nan is not possible"),
            ("offered_qps\n-1\n", (), "-1 is not possible"),
            ("batch\n1.5\n", (), "1.5 is not a whole number"),
            ("offered_qps,tp\n1\n", (), "line 2: 1 cells where the header has 2"),
            ('offered_qps\n"1\n', (), "not CSV"),
            ("", (), "no header line"),
            ("offered_qps\n", (), "holds no results"),
        ],
    )
    def test_what_is_wrong_is_named(self, tmp_path: Path, text: str, maps: tuple[str, ...], message: str) -> None:
        file = tmp_path / "t.csv"
        file.write_text(text)
        with pytest.raises(InputError) as caught:
            read_file(
                file,
                "csv",
                Given(
                    column_map=maps,
                    model="m",
                    quantization="bf16",
                    gpu="l40s",
                    tp=1,
                    engine="e",
                    engine_version="1",
                ),
            )
        assert message in str(caught.value)


class TestParquet:
    def test_a_table_is_taken_as_it_is(self, tmp_path: Path, rows_at: Rows) -> None:
        pq.write_table(rows_at(1.0, 2.0), tmp_path / "x.parquet")
        assert read_file(tmp_path / "x.parquet", "parquet", Given()).equals(rows_at(1.0, 2.0))
        with pytest.raises(InputError, match="says itself what was measured"):
            read_file(tmp_path / "x.parquet", "parquet", SAID)

    def test_text_is_no_parquet(self, tmp_path: Path) -> None:
        (tmp_path / "x.parquet").write_text("hello")
        with pytest.raises(InputError, match="not a readable Parquet file"):
            read_file(tmp_path / "x.parquet", "parquet", Given())


def test_what_a_file_does_not_say_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        import_json(tmp_path, VLLM, "vllm", Given())
    assert str(caught.value).endswith(
        "does not say the quantization, gpu, tp, engine version; "
        "add --quant NAME --gpu NAME --tp N --engine-version VERSION"
    )


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            Given(quantization="W5A16", gpu="h100", tp=1, engine_version="1"),
            "--quant: unknown quantization 'W5A16'",
        ),
        (Given(quantization="bf16", gpu="h1000", tp=1, engine_version="1"), "--gpu: unknown GPU 'h1000'"),
    ],
)
def test_names_are_those_of_the_catalogues(tmp_path: Path, said: Given, message: str) -> None:
    with pytest.raises(InputError, match=message):
        import_json(tmp_path, VLLM, "vllm", said)


def test_the_format_is_one_that_there_is(tmp_path: Path) -> None:
    assert formats()[:3] == ("vllm", "guidellm", "aiperf")
    with pytest.raises(InputError, match=r"unknown format 'vlm'; .* did you mean 'vllm'"):
        read_file(tmp_path / "x", "vlm", SAID)


@pytest.mark.parametrize("format_name", SAMPLES)
def test_a_file_of_another_format_is_refused(tmp_path: Path, format_name: str) -> None:
    for other, sample in SAMPLES.items():
        if other != format_name:
            with pytest.raises(InputError, match="not a"):
                import_json(tmp_path, sample, format_name)
    for text in ("", "[]", "{", "\x00\x01", "[" * 100_000, '{"a": 1' + "0" * 5000 + "}"):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(InputError):
            read_file(tmp_path / "run.json", format_name, SAID)
    with pytest.raises(InputError, match="cannot read: No such file"):
        read_file(tmp_path / "away.json", format_name, SAID)


def test_numbers_that_no_clock_shows_are_refused(tmp_path: Path) -> None:
    for value in ("fast", -1.0, True, [1], 10**400):
        with pytest.raises(InputError, match=r"'mean_ttft_ms' is .*; expected a finite number"):
            import_json(tmp_path, {**VLLM, "mean_ttft_ms": value}, "vllm")
    with pytest.raises(InputError, match="'mean_ttft_ms' is nan"):
        import_json(tmp_path, {**VLLM, "mean_ttft_ms": float("nan")}, "vllm")


_JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=6),
    st.just([]),
    st.just("\ud800"),
    st.just({}),
    st.just([{}, 1]),
)


def _places(node: Any) -> list[tuple[Any, Any]]:
    """Every place in a document where another value can be put."""
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    return [place for key in keys for place in [(node, key), *_places(node[key])]]


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data(), format_name=st.sampled_from(sorted(SAMPLES)))
def test_no_mutated_report_ends_in_a_traceback(tmp_path: Path, data: st.DataObject, format_name: str) -> None:
    document = copy.deepcopy(SAMPLES[format_name])
    for _ in range(data.draw(st.integers(1, 4))):
        places = _places(document)
        where, key = places[data.draw(st.integers(0, len(places) - 1))]
        where[key] = data.draw(_JUNK)
    with contextlib.suppress(QplanError):
        file = tmp_path / "run.json"
        file.write_text(json.dumps(document))
        assert read_file(file, format_name, SAID).schema == arrow_schema()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=200), cells=st.lists(st.text(max_size=8), max_size=4))
def test_no_csv_ends_in_a_traceback(tmp_path: Path, content: bytes, cells: list[str]) -> None:
    file = tmp_path / "t.csv"
    for body in (content, ("offered_qps,ttft_p50_s,status,tp\n" + ",".join(cells)).encode(errors="replace")):
        file.write_bytes(body)
        with contextlib.suppress(QplanError):
            read_file(file, "csv", SAID)
