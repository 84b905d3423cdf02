"""`ingot doctor`: whether this machine, the store and the clusters are ready, and what to do if not.
machine.py asks this machine and the store, ray_cluster.py Ray with its token, kubernetes.py the context of
the kubeconfig."""

from ingot.services.doctor.examine import examine
from ingot.services.doctor.finding import Finding

__all__ = ["Finding", "examine"]
