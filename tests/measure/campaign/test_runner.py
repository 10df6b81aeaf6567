from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from qplan.core.errors import InputError, StoreError
from qplan.measure.campaign.events import (
    EngineReady,
    EngineStarting,
    Event,
    PointFinished,
    PointPutBack,
    PointRetried,
    PointStarted,
    ProbeFinished,
)
from qplan.measure.campaign.grid import make_grid
from qplan.measure.campaign.planfile import read_plan
from qplan.measure.load.encoding import decode_requests
from qplan.measure.saturation.probe import ProbeResult
from qplan.profiles.journal import Journal
from qplan.profiles.store import ProfileStore

WritePlan = Callable[..., Path]
Observations = Callable[..., list[Mapping[str, Any]]]
NoOrphans = Callable[[], list[str]]


class TestRunner:
    """Campaigns of the scripted engine, in this process."""

    def test_every_point_of_the_grid_is_measured_and_kept(
        self, write_plan: WritePlan, run_plan: Any, observations: Observations, tmp_path: Path, no_orphans: NoOrphans
    ) -> None:
        path = write_plan(quantizations="[BF16, Q8_0]", loads="[20, 40]")
        run = run_plan(path)
        assert (run.ended.done, run.ended.failed, run.ended.left) == (4, 0, 0)
        assert len(run.of(EngineReady)) == 2
        rows = observations("quantization", "offered_qps", "status", "requests", "bits_per_weight")
        assert rows == [
            {"quantization": name, "offered_qps": rate, "status": "ok", "requests": 5, "bits_per_weight": 8.5}
            for name in ("BF16", "Q8_0")
            for rate in (20.0, 40.0)
        ]
        point = make_grid(read_plan(path)[0]).points[0]
        with ProfileStore(str(tmp_path / "store.db")) as store:
            raw = Journal(store, "scripted").raw(point.key)
        assert raw is not None
        requests = decode_requests(raw)
        assert len(requests) == 5
        assert requests.output_tokens.tolist() == [4] * 5

    def test_a_campaign_that_is_over_starts_nothing(self, write_plan: WritePlan, run_plan: Any) -> None:
        run_plan(write_plan())
        again = run_plan(write_plan())
        assert again.of(EngineStarting) == []
        assert again.ended.done == 1

    def test_a_plan_that_grew_measures_only_what_is_new(self, write_plan: WritePlan, run_plan: Any) -> None:
        run_plan(write_plan(loads="[20]"))
        grown = run_plan(write_plan(loads="[20, 40]"))
        assert [event.point for event in grown.of(PointFinished)] == ["tiny BF16 scripted: isl=8,osl=4, 40 qps"]

    def test_a_crash_restarts_the_engine_and_the_point(
        self, write_plan: WritePlan, run_plan: Any, observations: Observations, tmp_path: Path, no_orphans: NoOrphans
    ) -> None:
        settings = f"{{crash-after: 7, crash-marker: {tmp_path / 'crashed'}}}"
        run = run_plan(write_plan(settings=settings, loads="[20, 40]"))
        assert run.ended.done == 2
        assert len(run.of(EngineReady)) == 2
        (retried,) = (event for event in run.of(PointRetried) if event.last_lines)
        assert any("illegal memory access" in line for line in retried.last_lines)
        assert len(observations("status")) == 2

    def test_an_engine_that_dies_between_two_points_costs_neither_an_attempt(
        self, write_plan: WritePlan, run_plan: Any, no_orphans: NoOrphans
    ) -> None:
        others = set(psutil.Process().children(recursive=True))  # multiprocessing's own, if a test began it

        def kill_after_the_first(event: Event) -> None:
            if isinstance(event, PointFinished) and event.point.endswith("20 qps"):
                for process in set(psutil.Process().children(recursive=True)) - others:
                    process.kill()

        run = run_plan(write_plan(loads="[20, 40]"), on_event=kill_after_the_first)
        assert run.ended.done == 2
        assert len(run.of(EngineReady)) == 2
        assert not [event for event in run.of(PointRetried) if "client" not in event.reason]

    def test_a_point_that_always_fails_is_recorded_with_the_last_lines_and_the_campaign_goes_on(
        self, write_plan: WritePlan, run_plan: Any, observations: Observations, tmp_path: Path, no_orphans: NoOrphans
    ) -> None:
        path = write_plan(settings="{crash-after: 3}", loads="[20, 40]", retries=1)
        run = run_plan(path)
        assert run.ended.failed == 2
        assert len(run.of(PointStarted)) == 4
        rows = observations("status", "reason", "offered_qps")
        assert [row["status"] for row in rows] == ["failed", "failed"]
        assert all("illegal memory access" in row["reason"] for row in rows)
        point = make_grid(read_plan(path)[0]).points[0]
        with ProfileStore(str(tmp_path / "store.db")) as store:
            attempts = Journal(store, "scripted").attempts(point.key)
        assert [attempt["state"] for attempt in attempts] == ["failed", "failed"]
        assert any("illegal memory access" in line for line in attempts[-1]["last_lines"])

    def test_an_engine_that_does_not_start_fails_its_points_and_only_those(
        self, write_plan: WritePlan, run_plan: Any, observations: Observations
    ) -> None:
        path = write_plan(loads="[20, 40]", retries=0)
        text = path.read_text()
        sick = "- {name: scripted, settings: {fail: 'CUDA error: out of memory'}}"
        path.write_text(text.replace("[{name: scripted, settings: {}}]", f"\n  {sick}\n  - scripted"))
        run = run_plan(path)
        assert (run.ended.done, run.ended.failed) == (2, 2)
        rows = observations("status", "reason", "engine_version", "settings")
        assert sorted(row["status"] for row in rows) == ["ok", "ok", "oom", "oom"]
        assert all("out of memory" in row["reason"] for row in rows if row["status"] == "oom")

    def test_what_failed_is_measured_again_when_asked(
        self, write_plan: WritePlan, run_plan: Any, tmp_path: Path
    ) -> None:
        marker = tmp_path / "crashed"
        path = write_plan(settings=f"{{crash-after: 3, crash-marker: {marker}}}", retries=0)
        assert run_plan(path).ended.failed == 1
        assert run_plan(path).ended.failed == 1
        assert run_plan(path, retry_failed=True).ended.done == 1

    @pytest.mark.slow
    def test_shares_are_of_the_saturation_rate_that_was_found(
        self, write_plan: WritePlan, run_plan: Any, observations: Observations
    ) -> None:
        path = write_plan(
            loads="[50%, find saturation]",
            settings="{token-s: 0.01, slots: 2}",
            more="deadlines: {saturation: 10s}",
        )
        run = run_plan(path)
        assert run.of(ProbeFinished)
        assert [event.point.rsplit(", ")[-1] for event in run.of(PointFinished)] == [
            "find saturation",
            "50% of saturation",
        ]
        assert run.ended.done == 2
        (search,) = observations("saturation_qps", "saturation_low_qps", "saturation_high_qps", phase="saturation")
        assert search["saturation_low_qps"] < search["saturation_qps"] < search["saturation_high_qps"]
        (load,) = observations("offered_qps", phase="serving")
        assert load["offered_qps"] == pytest.approx(search["saturation_qps"] / 2, rel=0.01)

    @pytest.mark.slow
    def test_a_search_that_ran_out_of_time_goes_on_when_it_is_given_more(
        self, write_plan: WritePlan, run_plan: Any, observations: Observations
    ) -> None:
        asked = {"loads": "[50%, find saturation]", "settings": "{token-s: 0.01, slots: 2}"}
        short = run_plan(write_plan(**asked, more="deadlines: {saturation: 1s}"))
        assert short.ended.failed == 2
        search, load = (event.result.reason for event in short.of(PointFinished))
        assert "budget was used up" in search
        assert "was not found" in load
        longer = run_plan(write_plan(**asked, more="deadlines: {saturation: 10s}"), retry_failed=True)
        assert longer.ended.done == 2
        (row,) = observations("requests", "saturation_qps", phase="saturation")
        probed = [
            ProbeResult.from_json(probe.result["result"]).requests
            for run in (short, longer)
            for probe in run.of(ProbeFinished)
        ]
        assert row["requests"] == sum(probed)

    def test_a_trace_is_replayed_at_its_speed_up(
        self, write_plan: WritePlan, run_plan: Any, observations: Observations, tmp_path: Path
    ) -> None:
        trace = tmp_path / "trace.csv"
        lines = [f"2023-11-16 18:17:{second:02d}.0000000,{10 + second},4" for second in range(0, 20, 2)]
        trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]) + "\n")
        path = write_plan(requests=8)
        path.write_text(path.read_text().replace('["isl=8,osl=4"]', f"[{{trace: {trace}, speedup: 20}}]"))
        run = run_plan(path)
        assert run.ended.done == 1, run.events
        (row,) = observations("workload", "arrivals", "offered_qps", "requests")
        assert row == {"workload": "trace.csv x20", "arrivals": "trace x20", "offered_qps": 10.0, "requests": 8}

    def test_a_stop_puts_the_point_back_and_stops_the_engine(
        self, write_plan: WritePlan, run_plan: Any, observations: Observations, no_orphans: NoOrphans
    ) -> None:
        path = write_plan(loads="[20, 40, 60]", requests=40)
        stop: list[bool] = []

        def stop_at_the_second(event: Event) -> None:
            if isinstance(event, PointStarted) and "40 qps" in event.point:
                stop.append(True)

        run = run_plan(path, stop_at_the_second, stopping=lambda: bool(stop))
        assert run.ended.stopped
        assert len(run.of(PointPutBack)) == 1
        assert no_orphans() == []
        assert len(observations("status")) == 1
        rest = run_plan(path)
        assert len(rest.of(PointFinished)) == 2
        assert len(observations("status")) == 3

    def test_nothing_to_measure_is_an_error_that_says_why(self, write_plan: WritePlan, run_plan: Any) -> None:
        with pytest.raises(InputError, match=r"none of its combinations can be measured; the first: .*it was told to"):
            run_plan(write_plan(settings="{mute: yes}"))

    def test_a_second_campaign_of_the_name_is_refused_while_one_runs(
        self, write_plan: WritePlan, run_plan: Any, tmp_path: Path
    ) -> None:
        with ProfileStore(str(tmp_path / "store.db")) as store, Journal(store, "scripted") as journal:
            journal.open("", {})
            with pytest.raises(StoreError, match=f"is being measured by process {os.getpid()}"):
                run_plan(write_plan())


class TestSideBySide:
    """Blocks in worker processes on disjoint GPUs."""

    def test_deployments_run_side_by_side_on_gpus_of_their_own(
        self, write_plan: WritePlan, run_plan: Any, observations: Observations, no_orphans: NoOrphans
    ) -> None:
        path = write_plan(
            gpu="h100",
            devices="devices: [0, 1, 2, 3]",
            tp="[1, 2]",
            quantizations="[BF16, Q8_0]",
            settings="{token-s: 0.05}",
        )
        busy: dict[int, tuple[int, ...]] = {}
        most = 0

        def follow(event: Event) -> None:
            nonlocal most
            if isinstance(event, EngineStarting):
                others = (devices for block, devices in busy.items() if block != event.block)
                taken = {device for devices in others for device in devices}
                assert not taken.intersection(event.devices)
                busy[event.block] = event.devices
                most = max(most, len(busy))
            elif type(event).__name__ == "BlockEnded":
                busy.pop(event.block)  # type: ignore[union-attr]

        run = run_plan(path, follow)
        assert run.ended.done == 4
        assert most >= 2
        assert sorted(len(event.devices) for event in run.of(EngineStarting)) == [1, 1, 2, 2]
        assert len(observations("tp")) == 4

    def test_a_killed_worker_is_tried_again(
        self, write_plan: WritePlan, run_plan: Any, observations: Observations, no_orphans: NoOrphans
    ) -> None:
        path = write_plan(gpu="h100", devices="devices: [0, 1]", quantizations="[BF16, Q8_0]", requests=40)
        killed: list[int] = []

        def kill_one(event: Event) -> None:
            if isinstance(event, EngineReady) and not killed:
                workers = [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]
                killed.append(workers[0].pid)
                os.kill(killed[0], signal.SIGKILL)

        run = run_plan(path, kill_one)
        assert (run.ended.done, run.ended.failed) == (2, 0)
        assert sum("killed by SIGKILL" in event.reason for event in run.of(PointRetried)) == 1
        assert [row["status"] for row in observations("status")] == ["ok", "ok"]
