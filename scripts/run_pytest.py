"""pytest; under CI (`CI` is set) a test that is skipped has failed.

On a developer's machine a test may be left out for want of something. CI has everything, so
a skip there means that something is not tested any more, and nobody would notice.
"""

import os
import sys
from collections.abc import Iterator

import pytest


class NoSkips:
    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Iterator[None]:
        report = yield
        if report.skipped and not hasattr(report, "wasxfail"):
            report.outcome = "failed"
            report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"
        return report


# As `python -m pytest` has it.
sys.path[0] = os.getcwd()
sys.exit(pytest.main(plugins=[NoSkips()] if os.environ.get("CI") else []))
