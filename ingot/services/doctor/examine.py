"""All checks, in the order in which a run needs what they look at."""

from __future__ import annotations

from ingot.services.doctor import kubernetes, machine, ray_cluster
from ingot.services.doctor.finding import Finding


def examine(store_uri: str, dashboard: str | None = None) -> list[Finding]:
    """Everything that a run, sending one to a cluster, or serving its model, will need. `dashboard` is the
    address that `ingot submit --to` takes. Writes one small object into the store and deletes it; starts
    nothing."""
    return [
        *machine.examine(store_uri),
        *ray_cluster.examine(dashboard),
        *kubernetes.examine(),
    ]
