"""Speed measurements against the goals: `python -m benchmarks`. See README.md."""
