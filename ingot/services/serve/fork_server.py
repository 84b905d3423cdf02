"""What the fork server of a replica preloads first: from then on it ends with the replica, and the engine's
process with it. Importing this module anywhere else would tie that process to its parent."""

from ingot.pipelines.lifetime import tie_fork_server

tie_fork_server()
