"""Make the profile pack ``trtllm-composed`` from kernel measurements that the package aiconfigurator carries.

::

    request ──► environment ──► worker (one process a GPU) ──► grid ──► pack: Parquet and JSON card
    what to     aiconfigurator   sums kernel times into         monotone
    compose     of its own       iteration times

Run ``python -m qplan.profiles.compose --out qplan/profiles/packs``. Only :mod:`~qplan.profiles.compose.worker` knows
aiconfigurator, and it runs in an environment of its own, because that package pins an old numpy.
"""
