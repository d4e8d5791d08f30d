"""The stage: every check over one arm's set-up."""

from __future__ import annotations

# Importing a module of checks registers them.
from stages.audit import config, coverage, data, plan, template, tokenizer  # noqa: F401
from stages.audit.recipe import asks_anew, make_recipe
from stages.audit.registry import CHECKS, run_checks
from stages.audit.report import describe_audit, write_markdown
from stages.audit.subject import load_subject
from stages.core.artifact import build_artifact, is_current
from stages.core.cli import Options, Outcome, artifacts_root
from stages.core.models import find_model
from stages.core.platform import require_disk
from stages.core.records import AuditReport, read_record, write_record
from stages.core.suite import load_suites
from stages.core.tokenizer import template_hash

REPORT = "audit.json"


def audit(options: Options) -> Outcome:
    """Audit one arm. Critical findings are no error: they decide what a verdict may say."""
    target, recipe = options.output("audit"), make_recipe(options)
    if is_current(target, recipe, force=options.force or asks_anew(target, recipe)):
        return recall_audit(options)
    require_disk(target, 0.001, "the audit")
    base = find_model(options.preset, artifacts_root())
    subject = load_subject(options, options.input("convert_data"), base)
    suites = load_suites(options.preset.eval.suites)
    report = AuditReport(
        model=options.preset.name,
        arm=options.arm,
        checks=list(CHECKS),
        findings=run_checks(subject),
        suites={suite.name: suite.fingerprint for suite in suites},
    )
    with build_artifact(target, recipe, given=options.given) as build:
        write_record(build.folder / REPORT, report)
        (build.folder / "audit.md").write_text(write_markdown(report), "utf-8")
        build.facts |= {"turn_ends": subject.turn_ends}
        build.template, build.stop_ids = template_hash(subject.tokenizer), subject.plan.stops
    return _outcome(options, report)


def recall_audit(options: Options) -> Outcome:
    """What an audit that is up to date has found."""
    report = read_record(options.output("audit") / REPORT, AuditReport)
    return _outcome(options, report, up_to_date=True)


def _outcome(options: Options, report: AuditReport, *, up_to_date: bool = False) -> Outcome:
    facts = {
        "critical": [finding.check for finding in report.critical],
        "flaws": sorted({finding.flaw for finding in report.findings if finding.flaw}),
        "findings": len(report.findings),
        "checks": len(report.checks),
    }
    return Outcome(options.output("audit"), up_to_date, describe_audit(report), facts)
