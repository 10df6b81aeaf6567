"""What runs a plan: launch commands, compose files, Kubernetes manifests and the routing table."""

from qplan.report.deploy.launches import Launches, ReplicaSet, Route, read_launches
from qplan.report.deploy.written import KINDS, write_deployment

__all__ = ["KINDS", "Launches", "ReplicaSet", "Route", "read_launches", "write_deployment"]
