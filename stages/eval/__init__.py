"""Put the queries of the suites to a model, keep every raw reply, and score them.

The model is one in this process, one behind a server (--endpoint), or replies from a file. Scoring re-reads
raw replies and needs no model: those of an earlier run of the same model, prompt and sampling are used again.

Reads: the output of quantize (or any model folder given with --data), `datasets/suites`.
Writes: per suite `replies.jsonl`, `scores.jsonl`, `codes.jsonl` (what came of running the code of calls),
`summary.json`, `manifest.json`; of a sweep the same for every draw, and `sweep.json`; beside them, in
`artifacts/MODEL/replies`, what later runs use again.
"""
