"""Prints the ratio of medians for each group of benchmarks with a plain and an sp_fast version."""


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
                f"{group}: plain {plain:.3f} ms, sp_fast {ours:.3f} ms, speed-up {plain / ours:.2f}"
            )
