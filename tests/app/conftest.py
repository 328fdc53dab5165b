"""One page for all its tests, which stay on one worker."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from tests.app.served import make, page


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return make(tmp_path_factory.mktemp("app"))


@pytest.fixture(scope="session")
def address(parts: SimpleNamespace) -> Iterator[str]:
    with page(parts) as found:
        yield found


@pytest.hookimpl(tryfirst=True)  # before tests/conftest.py gives each module a worker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "address" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("page"))
