"""Ratio of medians of each group of benchmarks that has a plain and an sp_fast version."""

import pytest


def versions(target: float):
    """Run a benchmark as `version` "plain", what one would write in PyTorch, and "sp_fast", in one group.

    Args:
        target: how many times as fast as plain it is to be.
    """

    def mark(test):
        test = pytest.mark.parametrize("version", ["plain", "sp_fast"])(test)
        group = f"{test.__name__.removeprefix('test_')} (target {target:g})"
        return pytest.mark.benchmark(
            group=group, warmup=True, warmup_iterations=10, min_rounds=15, max_time=1.5
        )(test)

    return mark


def pytest_terminal_summary(terminalreporter, config):
    medians: dict[str, dict[str, float]] = {}
    for done in getattr(getattr(config, "_benchmarksession", None), "benchmarks", []):
        version = (done.params or {}).get("version")
        if version and done.stats.rounds:
            medians.setdefault(done.group, {})[version] = done.stats.median
    for group, of in medians.items():
        if {"plain", "sp_fast"} <= of.keys():
            plain, ours = of["plain"] * 1e3, of["sp_fast"] * 1e3
            terminalreporter.write_line(
                f"{group}: plain {plain:.3f} ms, sp_fast {ours:.3f} ms, {plain / ours:.2f} times as fast"
            )
