"""Ingot: raw text in, a served and aligned language model out, on any Ray cluster.

`model/` is what is trained, `pipelines/` turns objects into objects, `services/` is what people talk to;
imports only point down that list."""

__version__ = "0.1.0"
