"""The study in its storage: an ordinary Optuna study, which `optuna-dashboard` opens and Optuna's API continues."""

from __future__ import annotations

import json
import re
import sqlite3
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplan.core.errors import InputError, StoreError, nearest
from qplan.solvers.tuning.tunefile import Tuning, parse_tuning

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

    from qplan.solvers.tuning.stopping import Outlook

DEFAULT_STORAGE = "tuning.db"
JOURNALS = (".journal", ".log")

# What qplan keeps beside Optuna's own: of a study ...
TEXT, SOURCE, ASKS = "qplan:tuning", "qplan:source", "qplan:asks"
REFUSED, OUTLOOK = "qplan:refused", "qplan:outlook"
# ... and of a trial.
CONFIGURATION, MEASURED, GPU_HOURS = "configuration", "measured", "gpu_hours"
BOUNDS, AT_BEST = "bounds", "at_best"
INFEASIBLE, REASON = "infeasible", "reason"

_OPENED_AGAIN = 8
_MADE_MEANWHILE = re.compile(r"already exists|duplicate key|UNIQUE constraint|locked", re.IGNORECASE)


def is_storage(file: str) -> bool:
    """Whether a file is an Optuna storage; it is only looked at."""
    if file.endswith(JOURNALS):
        return True
    try:
        with closing(sqlite3.connect(f"{Path(file).absolute().as_uri()}?mode=ro", timeout=60, uri=True)) as database:
            return bool(database.execute("SELECT 1 FROM sqlite_master WHERE name = 'studies'").fetchone())
    except sqlite3.Error:
        return False


def open_storage(url: str) -> BaseStorage:
    """Open an Optuna storage.

    Parameters
    ----------
    url
        SQLAlchemy URL (``sqlite:///tuning.db``, ``postgresql+psycopg://host/name``), ``journal:FILE``, or the name of a
        file: SQLite, or a journal where it ends in ``.journal`` or ``.log``.

    Raises
    ------
    InputError, StoreError
        Optuna or the database's driver is not installed; the storage cannot be opened.
    """
    try:
        import optuna
    except ImportError:
        raise InputError("tuning needs Optuna: pip install 'qplan[tune]'") from None
    import sqlalchemy as sa

    journal = url.removeprefix("journal:").removeprefix("//") if url.startswith("journal:") else None
    if "://" not in url and url.endswith(JOURNALS):
        journal = journal or url
    try:
        if journal is not None:
            from optuna.storages.journal import JournalFileBackend

            return optuna.storages.JournalStorage(JournalFileBackend(journal))
        address = url if "://" in url else f"sqlite:///{url}"
        options: dict[str, Any] = {"pool_pre_ping": True}
        if address.startswith("sqlite"):
            options["connect_args"] = {"timeout": 60}  # seconds that a writer waits for another
        return _open_database(address, options)
    except ImportError:
        raise InputError(f"--storage: {_shown(url)}: its driver is missing: pip install 'qplan[postgres]'") from None
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError) as error:
        raise InputError(f"--storage: '{_shown(url)}': {error}; expected such as sqlite:///tuning.db") from None
    except (sa.exc.SQLAlchemyError, OSError, RuntimeError) as error:
        said = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise StoreError(f"--storage: {_shown(url)}: {said}") from None


def everywhere(url: str) -> str:
    """Return a storage as processes in other folders find it: files by their whole path."""
    if url.startswith("journal:"):
        return f"journal:{Path(url.removeprefix('journal:').removeprefix('//')).absolute()}"
    if url.startswith("sqlite:///"):
        return f"sqlite:///{Path(url.removeprefix('sqlite:///')).absolute()}"
    return url if "://" in url else str(Path(url).absolute())


@contextmanager
def storage_at(url: str) -> Iterator[BaseStorage]:
    """Open an Optuna storage as :func:`open_storage` does, and close its connections in the end."""
    storage = open_storage(url)
    try:
        yield storage
    finally:
        storage.remove_session()
        engine = getattr(storage, "engine", None)
        if engine is not None:
            engine.dispose()


def _open_database(address: str, options: dict[str, Any]) -> BaseStorage:
    """Open a database; workers that start together all make its tables, and all but one have to look again."""
    import optuna
    import sqlalchemy as sa

    for attempt in range(_OPENED_AGAIN):
        try:
            return optuna.storages.RDBStorage(address, engine_kwargs=options)
        except (sa.exc.IntegrityError, sa.exc.ProgrammingError, sa.exc.OperationalError) as error:
            if not _MADE_MEANWHILE.search(str(error)):
                raise
            time.sleep(0.2 * (attempt + 1))
    return optuna.storages.RDBStorage(address, engine_kwargs=options)


def start_study(tuning: Tuning, storage: BaseStorage, source: str, sampler: BaseSampler | None = None) -> Study:
    """Create the study of a tuning file, or go on with it.

    Parameters
    ----------
    source
        What measures: the name of a table, or ``measured``.

    Raises
    ------
    InputError
        The storage has a study of that name which asks for something else.
    """
    import optuna

    direction = optuna.study.StudyDirection
    directions = [direction.MAXIMIZE if one.maximize else direction.MINIMIZE for one in tuning.objectives]
    asks = asked_of(tuning)
    known = next((s for s in optuna.get_all_study_summaries(storage) if s.study_name == tuning.name), None)
    if known is not None and ASKS not in known.user_attrs and known.n_trials:
        raise InputError(f"the storage has a study '{tuning.name}' that is not qplan's; give this one another name")
    if known is not None and ASKS in known.user_attrs:
        before = known.user_attrs[ASKS]
        changed = next((key for key in asks if asks[key] != before.get(key)), None)
        if changed is not None:
            raise InputError(
                f"study '{tuning.name}' in the storage asks for other {changed}; give this one another name, "
                "or another storage"
            )
        if known.user_attrs[SOURCE] != source:
            raise InputError(
                f"study '{tuning.name}' reads {known.user_attrs[SOURCE]}, not {source}; give this one another name"
            )
    study = optuna.create_study(
        study_name=tuning.name, storage=storage, directions=directions, sampler=sampler, load_if_exists=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([one.name for one in tuning.objectives])
    for key, value in ((TEXT, tuning.text), (SOURCE, source), (ASKS, asks)):
        study.set_user_attr(key, value)
    return study


def load_study(storage: BaseStorage, name: str | None) -> tuple[Study, Tuning]:
    """Load a study that qplan started; `name` may be left out where there is one.

    Raises
    ------
    InputError
        There is no such study.
    """
    import optuna

    summaries = [one for one in optuna.get_all_study_summaries(storage) if TEXT in one.user_attrs]
    names = [one.study_name for one in summaries]
    if name is None and len(names) != 1:
        raise InputError(
            f"--study: the storage has {', '.join(names)}; say which"
            if names
            else "the storage has no study of qplan tune"
        )
    wanted = names[0] if name is None else name
    if wanted not in names:
        raise InputError(
            f"--study: no study '{wanted}'; the storage has {', '.join(names) or 'none'}{nearest(wanted, names)}"
        )
    study = optuna.load_study(study_name=wanted, storage=storage)
    return study, parse_tuning(str(study.user_attrs[TEXT]), f"study {wanted}")


def asked_of(tuning: Tuning) -> dict[str, Any]:
    """Return all that makes results comparable, as JSON values: with another of these it is another study."""
    space, conditions = tuning.space, tuning.conditions
    document = {
        "parameters": {name: list(values) for name, values in space.choices.items()},
        "models": [[m.name, m.weights, m.context_tokens, m.max_sequences, dict(m.checkpoints)] for m in space.models],
        "conditions": [[dict(rule.when), dict(rule.only)] for rule in space.conditions],
        "objectives": [[one.name, one.maximize] for one in tuning.objectives],
        "limits": [[limit.objective.name, limit.worst] for limit in tuning.limits],
        "loads": [
            conditions.workload,
            [str(slo) for slo in conditions.slos],
            conditions.qps,
            conditions.share,
            conditions.arrivals,
            conditions.attainment,
            conditions.duration_s,
            conditions.warm_up_s,
        ],
    }
    return dict(json.loads(json.dumps(document)))


def keep_outlook(study: Study, outlook: Outlook) -> None:
    """Keep with the study what its sampler expects of the rest, and what it will not measure."""
    study.set_user_attr(
        OUTLOOK,
        {
            "next_gain": outlook.next_gain,
            "left": outlook.left,
            "left_upper": outlook.left_upper,
            "remaining": outlook.remaining,
            "skipped": [[one.id, one.probability] for one in outlook.skipped],
        },
    )


def finished(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that measured all objectives."""
    from optuna.trial import TrialState

    return [trial for trial in trials if trial.state == TrialState.COMPLETE]


def is_infeasible(trial: FrozenTrial) -> bool:
    """Whether a trial found that its configuration cannot run."""
    return INFEASIBLE in trial.user_attrs


def configuration_of(trial: FrozenTrial) -> str | None:
    """Return the configuration that a trial holds; ``None`` while it chooses."""
    name = trial.user_attrs.get(CONFIGURATION)
    return None if name is None else str(name)


def measured_of(trial: FrozenTrial) -> Mapping[str, float]:
    """Return what a trial has measured, by objective, also where it did not get to the end."""
    return dict(trial.user_attrs.get(MEASURED, {}))


def _shown(url: str) -> str:
    """Return a URL without its password."""
    import sqlalchemy as sa

    try:
        return sa.make_url(url).render_as_string()
    except sa.exc.ArgumentError:
        return url
