"""Importers: what people have measured with other tools, read as observations.

One module a format, each with a function ``read(path, given)`` that returns a table; other distributions add
theirs through the entry-point group ``qplan.importers``. A result file rarely says on which GPU, with which
quantization and how many GPUs it was made: the user says so, in :class:`Given`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplan.core.errors import InputError, QplanError, nearest
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.quantization import Quantization
from qplan.profiles.observations import conform, one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

ENTRY_POINT_GROUP = "qplan.importers"
SHIPPED = ("vllm", "guidellm", "aiperf", "csv", "parquet")

_FLAGS = {
    "model": "--model NAME",
    "quantization": "--quant NAME",
    "gpu": "--gpu NAME",
    "tp": "--tp N",
    "engine": "--engine NAME",
    "engine_version": "--engine-version VERSION",
}


@dataclass(frozen=True, slots=True)
class Given:
    """What the user says of a file, beside what stands in it; what is said here wins.

    Attributes
    ----------
    repeat
        Number of the repetition, where one point was measured several times.
    column_map
        For CSV: ``SOURCE=COLUMN`` or ``SOURCE=COLUMN:UNIT`` for each column to rename or convert.
    """

    model: str | None = None
    quantization: str | None = None
    gpu: str | None = None
    tp: int | None = None
    engine: str | None = None
    engine_version: str | None = None
    workload: str | None = None
    repeat: int = 0
    column_map: tuple[str, ...] = ()

    def complete(self, row: Mapping[str, Any], source: str) -> dict[str, Any]:
        """Fill in what a row lacks and spell its names as the catalogues do.

        Raises
        ------
        InputError
            Neither the file nor a flag says a name that every row needs, or a name is unknown.
        """
        said = {name: getattr(self, name) for name in (*_FLAGS, "workload")}
        full = {
            "phase": "serving",
            "status": "ok",
            "provenance": "measured",
            "source": source,
            "repeat": self.repeat,
            **{name: value for name, value in row.items() if value is not None},
            **{name: value for name, value in said.items() if value is not None},
        }
        missing = [name for name in _FLAGS if name not in full]
        if missing:
            words = ", ".join(name.replace("_", " ") for name in missing)
            raise InputError(f"{source}: does not say the {words}; add {' '.join(_FLAGS[name] for name in missing)}")
        full["model"] = _catalogue_name(str(full["model"]))
        full["quantization"] = str(Quantization.parse(str(full["quantization"]), "--quant"))
        full["gpu"] = Gpu.named(str(full["gpu"]), "--gpu").name
        return full


Importer = Callable[[Path, Given], "pa.Table"]
"""Reads one file as a table of observations; what it raises on purpose is a :class:`QplanError`."""


def read_file(path: Path, format_name: str, given: Given) -> pa.Table:
    """Read a result file of another tool as a validated table of observations.

    Parameters
    ----------
    path
        The file.
    format_name
        ``vllm``, ``guidellm``, ``aiperf``, ``csv``, ``parquet`` or one that another distribution adds.
    given
        What the user says of the file.

    Raises
    ------
    InputError
        The format is unknown; the file is not of that format, holds impossible values, or lacks something.
    """
    importer = _importer(format_name)
    try:
        table = importer(path, given)
    except OSError as error:
        raise InputError(f"{path}: cannot read: {error.strerror or one_line(error)}") from None
    if not table.num_rows:
        raise InputError(f"{path}: holds no results")
    return conform(table, str(path))


def formats() -> tuple[str, ...]:
    """Return the names of every format, the shipped ones first."""
    return (*SHIPPED, *sorted(set(_plugins()) - set(SHIPPED)))


def _importer(format_name: str) -> Importer:
    """Find the importer of a format."""
    if format_name in SHIPPED:
        shipped: Importer = import_module(f"{__name__}.{format_name}").read
        return shipped
    if format_name not in formats():
        raise InputError(
            f"--format: unknown format '{format_name}'; expected one of {', '.join(formats())}"
            f"{nearest(format_name, formats())}"
        )
    try:
        plugin: Importer = _plugins()[format_name].load()
    except QplanError:
        raise
    except Exception as error:
        raise InputError(f"--format: importer '{format_name}' cannot be loaded: {one_line(error)}") from error
    return plugin


@cache
def _plugins() -> dict[str, Any]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}


def _catalogue_name(model: str) -> str:
    """Return the catalogue's name of a model, or the name as given: a store may hold any model."""
    try:
        return Model.named(model).name
    except QplanError:
        return model
