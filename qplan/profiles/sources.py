"""Observations from wherever they are kept: a store, or a pack."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qplan.profiles.packs import Pack, read_pack
from qplan.profiles.store import ProfileStore, is_store

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


def read_profiles(
    name: str,
    models: Collection[str] | None = None,
    columns: Sequence[str] | None = None,
    *,
    as_stored: bool = False,
) -> Pack:
    """Read a store by its URL or file, or a pack by its name or file.

    Parameters
    ----------
    models
        Keep only the rows of these models.
    columns
        Columns to return; all by default.
    as_stored
        Leave a shipped pack's values as they are stored (:func:`~qplan.profiles.packs.read_pack`).

    Raises
    ------
    InputError, StoreError
        There is no such store or pack, it cannot be read, or a column name is unknown.
    """
    if not is_store(name):
        return read_pack(name, models=models, columns=columns, as_stored=as_stored)
    with ProfileStore(name) as store:
        only = {} if models is None else {"model": list(models)}
        return Pack.of_store(str(store), store.read(columns, **only))
