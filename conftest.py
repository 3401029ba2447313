"""What holds for every test: in CI mode (CI=true) a test that is skipped or expected to fail fails the run.

A test that needs what CI does not have carries a marker of `pyproject.toml` and is deselected there, so that nothing
is passed over silently.
"""

from __future__ import annotations

import os

import pytest

_passed_over: list[str] = []


def _note(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped:  # xfail reports as skipped too
        _passed_over.append(report.nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note a test that was skipped while it was set up or ran."""
    _note(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Note a module that was skipped whole."""
    _note(report)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Turn a pass into a failure when CI passed something over."""
    if os.environ.get("CI") == "true" and _passed_over and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why a run without failed tests fails."""
    if os.environ.get("CI") == "true" and _passed_over:
        terminalreporter.section("passed over, and CI allows none")
        for nodeid in _passed_over:
            terminalreporter.line(nodeid)
