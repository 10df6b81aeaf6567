"""``python -m qplan``."""

from qplan.cli import main

main()
