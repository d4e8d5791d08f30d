"""Benchmarks beside stock tools: `nox -s bench -- train`, scaling, eval, parity and convert."""
