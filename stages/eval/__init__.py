"""Put the queries of the suites to a model, keep every raw reply, and score them.

Scoring re-reads the raw replies and needs no model: when only the parser or a scoring rule
changes, the replies of an earlier run of the same model and prompt are used again.

Reads: the output of quantize (or any model folder given with --data), `datasets/suites`.
Writes: per suite `replies.jsonl`, `scores.jsonl`, `summary.json`, `manifest.json`.
"""
