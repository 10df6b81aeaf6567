"""The vocabulary of qplan: frozen dataclasses, units parsed and printed at the edges, no heavy imports."""

from qplan.core.deployment import Deployment, Memory
from qplan.core.errors import InfeasibleError, InputError, MeasurementError, QplanError, StoreError
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.plan import Plan, Prediction, ReplicaGroup
from qplan.core.provenance import Provenance
from qplan.core.quantization import Quantization
from qplan.core.slo import Slo
from qplan.core.workload import LengthBucket, Workload

__all__ = [
    "Deployment",
    "Gpu",
    "InfeasibleError",
    "InputError",
    "LengthBucket",
    "MeasurementError",
    "Memory",
    "Model",
    "Plan",
    "Prediction",
    "Provenance",
    "QplanError",
    "Quantization",
    "ReplicaGroup",
    "Slo",
    "StoreError",
    "Workload",
]
