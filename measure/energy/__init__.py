"""Energy of a measured window: NVML, RAPL, or the reason why there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qplan.measure.energy.meter import Meter


def open_meter(devices: Sequence[int | str] | None = None) -> Meter:
    """Choose the meter of the devices that serve; enter it to start sampling.

    Parameters
    ----------
    devices
        GPUs by NVML index or UUID; empty for a replica on the CPU. By default those that ``CUDA_VISIBLE_DEVICES``
        names, else all GPUs of the machine, or its CPU where it has none.

    Returns
    -------
    Meter
        NVML for GPUs, RAPL for a CPU. Where the one that fits cannot be read, a meter whose readings are null with
        that reason: the energy of the CPU does not stand in for that of GPUs.
    """
    from qplan.measure.energy.null import NullMeter
    from qplan.measure.energy.nvml import NvmlMeter
    from qplan.measure.energy.rapl import RaplMeter

    reasons: list[str] = []
    if devices is None or len(devices):
        gpus = NvmlMeter(devices)
        if (reason := gpus.refusal()) is None:
            return gpus
        reasons.append(reason)
    if not devices:
        cpu = RaplMeter()
        if (reason := cpu.refusal()) is None:
            return cpu
        reasons.append(reason)
    return NullMeter(f"no energy counter: {'; '.join(reasons)}")
