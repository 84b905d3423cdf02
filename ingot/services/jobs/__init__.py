"""Runs on a cluster: sending one through Ray's Jobs API, following it, stopping it. `api` speaks with the
cluster, `package` makes what is sent, `submit` decides which attempt it is, `output` keeps what a job prints
in the store."""
