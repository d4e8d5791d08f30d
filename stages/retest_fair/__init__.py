"""Run the whole experiment: every arm through every stage, then the report.

Each stage runs as its own process in its own environment. What two arms share is done once, and
what is up to date is not done again, so the same command goes on where it was stopped. Outputs that
were made with other settings are named before any work is begun.

`--seeds 0,1,2` does it with each seed. The report shows how far the seeds lie apart; its verdict is
about the first of them, and it says when another one would have led to another answer.

Reads: the data (`--data`, default: the shipped corpus) and the base model.
Writes: all stage outputs below `artifacts/` (`--out` names another place), one log file of the
run below `artifacts/logs/`, `reports/MODEL.md`.
"""
