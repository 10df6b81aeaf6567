"""Make the profile pack ``trtllm-composed`` from kernel measurements that the package aiconfigurator carries.

::

    request ──► workers ─────────────────► isotonic ──► rows ──► pack
    what to     one process a GPU, in an   times that            Parquet
    compose     environment of its own,    rise                  and card
                sums kernel times

Run ``python -m qplan.profiles.compose --out qplan/profiles/packs``. Only the module
:mod:`~qplan.profiles.compose.worker` knows aiconfigurator, and it runs in an environment of its own, because that
package pins an old numpy.
"""
