"""Tests that cannot run are skipped here, and are failures where CI says what must be there."""

import pytest
from required import do_without, required


@pytest.mark.parametrize("named", ["browser", "ray browser", "browser,ray"])
def test_what_is_required_and_missing_is_a_failure_and_no_skip(monkeypatch, named):
    monkeypatch.setenv("HAQ_ENV_REQUIRE", named)
    with pytest.raises(pytest.fail.Exception, match="HAQ_ENV_REQUIRE names browser, but it is not"):
        do_without("browser", "it is not installed")


@pytest.mark.parametrize("named", ["", "ray"])
def test_what_is_not_required_and_missing_is_a_skip(monkeypatch, named):
    monkeypatch.setenv("HAQ_ENV_REQUIRE", named)
    with pytest.raises(pytest.skip.Exception, match="it is not installed"):
        do_without("browser", "it is not installed")


def test_a_requirement_that_nobody_knows_is_told_and_not_passed_over(monkeypatch):
    monkeypatch.setenv("HAQ_ENV_REQUIRE", "browsers")
    with pytest.raises(pytest.fail.Exception, match="browsers"):
        required("ray")
