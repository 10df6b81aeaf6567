"""Energy of the replicas' GPUs in the router's metrics, on a stand-in for NVML; and none where there is none."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import pytest

from qplan.core.errors import MeasurementError
from qplan.router import energy
from qplan.router.dispatch import Dispatcher
from qplan.router.logs import Log
from qplan.router.metrics import Metrics
from qplan.router.settings import ReplicaAddress, Settings
from tests.router.live import Replica, Router, ask, make_policy, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="NVML is stood in for by an ELF library")
JOULES, WATTS, IDLE = (
    f"qplan_router_{name}" for name in ("energy_joules_total", "power_watts", "predicted_idle_watts")
)


def labels(name: str) -> str:
    return f'{{replica="{name}",group="g"}}'


def started(tmp_path: Path, *gpus: str) -> tuple[Router, Replica]:
    """A router before replicas ``r0``, ``r1`` ... that are one process, each with these GPUs."""
    replica = Replica("a")
    lines = [f"- {{name: r{n}, url: '{replica.url}', gpus: {one}}}\n" for n, one in enumerate(gpus)]
    try:
        return Router(tmp_path, None, "replicas:\n" + "".join(lines)), replica
    except BaseException:
        replica.kill()
        raise


def test_joules_and_watts_of_a_replica(tmp_path: Path, nvml_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml_library))
    monkeypatch.setenv("SHIM_GPUS", "4")
    monkeypatch.setenv("SHIM_LOW_W", "100,200,300,400")
    monkeypatch.setenv("SHIM_NO_COUNTER", "2")
    router, replica = started(tmp_path, "[0, 1]", "[2]", "[3]", "['3']")
    try:
        ask(router.url, stream=True)
        first = wait_for(lambda: (found := router.metrics()).get(JOULES + labels("r1")) and found)
        began_s = time.monotonic()
        for name in ("r0", "r1"):  # by counters, and by power alone; 300 W either
            key = JOULES + labels(name)
            later = wait_for(lambda key=key: (found := router.metrics())[key] >= first[key] + 450 and found, 20)
            # What came too early may be of a period of the router, a tick of the counter, and a slow machine.
            assert later[key] - first[key] < 300 * (time.monotonic() - began_s + 3)
            assert later[WATTS + labels(name)] == pytest.approx(300.0)
            assert later[IDLE + labels(name)] == 100.0
        assert not [key for key in later if key.startswith((JOULES, WATTS)) and ("r2" in key or "r3" in key)]
        reasons = {event["replica"]: event["reason"] for event in router.events("energy")}
        assert "another replica's" in reasons["r2"] + reasons["r3"]
        assert set(reasons) == {"r2", "r3"}
    finally:
        router.stop()
        replica.kill()


class LostCounter:
    """A GPU that is there for two readings."""

    names = ("GPU 0",)

    def __init__(self, devices: object) -> None:
        self.readings = 0

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def read(self) -> tuple[float, float]:
        self.readings += 1
        if self.readings > 2:
            raise MeasurementError("NVML: energy counter: the GPU is lost")
        return 5.0, 100.0


def test_a_gpu_that_is_lost_takes_its_series_along(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr(energy, "GpuCounter", LostCounter)
    monkeypatch.setattr(energy, "_PERIOD_S", 0.01)
    metrics, log = Metrics(), Log()
    address = ReplicaAddress("r0", "http://127.0.0.1:1", "g", 1, gpus=("0",))
    dispatcher = Dispatcher(make_policy(), Settings((address,)), metrics)
    seen: list[float] = []

    async def look() -> None:
        task = asyncio.create_task(energy.observe(dispatcher, metrics, log))
        while not seen or found():
            seen.extend(found())
            await asyncio.sleep(0.002)
        task.cancel()

    def found() -> list[float]:
        return [value[0] for name, _, value in metrics.samples() if name == JOULES]

    asyncio.run(asyncio.wait_for(look(), 20))
    log.close()
    assert set(seen) <= {5.0, 10.0}
    assert not [name for name, _, _ in metrics.samples() if name in (JOULES, WATTS)]
    assert capfdbinary.readouterr().err.count(b"the GPU is lost") == 1


def test_without_nvml_or_elsewhere_there_is_a_line_in_the_log_and_no_zero(
    tmp_path: Path, nvml_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml_library))
    monkeypatch.setenv("SHIM_INIT", "12")
    replica = Replica("a")
    text = f"- {{name: r0, url: '{replica.url}', gpus: [0]}}\n- {{name: r1, url: 'http://192.0.2.1:1', gpus: [0]}}\n"
    router = Router(tmp_path, None, "replicas:\n" + text)
    try:
        reasons = wait_for(lambda: len(found := router.events("energy")) == 2 and found)
        assert "no NVML library" in reasons[0]["reason"]
        assert "192.0.2.1 is another machine" in reasons[1]["reason"]
        assert not [key for key in router.metrics() if key.startswith((JOULES, WATTS))]
    finally:
        router.stop()
        replica.kill()
