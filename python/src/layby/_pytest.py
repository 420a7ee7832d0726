"""The pytest plugin: the fixture `layby_fetches`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from layby.testing import Fetches


@pytest.fixture
def layby_fetches() -> Iterator[Fetches]:
    """Answers for the fetches of this test; a fetch without one fails it."""
    with Fetches() as fetches:
        yield fetches
