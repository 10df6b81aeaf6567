"""Energy of CPU packages and their memory from Linux' powercap files (RAPL)."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from qplan.core.errors import MeasurementError
from qplan.measure.energy.sampler import SampledMeter
from qplan.measure.energy.timeline import Sample

POWERCAP = Path("/sys/class/powercap")

# ``intel-rapl:0`` is a package, ``intel-rapl:0:2`` a domain of it, on AMD too. The same package shows up again as
# ``intel-rapl-mmio:0``, ``core`` and ``uncore`` are parts of the package, and ``psys`` contains it: none is added.
_ZONE = re.compile(r"intel-rapl:\d+(:\d+)?")
_COUNTED = re.compile(r"package-\d+(-die-\d+)?|dram")
_NOTE = "RAPL counts the whole package, other processes included, and has no polled power"


@dataclass(slots=True)
class _Domain:
    """One counter and where it stands, in microjoules; `wraps` counts how often it started again at 0."""

    name: str
    file: Path
    range_uj: int
    last_uj: int = 0
    wraps: int = 0


class RaplMeter(SampledMeter):
    """The packages and memory of all CPUs of this machine.

    Parameters
    ----------
    root
        Folder of the powercap files.
    """

    source = "rapl"

    def __init__(self, root: Path = POWERCAP) -> None:
        super().__init__()
        self.root = root
        self._domains: list[_Domain] = []

    def refusal(self) -> str | None:
        """Say why nothing can be read here, or return ``None``."""
        try:
            self._open()
        except MeasurementError as error:
            return str(error)
        return None

    def _open(self) -> tuple[tuple[str, str | None], ...]:
        if not self.root.is_dir():
            raise MeasurementError(f"RAPL: no folder {self.root}")
        self._domains = []
        for zone in sorted(self.root.iterdir()):
            if _ZONE.fullmatch(zone.name) and _COUNTED.fullmatch(name := _text(zone / "name")):
                label = f"{zone.name}/{name}"
                self._domains.append(_Domain(label, zone / "energy_uj", _number(zone / "max_energy_range_uj")))
        if not self._domains:
            raise MeasurementError(f"RAPL: no package or dram domain below {self.root}")
        for domain in self._domains:
            domain.last_uj = _number(domain.file)
        return tuple((domain.name, _NOTE) for domain in self._domains)

    def _read(self, device: int) -> Sample:
        domain = self._domains[device]
        now_uj = _number(domain.file)
        time_s = time.perf_counter()
        if now_uj < domain.last_uj:
            domain.wraps += 1
        domain.last_uj = now_uj
        return Sample(time_s, counter_j=(domain.wraps * domain.range_uj + now_uj) / 1e6)


def _number(file: Path) -> int:
    text = _text(file)
    try:
        return int(text)
    except ValueError:
        raise MeasurementError(f"RAPL: {file} holds {text[:40]!r}; expected a whole number") from None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except PermissionError:
        who = "root" if os.geteuid() else "this container's administrator"
        raise MeasurementError(f"RAPL: may not read {file}; {who} can: chmod a+r {file}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise MeasurementError(f"RAPL: cannot read {file}: {error}") from None
