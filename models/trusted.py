"""Estimators as data: the format of skops, of which only types that are known to be harmless are made again.

Trusted are scikit-learn's own estimators (by skops), the arrays of their trees and their kernels, and the estimators
and dataclasses of :mod:`qplan.models`. Making one runs no code but theirs. Others are refused unless the caller names
them.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Collection, Sequence
from dataclasses import is_dataclass
from importlib.metadata import version
from typing import Any

from qplan.core.errors import InputError, StoreError

_KERNELS = ("ConstantKernel", "DotProduct", "Matern", "Product", "RBF", "RationalQuadratic", "Sum", "WhiteKernel")
_PARTS = (
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
    *(f"sklearn.gaussian_process.kernels.{kernel}" for kernel in _KERNELS),
)
_OWN = "qplan.models."


def is_estimator(part: Any) -> bool:
    """Return whether `part` follows scikit-learn's contract."""
    return hasattr(part, "get_params") and hasattr(part, "fit")


def write_estimator(name: str, estimator: Any, trusted: Collection[str] = ()) -> bytes:
    """Return an estimator as bytes of skops.

    Raises
    ------
    InputError
        It holds a type that :func:`read_estimator` would refuse; `name` is told.
    """
    skops = _skops()
    data: bytes = skops.dumps(estimator)
    strange = _strange(skops.get_untrusted_types(data=data), trusted)
    if strange:
        raise InputError(f"{name} holds types that qplan does not trust: {', '.join(strange)}")
    return data


def read_estimator(name: str, data: bytes, wrote: str, trusted: Collection[str] = ()) -> Any:
    """Return the estimator that `data` describes.

    Parameters
    ----------
    name
        What is read, for messages.
    wrote
        The version of scikit-learn that wrote it.
    trusted
        Full names of further types that may be made.

    Raises
    ------
    StoreError
        It was written by another minor version of scikit-learn, holds a type that is not trusted, or is damaged.
    """
    skops = _skops()
    here = version("scikit-learn")
    if _minor(here) != _minor(wrote):
        raise StoreError(
            f"{name} was written with scikit-learn {wrote}, this is {here}: fit again, or pip install "
            f"'scikit-learn=={_minor(wrote)}.*'"
        )
    try:
        found = skops.get_untrusted_types(data=data)
        strange = _strange(found, trusted)
        if not strange:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # another patch version of scikit-learn
                return skops.loads(data, trusted=found)
    except Exception as error:  # whatever skops and scikit-learn stumble over in a tree that they did not write
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise StoreError(f"{name} is damaged or no estimator: {why}") from None
    raise StoreError(f"{name} holds types that qplan does not trust: {', '.join(strange)}")


def _strange(types: Sequence[str], trusted: Collection[str]) -> list[str]:
    """Return those of the types that neither skops nor qplan nor the caller trusts."""
    return [name for name in types if name not in _PARTS and name not in trusted and not _is_own(name)]


def _is_own(name: str) -> bool:
    """Return whether a name is that of an estimator or a dataclass of qplan's models."""
    if not name.startswith(_OWN):
        return False
    from sklearn.base import BaseEstimator

    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError:
        return False
    return (
        isinstance(found, type)
        and found.__module__ == module
        and (issubclass(found, BaseEstimator) or is_dataclass(found))
    )


def _minor(of: str) -> str:
    return ".".join(of.split(".")[:2])


def _skops() -> Any:
    try:
        import skops.io
    except ModuleNotFoundError:
        raise InputError("saved estimators need skops and scikit-learn: pip install 'qplan[models]'") from None
    return skops.io
