"""Fitted models as files: a zip archive of data with a header, never a pickle.

The archive holds ``header.json`` and one file a part. A part is plain JSON data, or a scikit-learn estimator in the
format of skops, which is data too: a tree of named types and arrays, of which only trusted types are made again. The
header tells format, versions, the features and rows that the model was fitted on, and the size and SHA-256 of every
part. Those find damage; they are no signature, so trust in a file's *numbers* is trust in whom it came from.

Estimators are read by the minor version of scikit-learn that wrote them, since what their attributes mean may change
with it. JSON parts have no such bond.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import NoneType
from typing import Any

from numpy.typing import NDArray

from qplan.core.errors import InputError, StoreError
from qplan.models.trusted import is_estimator, read_estimator, write_estimator

FORMAT = "qplan-model"
SCHEMA_VERSION = 1
HEADER = "header.json"
LARGEST_BYTES = 2 << 30  # a header that promises more is not believed
_LIBRARIES = ("qplan", "numpy", "scikit-learn", "skops")
_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "kind": str,
    "versions": dict,
    "features": list,
    "provenance": dict,
    "rows_sha256": (str, NoneType),
    "parts": dict,
}
# What zipfile raises on an archive that it did not write: RuntimeError where a flag says that it is encrypted.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, UnicodeDecodeError)
_ABOUT = {"file": str, "bytes": int, "sha256": str}


@dataclass(frozen=True, slots=True)
class Saved:
    """What a model file holds.

    Attributes
    ----------
    kind
        What the model is, as ``load-surrogate``; the reader asks for it.
    parts
        JSON data or estimators by name.
    features
        Names of the columns that the model takes, in order.
    provenance
        Where the rows came from, any JSON.
    rows_sha256
        Digest of the rows that the model was fitted on (:func:`digest`), or ``None`` where none was taken.
    versions
        Of qplan and the libraries that wrote the file.
    """

    kind: str
    parts: Mapping[str, Any]
    features: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    rows_sha256: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


def save(
    path: Path,
    kind: str,
    parts: Mapping[str, Any],
    *,
    features: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
    rows_sha256: str | None = None,
    trusted: Collection[str] = (),
) -> None:
    """Write a model; the file is there whole or not at all.

    Parameters
    ----------
    parts
        By name: what JSON can hold (finite numbers only), or a scikit-learn estimator.
    trusted
        Full names of further types that an estimator may hold; :func:`load` must be told the same.

    Raises
    ------
    InputError
        A part is neither, or holds what :func:`load` would refuse.
    StoreError
        The file cannot be written.
    """
    written = {name: _encoded(name, part, trusted) for name, part in parts.items()}
    header = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "versions": _versions(),
        "features": list(features),
        "provenance": dict(provenance or {}),
        "rows_sha256": rows_sha256,
        "parts": {
            name: {"file": file, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, (file, data) in written.items()
        },
    }
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        for file, data in ((HEADER, _json("header", header)), *written.values()):
            # A fixed time makes equal models equal files.
            opened.writestr(zipfile.ZipInfo(file, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    _write(path, archive.getvalue())


def load(path: Path, kind: str, *, trusted: Collection[str] = ()) -> Saved:
    """Read a model of `kind`.

    Parameters
    ----------
    trusted
        Full names of further types that its estimators may hold, for those who know where the file comes from.

    Raises
    ------
    InputError
        The file is not there, or holds a model of another kind.
    StoreError
        The file is no model of qplan's, is damaged, is of a newer qplan or another scikit-learn, or holds types that
        are not trusted.
    """
    try:
        with path.open("rb") as file:
            _check_magic(path, file.read(4))
        with zipfile.ZipFile(path) as opened:
            header = _header(path, opened)
            if header["kind"] != kind:
                raise InputError(f"{path}: holds a {header['kind']}; expected a {kind}")
            parts = {name: _part(path, opened, name, about, header, trusted) for name, about in header["parts"].items()}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a saved {kind}") from None
    except _DAMAGE as error:
        raise StoreError(f"{path}: damaged or cut short: {error}") from None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror or error}") from None
    return Saved(
        kind, parts, tuple(header["features"]), header["provenance"], header["rows_sha256"], header["versions"]
    )


def digest(*columns: NDArray[Any]) -> str:
    """Return the SHA-256 of arrays of numbers or text, by type, shape and content."""
    total = hashlib.sha256()
    for column in columns:
        total.update(f"{column.dtype.str}{column.shape}".encode())
        total.update(column.tobytes())
    return total.hexdigest()


def _encoded(name: str, part: Any, trusted: Collection[str]) -> tuple[str, bytes]:
    """Return the file name and the bytes of a part."""
    if not name.isidentifier() or f"{name}.json" == HEADER:
        raise InputError(f"part '{name}': expected a name of letters, digits and _, other than header")
    if is_estimator(part):
        return f"{name}.skops", write_estimator(f"part '{name}'", part, trusted)
    return f"{name}.json", _json(name, part)


def _json(name: str, data: Any) -> bytes:
    try:
        return json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"part '{name}' is neither an estimator nor what JSON can hold: {error}") from None


def _write(path: Path, data: bytes) -> None:
    """Write a temporary file beside `path`, then move it there."""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror or error}") from None


def _check_magic(path: Path, start: bytes) -> None:
    if start[:1] == b"\x80":
        raise StoreError(f"{path}: is a pickle, which can run any code when opened; qplan opens none. Fit again")
    if start[:2] != b"PK":
        raise StoreError(f"{path}: not a model saved by qplan (no zip archive)")


def _header(path: Path, opened: zipfile.ZipFile) -> dict[str, Any]:
    """Read and check the header."""
    if HEADER not in opened.namelist():
        raise StoreError(f"{path}: not a model saved by qplan (no {HEADER} inside)")
    header = _parsed(path, HEADER, _read(path, opened, HEADER))
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise StoreError(f"{path}: not a model saved by qplan ({HEADER} is another format's)")
    found = header.get("schema_version")
    if not isinstance(found, int) or found > SCHEMA_VERSION:
        raise StoreError(f"{path}: schema version {found} is newer than this qplan's {SCHEMA_VERSION}; upgrade")
    for name, kind in _FIELDS.items():
        if not isinstance(header.get(name), kind):
            raise StoreError(f"{path}: damaged: field '{name}' of {HEADER} is {header.get(name)!r}")
    files = {HEADER, *(about["file"] for about in header["parts"].values() if _describes(about))}
    if len(files) != len(header["parts"]) + 1 or files != set(opened.namelist()):
        raise StoreError(f"{path}: damaged: its files are not those that {HEADER} lists")
    return header


def _describes(about: Any) -> bool:
    return isinstance(about, dict) and all(isinstance(about.get(name), kind) for name, kind in _ABOUT.items())


def _part(
    path: Path,
    opened: zipfile.ZipFile,
    name: str,
    about: Mapping[str, Any],
    header: Mapping[str, Any],
    trusted: Collection[str],
) -> Any:
    data = _read(path, opened, about["file"])
    if len(data) != about["bytes"] or hashlib.sha256(data).hexdigest() != about["sha256"]:
        raise StoreError(f"{path}: part '{name}' was changed after it was written: its SHA-256 is another")
    if about["file"].endswith(".json"):
        return _parsed(path, about["file"], data)
    wrote = str(header["versions"].get("scikit-learn"))
    return read_estimator(f"{path}: part '{name}'", data, wrote, trusted)


def _read(path: Path, opened: zipfile.ZipFile, file: str) -> bytes:
    if opened.getinfo(file).file_size > LARGEST_BYTES:
        raise StoreError(f"{path}: {file} claims more than {LARGEST_BYTES >> 30} GiB; not a model saved by qplan")
    return opened.read(file)


def _parsed(path: Path, file: str, data: bytes) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        return json.loads(data, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: damaged: {file}: {error}") from None


def _versions() -> dict[str, str]:
    """Return the versions of qplan and of the libraries that are installed."""
    found = {}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
