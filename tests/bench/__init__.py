"""Benchmarks beside stock mlx-lm: `nox -s bench -- train` and `nox -s bench -- eval`."""
