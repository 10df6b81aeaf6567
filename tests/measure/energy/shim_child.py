"""Runs a meter in a process of its own, because the NVML library is chosen when pynvml loads it.

``measure SECONDS DEVICES FILE`` measures and saves the timeline; ``open DEVICES`` says what :func:`open_meter` chose.
DEVICES is a comma-separated list, or ``default``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

from qplan.core.errors import MeasurementError
from qplan.measure.energy import open_meter
from qplan.measure.energy.meter import measure_energy
from qplan.measure.energy.nvml import NvmlMeter


def devices(text: str) -> tuple[int | str, ...] | None:
    if text == "default":
        return None
    return tuple(int(word) if word.isdecimal() else word for word in text.split(",") if word)


def measure(seconds: str, which: str, file: str) -> dict[str, object]:
    if after_s := os.environ.get("SHIM_LOST_AFTER_S"):  # of this moment, not of when the process was started
        os.environ["SHIM_LOST_S"] = str(time.perf_counter() + float(after_s))
    try:
        with NvmlMeter(devices(which)) as meter:
            time.sleep(0.3)
            reading = measure_energy(meter, float(seconds))
            meter.save(Path(file))
    except MeasurementError as error:
        return {"error": str(error)}
    return {**asdict(reading), "energy_j": reading.energy_j, "power_w": reading.power_w, "driver": meter.driver}


def chosen(which: str) -> dict[str, object]:
    with open_meter(devices(which)) as meter:
        reading = meter.between(0.0, 1.0)
    return {"source": meter.source, "note": reading.note}


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    json.dump(measure(*rest) if verb == "measure" else chosen(*rest), sys.stdout)
