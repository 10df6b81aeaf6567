import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import ExtraTreesRegressor, HistGradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from qplan.core.errors import InputError, QplanError, StoreError
from qplan.models.intervals.conformal import ConformalRegressor
from qplan.models.saved import HEADER, SCHEMA_VERSION, digest, load, save

X = np.random.default_rng(0).uniform(1, 9, (40, 3))
X[:, 1] = np.arange(40) % 8
Y = X[:, 0] ** 2 + X[:, 2]
POSITIVE = TransformedTargetRegressor(LinearRegression(), func=np.log, inverse_func=np.exp, check_inverse=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a saved model of a JSON part and an estimator."""
    file = tmp_path / "model.zip"
    parts = {"limits": {"low": [1.5, 2], "name": "é"}, "regressor": LinearRegression().fit(X, Y)}
    save(
        file,
        "load-surrogate",
        parts,
        features=("load", "code", "size"),
        provenance={"pack": "mine"},
        rows_sha256=digest(X, Y),
    )
    return file


def rewrite(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    with zipfile.ZipFile(path) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    change(files)
    with zipfile.ZipFile(path, "w") as opened:
        for name, data in files.items():
            opened.writestr(name, data)


def header(files: dict[str, bytes], **fields: Any) -> None:
    files[HEADER] = json.dumps({**json.loads(files[HEADER]), **fields}).encode()


def replace_part(files: dict[str, bytes], name: str, file: str, data: bytes) -> None:
    """Put another part there, with a header that agrees."""
    parts = json.loads(files[HEADER])["parts"]
    del files[parts[name]["file"]]
    parts[name] = {"file": file, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    files[file] = data
    header(files, parts=parts)


def test_reads_back_what_it_wrote(path: Path) -> None:
    saved = load(path, "load-surrogate")
    assert saved.parts["limits"] == {"low": [1.5, 2], "name": "é"}
    np.testing.assert_allclose(saved.parts["regressor"].predict(X), LinearRegression().fit(X, Y).predict(X), 1e-12)
    assert saved.features == ("load", "code", "size")
    assert saved.provenance == {"pack": "mine"}
    assert saved.rows_sha256 == digest(X, Y)
    assert {"qplan", "scikit-learn"} <= set(saved.versions)


@pytest.mark.parametrize(
    "estimator",
    [
        HistGradientBoostingRegressor(max_iter=5, monotonic_cst=[1, 0, 0]),
        ExtraTreesRegressor(5, random_state=0),
        GaussianProcessRegressor(RBF() + WhiteKernel(), optimizer=None),
        make_pipeline(FunctionTransformer(np.log1p), StandardScaler(), LinearRegression()),
        ConformalRegressor(HistGradientBoostingRegressor(max_iter=5), POSITIVE, folds=3),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_estimators_predict_the_same_again(estimator: Any, tmp_path: Path) -> None:
    save(tmp_path / "model", "any", {"it": estimator.fit(X, Y)})
    again = load(tmp_path / "model", "any").parts["it"]
    np.testing.assert_allclose(again.predict(X), estimator.predict(X), 1e-12)
    if isinstance(estimator, ConformalRegressor):
        assert (again.bounds(X).upper == estimator.bounds(X).upper).all()
        assert (again.upper_bound(X + np.array([0, 50, 0])) == estimator.upper_bound(X + np.array([0, 50, 0]))).all()


def test_equal_models_are_equal_files(path: Path, tmp_path: Path) -> None:
    save(tmp_path / "a", "k", {"n": [1, 2]})
    save(tmp_path / "b", "k", {"n": [1, 2]})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_digest_tells_rows_apart() -> None:
    assert digest(X, Y) == digest(X.copy(), Y.copy())
    others = [digest(X, Y + 1e-12), digest(X.T.copy(), Y), digest(Y, X), digest(np.array(["a", "b"]))]
    assert len({digest(X, Y), *others}) == 5


def test_another_kind_is_told(path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.zip: holds a load-surrogate; expected a power-model"):
        load(path, "power-model")


def test_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; expected a saved power-model"):
        load(tmp_path / "none", "power-model")
    with pytest.raises(StoreError, match="cannot be read"):
        load(tmp_path, "power-model")


class Bomb:
    """What a pickle would run."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_is_never_opened(tmp_path: Path, protocol: int) -> None:
    file = tmp_path / "model.pkl"
    file.write_bytes(pickle.dumps(Bomb(), protocol=protocol))
    with pytest.raises(StoreError, match="is a pickle" if protocol >= 2 else "not a model saved by qplan"):
        load(file, "any")


def test_a_pickle_as_a_part_is_never_opened(path: Path) -> None:
    rewrite(path, lambda files: replace_part(files, "regressor", "regressor.skops", pickle.dumps(Bomb())))
    with pytest.raises(StoreError, match="part 'regressor' is damaged or no estimator"):
        load(path, "load-surrogate")


def test_a_foreign_archive_is_told(tmp_path: Path) -> None:
    file = tmp_path / "other.zip"
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr("a.txt", "hello")
    with pytest.raises(StoreError, match=r"not a model saved by qplan \(no header.json inside\)"):
        load(file, "any")
    file.write_text("hello")
    with pytest.raises(StoreError, match=r"not a model saved by qplan \(no zip archive\)"):
        load(file, "any")
    file.write_bytes(b"")
    with pytest.raises(StoreError, match="not a model saved by qplan"):
        load(file, "any")


@pytest.mark.parametrize("kept", [0.05, 0.5, 0.95])
def test_a_cut_file_is_told(path: Path, kept: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(StoreError, match="damaged or cut short"):
        load(path, "load-surrogate")


def test_any_changed_byte_is_told_or_harmless(path: Path) -> None:
    data, whole = path.read_bytes(), load(path, "load-surrogate").parts["limits"]
    for at in range(0, len(data), 41):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        try:
            saved = load(path, "load-surrogate")
        except QplanError as error:
            assert "\n" not in str(error)
        else:
            assert saved.parts["limits"] == whole  # a byte of the archive's own bookkeeping


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: files.update({"limits.json": b"{}"}), "part 'limits' was changed after it was written"),
        (lambda files: files.pop("limits.json"), "its files are not those that header.json lists"),
        (lambda files: files.update({"more.json": b"{}"}), "its files are not those that header.json lists"),
        (lambda files: files.update({HEADER: b"{"}), "damaged: header.json"),
        (lambda files: files.update({HEADER: b"[" * 100_000}), "damaged: header.json"),
        (lambda files: files.update({HEADER: b"\xff"}), "damaged: header.json"),
        (lambda files: header(files, format="other"), "not a model saved by qplan"),
        (
            lambda files: header(files, schema_version=SCHEMA_VERSION + 1),
            "schema version 2 is newer than this qplan's 1",
        ),
        (lambda files: header(files, schema_version=None), "schema version"),
        (lambda files: header(files, parts=[]), "field 'parts' of header.json"),
        (lambda files: header(files, kind=None), "field 'kind' of header.json is None"),
        (lambda files: header(files, parts={"a": {"file": 1}}), "its files are not those"),
        (lambda files: replace_part(files, "limits", "limits.json", b"[NaN]"), "NaN is no number of JSON"),
        (lambda files: replace_part(files, "regressor", "regressor.skops", b"PK"), "part 'regressor' is damaged"),
    ],
)
def test_tampering_is_one_clear_line(path: Path, change: Callable[[dict[str, bytes]], None], message: str) -> None:
    rewrite(path, change)
    with pytest.raises(StoreError, match=message) as error:
        load(path, "load-surrogate")
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_another_scikit_learn_is_told(path: Path) -> None:
    rewrite(path, lambda files: header(files, versions={"scikit-learn": "0.24.2"}))
    with pytest.raises(
        StoreError, match=r"written with scikit-learn 0\.24\.2, this is .* pip install 'scikit-learn==0\.24"
    ):
        load(path, "load-surrogate")


def test_parts_of_json_alone_need_no_scikit_learn(tmp_path: Path) -> None:
    save(tmp_path / "model", "any", {"n": 1})
    rewrite(tmp_path / "model", lambda files: header(files, versions={}))
    assert load(tmp_path / "model", "any").parts == {"n": 1}


def strange(type_name: str) -> bytes:
    """Return a skops file of an estimator that holds an object of `type_name`."""
    import skops.io

    data = io.BytesIO(skops.io.dumps(LinearRegression().fit(X, Y)))
    with zipfile.ZipFile(data) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    schema = json.loads(files["schema.json"])
    schema["__module__"], _, schema["__class__"] = type_name.rpartition(".")
    files["schema.json"] = json.dumps(schema).encode()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return made.getvalue()


@pytest.mark.parametrize(
    "type_name",
    ["os.system", "builtins.eval", "qplan.models.saved.save", "qplan.models.saved.os", "qplan.models.nothing.Here"],
)
def test_types_that_are_not_trusted_are_refused(path: Path, type_name: str) -> None:
    rewrite(path, lambda files: replace_part(files, "regressor", "regressor.skops", strange(type_name)))
    with pytest.raises(StoreError, match=f"holds types that qplan does not trust: {type_name}"):
        load(path, "load-surrogate")


class Foreign(LinearRegression):  # type: ignore[misc]
    """An estimator of somebody else."""


def test_foreign_estimators_need_trust_on_both_sides(tmp_path: Path) -> None:
    name = f"{Foreign.__module__}.Foreign"
    with pytest.raises(InputError, match=f"part 'it' holds types that qplan does not trust: .*{name}"):
        save(tmp_path / "model", "any", {"it": Foreign().fit(X, Y)})
    assert not list(tmp_path.iterdir())
    save(tmp_path / "model", "any", {"it": Foreign().fit(X, Y)}, trusted=(name,))
    with pytest.raises(StoreError, match="does not trust"):
        load(tmp_path / "model", "any")


@pytest.mark.parametrize("part", [float("nan"), {1, 2}, np.arange(3), {"a": object()}])
def test_what_json_cannot_hold_is_refused(tmp_path: Path, part: Any) -> None:
    with pytest.raises(InputError, match="part 'it' is neither an estimator nor what JSON can hold"):
        save(tmp_path / "model", "any", {"it": part})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["header", "../up", "a b", ""])
def test_names_that_are_no_file_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"part '{name}': expected a name"):
        save(tmp_path / "model", "any", {name: 1})


def test_a_failed_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(StoreError, match="cannot be written: No space left on device"):
        save(path, "load-surrogate", {"n": 2})
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be written"):
        save(tmp_path / "none" / "model", "any", {"n": 2})
