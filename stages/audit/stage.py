"""The stage: every check over one arm's set-up."""

from __future__ import annotations

from pathlib import Path

# Importing a module of checks registers them.
from stages.audit import config, coverage, data, plan, template, tokenizer  # noqa: F401
from stages.audit.registry import CHECKS, run_checks
from stages.audit.report import describe_audit, write_markdown
from stages.audit.subject import load_subject
from stages.core.artifact import (
    build_artifact,
    fingerprint_json,
    fingerprint_model,
    is_current,
    require_artifact,
)
from stages.core.cli import Options, Outcome, artifacts_root
from stages.core.models import find_model
from stages.core.platform import require_disk
from stages.core.prompts import query_row
from stages.core.records import AuditReport, Recipe, read_record, write_record
from stages.core.suite import load_suites
from stages.core.tokenizer import read_template, template_hash

AUDIT_VERSION = 4  # raised by every change that can change a finding
REPORT = "audit.json"
MODEL_SETTINGS = {"dialect", "legacy_dialect", "chat_template", "system", "billions"}


def audit(options: Options) -> Outcome:
    """Audit one arm. Critical findings are no error: they decide what a verdict may say."""
    rows, target = options.input("convert_data"), options.output("audit")
    converted = require_artifact(rows, "convert_data", options.advice("convert_data"))
    base = find_model(options.preset, artifacts_root())
    recipe = make_recipe(options, converted.content, base)
    if is_current(target, recipe, force=options.force):
        return _outcome(target, read_record(target / REPORT, AuditReport), up_to_date=True)
    require_disk(target, 0.001, "the audit")
    subject = load_subject(options, rows, base)
    report = AuditReport(
        model=options.preset.name, arm=options.arm, checks=list(CHECKS), findings=run_checks(subject)
    )
    with build_artifact(target, recipe, given=options.given) as build:
        write_record(build.folder / REPORT, report)
        (build.folder / "audit.md").write_text(write_markdown(report), "utf-8")
        build.facts |= {"turn_ends": subject.turn_ends}
        build.template, build.stop_ids = template_hash(subject.tokenizer), subject.plan.stops
    return _outcome(target, report)


def make_recipe(options: Options, rows: str, base: Path) -> Recipe:
    """All that decides the findings: rows, model, plan, prompt, suites."""
    preset = options.preset
    named = preset.model.chat_template
    suites = [suite.model_dump(mode="json") for suite in load_suites(preset.eval.suites)]
    return Recipe(
        stage="audit",
        settings={
            "version": AUDIT_VERSION,
            "fixes": list(options.fixes),
            "model": preset.model.model_dump(include=MODEL_SETTINGS),
            "max_seq_length": preset.train.max_seq_length,
            "max_tokens": preset.eval.max_tokens,
            "bits": [preset.quantize.bits, preset.quantize.legacy_bits],
        },
        inputs={
            "data": rows,
            "model": fingerprint_model(base),
            "chat template": "" if named == "own" else fingerprint_json(read_template(named)),
            "prompt": fingerprint_json(query_row("", preset.model, options.fixes)),
            "suites": fingerprint_json(suites),
        },
    )


def _outcome(target: Path, report: AuditReport, *, up_to_date: bool = False) -> Outcome:
    facts = {
        "critical": [finding.check for finding in report.critical],
        "flaws": sorted({finding.flaw for finding in report.findings if finding.flaw}),
        "findings": len(report.findings),
        "checks": len(report.checks),
    }
    return Outcome(target, up_to_date, describe_audit(report), facts)
