"""What benchmarks compare with: each peer in an environment and a process of its own.

`environment` makes the one and talks to the other; every other file is run by a peer's own Python."""
