"""What is sent when a rule fires: Slack's shape, PagerDuty's events, and the signature.

Sources: https://api.slack.com/reference/block-kit/blocks (the limits of texts),
https://developer.pagerduty.com/docs/events-api-v2/overview
"""

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

from evals.records import Decision, MetricResult, Verdict
from pipelines.trigger_rules import Severity

HEADER_CHARACTERS = 150
SECTION_CHARACTERS = 3000
SUMMARY_CHARACTERS = 1024
SHOWN_REASONS = 5
TRIGGER, RESOLVE = "trigger", "resolve"
SIGNATURE, TIMESTAMP = "x-llmops-signature", "x-llmops-timestamp"


def slack(verdict: Verdict, rule: str, why: str) -> dict[str, Any]:
    """A message for a webhook of Slack, or of what takes the same."""
    title = f"{verdict.subject}: {verdict.decision.value}"
    lines = [f"• {_escaped(reason)}" for reason in verdict.reasons[:SHOWN_REASONS]]
    more = len(verdict.reasons) - SHOWN_REASONS
    if more > 0:
        lines.append(f"… and {more} more")
    context = f"rule {rule}: {why} · verdict {verdict.verdict_id} · against {verdict.baseline}"
    report = verdict.evidence.get("report")
    if report:
        context += f" · report {report}"
    return {
        "text": _escaped(f"{title}: {verdict.reasons[0] if verdict.reasons else why}"),
        "blocks": [
            {"type": "header", "text": {"type": "plain_text", "text": _cut(title)}},
            {
                "type": "section",
                "text": {"type": "mrkdwn", "text": _cut("\n".join(lines), SECTION_CHARACTERS)},
            },
            {
                "type": "context",
                "elements": [
                    {"type": "mrkdwn", "text": _cut(_escaped(context), SECTION_CHARACTERS)}
                ],
            },
        ],
    }


def pagerduty(
    verdict: Verdict, rule: str, action: str, routing_key: str, severity: Severity
) -> dict[str, Any]:
    """An event of the Events API v2. One rule and subject are one incident."""
    event = {
        "routing_key": routing_key,
        "event_action": action,
        "dedup_key": incident(rule, verdict.subject),
    }
    if action == RESOLVE:
        return event
    first = verdict.reasons[0] if verdict.reasons else verdict.decision.value
    return event | {
        "client": "llmops",
        "payload": {
            "summary": _cut(f"{verdict.subject}: {first}", SUMMARY_CHARACTERS),
            "source": verdict.subject,
            "severity": severity,
            "timestamp": verdict.created_at.isoformat(),
            "component": verdict.subject,
            "class": Decision(verdict.decision).value,
            "custom_details": {
                "verdict_id": verdict.verdict_id,
                "baseline": verdict.baseline,
                "reasons": list(verdict.reasons),
                "failed": [_told(one) for one in verdict.metrics if one.passed is False],
                "report": verdict.evidence.get("report"),
            },
        },
    }


def incident(rule: str, subject: str) -> str:
    """The key by which PagerDuty knows that two events are about one incident."""
    about = f"{rule}\0{subject}".encode()
    return f"llmops-{hashlib.sha256(about).hexdigest()[:40]}"


def signed(body: bytes, secret: str, timestamp: int) -> Mapping[str, str]:
    """Headers by which a receiver knows that the body is ours, and from when it is.

    HMAC-SHA256 over `timestamp.body`; a receiver refuses old timestamps.
    """
    text = str(timestamp).encode() + b"." + body
    digest = hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()
    return {TIMESTAMP: str(timestamp), SIGNATURE: f"v1={digest}"}


def _told(metric: MetricResult) -> dict[str, Any]:
    return {
        "name": metric.name,
        "baseline": metric.baseline,
        "candidate": metric.candidate,
        "n": metric.n,
    }


def _cut(text: str, longest: int = HEADER_CHARACTERS) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _escaped(text: str) -> str:
    """Slack's three characters: a subject must not become a link or a mention."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
