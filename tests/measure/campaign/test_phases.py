from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from qplan.core.errors import MeasurementError
from qplan.measure.campaign.estimate import Estimate
from qplan.measure.campaign.grid import make_grid
from qplan.measure.campaign.phases import PREFILL_S, SteadyRun, with_tokens
from qplan.measure.campaign.planfile import read_plan
from qplan.measure.campaign.rig import IDLE_S
from qplan.measure.energy.meter import EnergyReading
from qplan.measure.load.encoding import decode_requests
from qplan.measure.load.metrics import Window
from qplan.measure.load.requests import NOT_SAID, Outcome, Request, Requests
from qplan.profiles.journal import Journal
from qplan.profiles.store import ProfileStore

WritePlan = Callable[..., Path]
Observations = Callable[..., list[Mapping[str, Any]]]
NoOrphans = Callable[[], list[str]]
Start = Callable[..., subprocess.Popen[str]]

CHILD = Path(__file__).with_name("short_windows.py")
IDLE_W, PREFILL_J, DECODE_J = 20.0, 0.5, 1.0
ENERGY = (
    "energy_j",
    "energy_polled_j",
    "duration_s",
    "requests",
    "idle_power_w",
    "driver",
    "temperature_max_c",
    "energy_prefill_j_per_token",
    "energy_decode_j_per_token",
    "energy_note",
    "status",
)


@pytest.fixture
def gpu_plan(write_plan: WritePlan, tmp_path: Path) -> WritePlan:
    """Write a plan whose engine takes known energies of the GPU that NVML is stood in for with."""

    def write(**parts: object) -> Path:
        work = tmp_path / "joules"
        work.write_bytes(bytes(8))
        settings = f"{{token-s: 0.002, work: {work}, prefill-j: {PREFILL_J}, decode-j: {DECODE_J}}}"
        path = write_plan(**{"gpu": "h100", "devices": "devices: [0]", "settings": settings, **parts})
        path.write_text(path.read_text().replace("energy: off", "energy: on"))
        return path

    return write


@pytest.fixture
def start(nvml_library: Path, tmp_path: Path) -> Start:
    """Start the real command on the stand-in for NVML, with windows of these lengths."""

    def start(plan: Path, *, idle_s: float = 0.6, prefill_s: float = 2.0) -> subprocess.Popen[str]:
        windows = (str(idle_s), str(prefill_s))
        command = [sys.executable, str(CHILD), *windows, "measure", str(plan), "--json", "--store", "store.db"]
        settings = {
            "LD_LIBRARY_PATH": str(nvml_library),
            "SHIM_LOW_W": str(IDLE_W),
            "SHIM_WORK": str(tmp_path / "joules"),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        }
        return subprocess.Popen(
            command,
            cwd=tmp_path,
            env=os.environ | settings,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return start


@pytest.mark.skipif(sys.platform != "linux", reason="NVML is stood in for by an ELF library")
@pytest.mark.slow
class TestCampaign:
    """Campaigns of the scripted engine by the real command, on the real pynvml."""

    def test_each_phase_gets_its_energy(
        self, gpu_plan: WritePlan, start: Start, observations: Observations, tmp_path: Path, no_orphans: NoOrphans
    ) -> None:
        plan = gpu_plan(loads="[30]", requests=72)
        plan.write_text(plan.read_text().replace("warm_up: 0", "warm_up: 400ms"))
        out, err = start(plan).communicate(timeout=120)
        events = [json.loads(line) for line in out.splitlines()]
        assert [event["event"] for event in events][-1] == "CampaignEnded", err
        (row,) = observations(*ENERGY)
        assert row["status"] == "ok"
        assert row["driver"] == "570.00-shim"
        assert row["temperature_max_c"] == 60
        assert row["idle_power_w"] == pytest.approx(IDLE_W, rel=0.3)  # a tick in a short window
        expected_j = IDLE_W * row["duration_s"] + row["requests"] * (8 * PREFILL_J + 3 * DECODE_J)
        assert row["energy_j"] == pytest.approx(expected_j, rel=0.15)
        assert row["energy_polled_j"] == pytest.approx(expected_j, rel=0.2)
        assert row["energy_prefill_j_per_token"] == pytest.approx(PREFILL_J, rel=0.25)
        assert row["energy_decode_j_per_token"] == pytest.approx(DECODE_J, rel=0.3)
        with ProfileStore(str(tmp_path / "store.db")) as store:
            raw = Journal(store, "scripted").raw(make_grid(read_plan(plan)[0]).points[0].key)
        assert raw is not None
        assert decode_requests(raw).asked_tokens.tolist() == [4] * 72

    def test_a_companion_that_fails_leaves_the_load_as_it_was(
        self, gpu_plan: WritePlan, start: Start, observations: Observations, no_orphans: NoOrphans
    ) -> None:
        start(gpu_plan(requests=5), prefill_s=0.001).communicate(timeout=120)
        (row,) = observations(*ENERGY)
        assert row["status"] == "ok"
        assert row["energy_j"] > 0
        assert (row["energy_prefill_j_per_token"], row["energy_decode_j_per_token"]) == (None, None)
        assert "prefill and decode not told apart: " in row["energy_note"]
        assert "no request arrives within 0.001 s" in row["energy_note"]

    def test_an_end_in_the_middle_of_a_companion_puts_the_load_back(
        self, gpu_plan: WritePlan, start: Start, observations: Observations, no_orphans: NoOrphans
    ) -> None:
        process = start(gpu_plan(requests=5), prefill_s=60.0)
        assert process.stdout is not None
        while json.loads(process.stdout.readline())["event"] != "EngineReady":
            pass
        time.sleep(2.0)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 130, err
        assert "PointPutBack" in [json.loads(line)["event"] for line in out.splitlines()]
        assert observations("status") == []


def test_energy_takes_its_time_where_there_are_devices(gpu_plan: WritePlan) -> None:
    def total_s(path: Path) -> float:
        plan, _ = read_plan(path)
        grid = make_grid(plan)
        return Estimate(plan).total_s(grid.blocks, {point.key: True for point in grid.points})

    with_energy_s = total_s(gpu_plan(loads="[20, 40]"))
    path = gpu_plan(loads="[20, 40]")
    path.write_text(path.read_text().replace("energy: on", "energy: off"))
    assert with_energy_s == pytest.approx(total_s(path) + IDLE_S + 2 * PREFILL_S)
    on_cpu = gpu_plan(loads="[20, 40]", gpu="cpu", devices="")
    assert total_s(on_cpu) == pytest.approx(total_s(path))


class TestTokens:
    """Counting what was prefilled and decoded in a window."""

    @staticmethod
    def run(*requests: Request, joules: float | None = 100.0) -> SteadyRun:
        energy = EnergyReading(0.0, 10.0, "nvml", energy_counter_j=joules, note="the GPU is lost")
        return SteadyRun(Requests.of(requests), Window(0.0, 10.0), energy)

    @staticmethod
    def request(index: int, *chunk_s: float, tokens: int, outcome: Outcome = Outcome.OK, prompt: int = 7) -> Request:
        reason = "" if outcome is Outcome.OK else "made up"
        return Request(index, index, index, index + 1, chunk_s, prompt, tokens, tokens, outcome, reason)

    def test_a_first_token_is_prefill_and_an_answer_without_text_was_prefilled_too(self) -> None:
        found = with_tokens(
            self.run(
                self.request(0, 0.5, 0.6, 0.7, tokens=3),
                self.request(1, 1.5, tokens=1),
                self.request(2, tokens=1, outcome=Outcome.EMPTY),
                self.request(9, 9.5, 10.5, 11.5, tokens=3),  # decoded outside
                self.request(11, 11.5, tokens=1),
            )
        )
        assert (found.prompt_tokens, found.decode_tokens) == (4 * 7, 2)

    def test_tokens_that_nobody_told_are_an_error_with_the_reason(self) -> None:
        lost = self.request(1, 1.5, tokens=NOT_SAID, outcome=Outcome.TRUNCATED, prompt=NOT_SAID)
        with pytest.raises(MeasurementError, match=r"the tokens of 1 of 2 requests are not known: made up"):
            with_tokens(self.run(self.request(0, 0.5, 0.6, tokens=2), lost))

    def test_a_window_without_energy_says_why(self) -> None:
        with pytest.raises(MeasurementError, match="prefill alone: the GPU is lost"):
            with_tokens(self.run(self.request(0, 0.5, tokens=1), joules=None))
