"""The command ``qplan`` with short energy windows: IDLE_S PREFILL_S, then the command's own arguments."""

from __future__ import annotations

import sys

from qplan.cli import main
from qplan.measure.campaign import phases, rig

if __name__ == "__main__":
    rig.IDLE_S, phases.PREFILL_S = map(float, sys.argv[1:3])
    sys.argv = ["qplan", *sys.argv[3:]]
    main()
