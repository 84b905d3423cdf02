"""What the doctor says of one thing."""

from __future__ import annotations

from dataclasses import dataclass

from ingot.errors import IngotError


@dataclass(frozen=True)
class Finding:
    """One thing that was checked. `mend` says what to do where it is not well."""

    name: str
    well: bool
    found: str
    mend: str = ""


def finding(name: str, well: bool, found: str, mend: str) -> Finding:
    """`mend` counts only where it is not well."""
    return Finding(name, well, found, "" if well else mend)


def problem(name: str, error: IngotError) -> Finding:
    """From an error for people, whose last part is the mend."""
    found, _, mend = str(error).rpartition("; ")
    return Finding(name, False, found, mend)
