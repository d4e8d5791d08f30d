"""Write the verdict and all that it rests on as Markdown and JSON.

The report is a pure function of JSON records: no model is loaded and nothing is computed twice.
Without --model it writes every report for which there are results: the published figures of the
first experiment, and each model with an evaluation below `artifacts`.

Reads: `reports/recorded/*.json`; of the model: the outputs of eval and audit, and the logs and
manifests of the other stages; of the reference model: the output of eval, where there is one.
Writes: `reports/NAME.md`, `reports/NAME.json` (a Verdict record) and, where something was trained,
`reports/NAME-loss.svg`, over its own earlier ones alone.
"""
