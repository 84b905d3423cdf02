"""Ray Serve's own gRPC server in each replica, bound to loopback on a cluster that is bound there.

Ray Serve 2.60 lets it listen on all addresses, with no option to change that. The function that opens its
port is private: this file alone imports it."""

from __future__ import annotations

from typing import Any

LOOPBACK = "127.0.0.1"


def bind_replica_server() -> None:
    """Called in a replica's process before Ray Serve opens the port, which is once the application is built.
    Does nothing where the node has another address than the loopback's: other nodes must reach the port."""
    from ray.serve._private import replica
    from ray.util import get_node_ip_address

    if get_node_ip_address() != LOOPBACK:
        return
    add_port = replica.add_port_to_grpc_server

    def add_loopback_port(server: Any, address: str) -> int:
        return int(add_port(server, address.replace("[::]", LOOPBACK)))

    replica.add_port_to_grpc_server = add_loopback_port
