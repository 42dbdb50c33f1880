"""Kernels compiled ahead of time, with no GPU. Triton cannot compile in a process that has chosen to interpret."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    raise pytest.UsageError("tests/aot cannot run where TRITON_INTERPRET=1: pytest tests/aot, without it")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A line a kernel: what it needs of its card."""
    lines = sorted(
        str(value) for report in terminalreporter.getreports("passed") for name, value in report.user_properties if name == "kernel"
    )
    terminalreporter.write_line("card    kernel                            shared  registers  spilled")
    for line in lines:
        card, kernel, shared, registers, spills = line.split()
        terminalreporter.write_line(f"{card:<8}{kernel:<34}{shared:>6}{registers:>11}{spills:>9}")
