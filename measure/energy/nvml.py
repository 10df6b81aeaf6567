"""Energy of NVIDIA GPUs through NVML, by NVIDIA's own binding (package ``nvidia-ml-py``, module ``pynvml``)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from qplan.core.errors import MeasurementError
from qplan.measure.energy.sampler import SampledMeter
from qplan.measure.energy.timeline import Sample

MEANINGS = {
    1: "NVML was used before it was started",
    2: "NVML refused an argument",
    3: "not supported by this GPU",
    4: "no permission; run as root or ask for it in the container's settings",
    5: "NVML was started already",
    6: "NVML knows no such thing",
    7: "NVML's answer does not fit",
    8: "a GPU's power cables are not attached",
    9: "the NVIDIA kernel driver is not loaded",
    10: "NVML timed out",
    11: "the kernel has an interrupt problem with a GPU",
    12: "no NVML library (libnvidia-ml.so.1): no NVIDIA driver here, or the container does not see it",
    13: "this driver is too old for the call",
    14: "the GPU's infoROM is corrupted",
    15: "the GPU is lost: it fell off the bus or became inaccessible",
    16: "the GPU needs a reset",
    17: "the operating system or its cgroup blocked the call",
    18: "NVML and the kernel driver are of different versions: reboot or reload the driver",
    19: "the GPU is in use",
    20: "NVML is out of memory",
    21: "NVML has no data yet",
    22: "not with ECC on a virtual GPU",
    23: "NVML is out of resources",
    24: "this clock is not supported",
    25: "this driver and nvidia-ml-py disagree about a structure's version",
    26: "the driver has retired the call",
    27: "the GPU is not ready yet",
    28: "a GPU was not found",
    29: "the GPU is in the wrong state",
    30: "this GPU cannot be reset that way",
    999: "the driver met an internal error",
}
"""What each NVML error code means to somebody who wants to know the energy."""

# Clocks events that say nothing of throttling (an idle GPU) are left out.
THROTTLE_REASONS = {
    0x002: "application_clocks",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal",
    0x040: "hw_thermal",
    0x080: "hw_power_brake",
    0x100: "display_clocks",
    0x200: "board_limit",
    0x400: "reliability",
}


@dataclass(frozen=True, slots=True)
class _Gpu:
    """What can be read of a GPU, found out once; a missing reading gives ``None``."""

    name: str
    note: str | None
    counter_j: Callable[[], float | None]
    power_w: Callable[[], float | None]
    temperature_c: Callable[[], float | None]
    sm_clock_mhz: Callable[[], float | None]
    events: Callable[[], float | None]


class NvmlMeter(SampledMeter):
    """Samples NVIDIA GPUs.

    Parameters
    ----------
    devices
        GPUs by NVML index or UUID (``GPU-...``, or the first characters of one); by default those that
        ``CUDA_VISIBLE_DEVICES`` names, else all. NVML counts GPUs by their place on the bus, as CUDA does with
        ``CUDA_DEVICE_ORDER=PCI_BUS_ID``.
    """

    source = "nvml"

    def __init__(self, devices: Sequence[int | str] | None = None) -> None:
        super().__init__()
        self.devices = devices
        self._gpus: list[_Gpu] = []
        self._nvml: ModuleType | None = None

    def refusal(self) -> str | None:
        """Say why nothing can be read here, or return ``None``."""
        try:
            self._open()
        except MeasurementError as error:
            return str(error)
        self._close()
        return None

    def _open(self) -> tuple[tuple[str, str | None], ...]:
        nvml = _binding()
        _asked(nvml, "nvmlInit", nvml.nvmlInit)
        self._nvml = nvml
        try:
            self.driver = str(_asked(nvml, "driver version", nvml.nvmlSystemGetDriverVersion))
            self._gpus = [_examined(nvml, handle, label) for handle, label in _chosen(nvml, self.devices)]
        except MeasurementError:
            self._close()
            raise
        return tuple((gpu.name, gpu.note) for gpu in self._gpus)

    def _close(self) -> None:
        if self._nvml is not None:
            _asked(self._nvml, "nvmlShutdown", self._nvml.nvmlShutdown)
            self._nvml = None

    def _read(self, device: int) -> Sample:
        gpu = self._gpus[device]
        counter_j = gpu.counter_j()
        time_s = time.perf_counter()
        events = int(gpu.events() or 0)
        return Sample(
            time_s,
            counter_j=counter_j,
            power_w=gpu.power_w(),
            temperature_c=gpu.temperature_c(),
            sm_clock_mhz=gpu.sm_clock_mhz(),
            throttle_reasons=tuple(word for bit, word in THROTTLE_REASONS.items() if events & bit),
        )


def visible_devices() -> tuple[str, ...] | None:
    """Return what ``CUDA_VISIBLE_DEVICES`` names, or ``None`` when it is not set.

    As CUDA does, the list ends at the first entry that names no GPU, such as ``-1``.
    """
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    visible: list[str] = []
    for entry in (entry.strip() for entry in text.split(",")):
        if not entry or entry.startswith("-"):
            break
        visible.append(entry)
    return tuple(visible)


def _binding() -> ModuleType:
    try:
        import pynvml
    except ImportError:
        raise MeasurementError("NVML: the package nvidia-ml-py is missing: pip install 'qplan[measure]'") from None
    return pynvml  # type: ignore[no-any-return]


def _asked(nvml: ModuleType, what: str, call: Callable[..., Any], *arguments: object) -> Any:
    """Call NVML; an error code becomes one line that says what was asked and what the code means."""
    try:
        return call(*arguments)
    except nvml.NVMLError as error:
        code = int(error.value)
        raise MeasurementError(f"NVML: {what}: {MEANINGS.get(code, f'error code {code}')}") from None


def _chosen(nvml: ModuleType, devices: Sequence[int | str] | None) -> list[tuple[Any, str]]:
    """Return the handle of each GPU that was asked for and a label for messages."""
    count = int(_asked(nvml, "counting GPUs", nvml.nvmlDeviceGetCount))
    if count == 0:
        raise MeasurementError("NVML: there is no GPU here")
    where = ""
    if devices is None:
        devices, where = visible_devices(), "CUDA_VISIBLE_DEVICES: "
        if devices == ():
            raise MeasurementError("NVML: CUDA_VISIBLE_DEVICES hides every GPU")
    found: list[tuple[Any, str]] = []
    for device in range(count) if devices is None else devices:
        text = str(device)
        if text.startswith("MIG-"):
            raise MeasurementError(f"NVML: {where}{text} is a MIG slice, which has no energy counter of its own")
        index = int(text) if text.isdecimal() else _index_of(nvml, text, count)
        if index is None or index >= count:
            known = "GPU 0" if count == 1 else f"GPUs 0 to {count - 1}"
            raise MeasurementError(f"NVML: {where}no GPU '{text}'; this machine has {known}")
        handle = _asked(nvml, f"GPU {index}", nvml.nvmlDeviceGetHandleByIndex, index)
        found.append((handle, f"GPU {index}"))
    return found


def _index_of(nvml: ModuleType, prefix: str, count: int) -> int | None:
    """Return the index of the one GPU whose UUID starts with `prefix`."""
    handles = [_asked(nvml, f"GPU {index}", nvml.nvmlDeviceGetHandleByIndex, index) for index in range(count)]
    uuids = [str(_asked(nvml, f"UUID of GPU {i}", nvml.nvmlDeviceGetUUID, handle)) for i, handle in enumerate(handles)]
    matches = [index for index, uuid in enumerate(uuids) if uuid.casefold().startswith(prefix.casefold())]
    return matches[0] if len(matches) == 1 else None


def _examined(nvml: ModuleType, handle: Any, label: str) -> _Gpu:
    """Find out what a GPU can say: the best power reading it has, and why others are missing."""
    name = f"{label} ({_asked(nvml, label, nvml.nvmlDeviceGetName, handle)})"
    if _mig(nvml, handle):
        return _silent(name, "MIG is on: slices have no energy counter of their own, and the GPU's counts them all")
    notes: list[str] = []

    def first(what: str, scale: float, *calls: Callable[[], float]) -> tuple[int | None, Callable[[], float | None]]:
        """Choose the first call that works now, and its number; later failures raise."""
        why = "this nvidia-ml-py is too old"
        for number, call in enumerate(calls):
            try:
                _asked(nvml, what, call)
            except MeasurementError as error:
                why = str(error).rpartition(": ")[2]
                continue
            except AttributeError:
                continue

            def reading(call: Callable[[], float] = call) -> float:
                return float(_asked(nvml, what, call)) * scale

            return number, reading
        notes.append(f"no {what}: {why}")
        return None, _nothing

    def instant() -> float:
        (field,) = nvml.nvmlDeviceGetFieldValues(handle, [nvml.NVML_FI_DEV_POWER_INSTANT])
        if field.nvmlReturn != nvml.NVML_SUCCESS:
            raise nvml.NVMLError(field.nvmlReturn)
        return int(field.value.uiVal)

    _, counter_j = first("energy counter", 1e-3, lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    power, power_w = first("power", 1e-3, instant, lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    _, temperature_c = first(
        "temperature",
        1.0,
        lambda: nvml.nvmlDeviceGetTemperatureV(handle, nvml.NVML_TEMPERATURE_GPU),
        lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
    )
    _, sm_clock_mhz = first("SM clock", 1.0, lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
    _, events = first(
        "throttle reasons",
        1.0,
        lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
        lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
    )
    if power == 1:  # on Ampere other than A100, and newer
        notes.append("polled power may be an average over the last second (nvmlDeviceGetPowerUsage)")
    return _Gpu(name, "; ".join(notes) or None, counter_j, power_w, temperature_c, sm_clock_mhz, events)


def _mig(nvml: ModuleType, handle: Any) -> bool:
    """Whether a GPU is cut into slices now; GPUs that cannot be are not."""
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:
        return False
    return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)


def _silent(name: str, note: str) -> _Gpu:
    return _Gpu(name, note, _nothing, _nothing, _nothing, _nothing, _nothing)


def _nothing() -> None:
    return None
