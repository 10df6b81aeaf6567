from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from qplan.core.errors import MeasurementError
from qplan.measure.energy.rapl import RaplMeter
from qplan.measure.energy.timeline import load_timelines


def zone(root: Path, name: str, label: str, energy_uj: int = 0, range_uj: int = 10**9) -> Path:
    """Make the three files of a powercap zone."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    return folder / "energy_uj"


def counted_j(meter: RaplMeter, file: Path) -> float:
    """What the counters of all domains gained between the first and the last sample."""
    meter.save(file)
    total = 0.0
    for line in load_timelines(file)[2]:
        seen = [sample.counter_j for sample in line.samples if sample.counter_j is not None]
        total += seen[-1] - seen[0]
    return total


def put(file: Path, energy_uj: int) -> None:
    """Let a counter stand there; as of a kernel's file, nobody reads a part."""
    new = file.with_suffix(".new")
    new.write_text(str(energy_uj))
    new.replace(file)


def until_counted(meter: RaplMeter, file: Path, joules: float) -> None:
    """Wait until the meter has read that much."""
    deadline_s = time.perf_counter() + 30
    while counted_j(meter, file) != pytest.approx(joules):
        assert time.perf_counter() < deadline_s, "not read in time"
        time.sleep(0.02)


def test_packages_and_their_memory_are_summed_and_parts_of_them_are_not(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    memory = zone(tmp_path, "intel-rapl:0:2", "dram", 1_000_000)
    others = [
        zone(tmp_path, "intel-rapl:0:0", "core"),
        zone(tmp_path, "intel-rapl:1", "psys"),
        zone(tmp_path, "intel-rapl-mmio:0", "package-0"),
    ]
    with RaplMeter(tmp_path) as meter:
        start_s = time.perf_counter()
        for other in others:
            put(other, 900_000_000)
        put(package, 8_000_000)
        put(memory, 1_500_000)
        until_counted(meter, tmp_path / "t", 3.5)
        reading = meter.between(start_s, time.perf_counter())
    assert reading.devices == ("intel-rapl:0/package-0", "intel-rapl:0:2/dram")
    assert counted_j(meter, tmp_path / "t") == pytest.approx(3.5)
    assert reading.energy_j is not None
    assert 0 < reading.energy_j <= 3.5
    assert reading.energy_polled_j is None
    assert reading.note is not None
    assert "other processes included" in reading.note


def test_a_counter_that_starts_again_at_zero_is_carried_on(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 9_000_000, range_uj=10_000_000)
    with RaplMeter(tmp_path) as meter:
        for microjoules, gained_j in ((9_900_000, 0.9), (800_000, 1.8), (9_500_000, 10.5), (100_000, 11.1)):
            put(counter, microjoules)
            until_counted(meter, tmp_path / "t", gained_j)
    assert counted_j(meter, tmp_path / "t") == pytest.approx(20.1 - 9.0)


def test_a_machine_without_powercap_says_where_it_looked(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    assert RaplMeter(missing).refusal() == f"RAPL: no folder {missing}"
    zone(tmp_path, "intel-rapl:0:0", "core")
    assert "no package or dram domain" in str(RaplMeter(tmp_path).refusal())


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_counter_for_root_alone_is_refused_with_what_to_do(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0").chmod(0)
    assert "chmod a+r" in str(RaplMeter(tmp_path).refusal())


def test_a_file_that_holds_no_number_is_named(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0").write_text("lots")
    with pytest.raises(MeasurementError, match="energy_uj holds 'lots'"), RaplMeter(tmp_path):
        pass


def test_a_domain_that_vanishes_in_the_window_is_null_with_the_reason(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    with RaplMeter(tmp_path) as meter:
        start_s = time.perf_counter()
        counter.unlink()
        time.sleep(1.2)
        reading = meter.between(start_s, time.perf_counter())
    assert reading.energy_j is None
    assert reading.note is not None
    assert "cannot read" in reading.note
