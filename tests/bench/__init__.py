"""Benchmarks beside stock tools: `nox -s bench -- train`, `-- eval` and `-- convert`."""
