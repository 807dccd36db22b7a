"""What tests may do without, and what must be there where ``HAQ_ENV_REQUIRE`` names it.

A test that is skipped says nothing, and nobody reads that it was. So where all of it is expected,
``HAQ_ENV_REQUIRE="browser ray"`` makes a missing browser or Ray a failure.
"""

import os

import pytest

KNOWN = ("browser", "ray")


def required(name: str) -> bool:
    """Tell whether tests that need it must run here."""
    wanted = os.environ.get("HAQ_ENV_REQUIRE", "").replace(",", " ").split()
    unknown = set(wanted) - set(KNOWN)
    if unknown:
        pytest.fail(f"HAQ_ENV_REQUIRE names {sorted(unknown)}, and knows only {KNOWN}")
    return name in wanted


def do_without(name: str, reason: str) -> None:
    """Skip a test for what is missing, or fail it where that is required."""
    if required(name):
        pytest.fail(f"HAQ_ENV_REQUIRE names {name}, but {reason}")
    pytest.skip(reason)
