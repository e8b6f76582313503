"""Options and fixtures that several tests share."""

import os

import pytest

import graphc as gx

# Tests see the compiler, not what an earlier run left on disk; those of the cache make their own.
os.environ["GRAPHC_CACHE"] = "0"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the expected part of the golden files"
    )


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be rewritten instead of compared."""
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(autouse=True)
def fresh_seed() -> None:
    """Every test declares its parameters under the same seed, whatever ran before it."""
    gx.seed(0)


@pytest.fixture(params=["short", "long"])
def length(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Steps run with the GIL, or all without it."""
    from graphc import calls

    if request.param == "long":
        monkeypatch.setattr(calls, "LONG_NANOSECONDS", -1)
    return str(request.param)
