"""The `triggers` section of the configuration: which verdict starts what."""

import re
from collections.abc import Mapping, Sequence, Set
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from evals.records import Verdict
from evals.spending import LEVEL
from gateway.section import Name, Section, Span, Url
from pipelines.spec import load_spec

LEAST_LEVEL = 0.1  # of the level of the look that triggered
PAGERDUTY = "https://events.pagerduty.com/v2/enqueue"
PLACE = re.compile(r"\{(subject|prompt|verdict_id)\}")  # in a command
Severity = Literal["critical", "error", "warning", "info"]


class When(Section):
    """Which verdicts a rule is for; all of it must fit.

    Attributes:
        subject: pattern of the verdict's subject, such as `drift:assistant@*`.
        decision: one of these.
        metric: pattern of a metric; one that fits it must have failed.
    """

    subject: str = "*"
    decision: tuple[Literal["promote", "hold", "reject", "alert"], ...] = ("alert", "reject")
    metric: str | None = None

    def fits(self, verdict: Verdict) -> str | None:
        """Why the verdict fits, in words; None if it does not."""
        if (
            not fnmatchcase(verdict.subject, self.subject)
            or verdict.decision.value not in self.decision
        ):
            return None
        said = f"{verdict.subject} is {verdict.decision.value}"
        if self.metric is None:
            return said
        failed = [one.name for one in verdict.metrics if one.passed is False]
        fitting = [name for name in failed if fnmatchcase(name, self.metric)]
        return f"{said} and {', '.join(fitting)} failed" if fitting else None

    def may_be_over(self, verdict: Verdict) -> bool:
        """Whether the verdict could say that something is well again."""
        return fnmatchcase(verdict.subject, self.subject) and bool(self._decided(verdict))

    def is_over(self, opened: Verdict, later: Sequence[Verdict]) -> str | None:
        """Why the last of `later` says that what failed in `opened` is well again, or None.

        All that failed there must be measured now, and pass: one that decides nothing (too few
        rows, no reference) does not say so. Nor do looks at signals that spend next to nothing of
        their budget of false alarms: the last ones in a row that were well must together have
        spent a tenth of what the look that triggered did.

        Args:
            later: all verdicts on the same subject since, oldest first.
        """
        failed = {name for name, passed in self._decided(opened).items() if not passed}
        spent = 0.0
        needed = LEAST_LEVEL * _level(opened) if failed & _signals(opened).keys() else 0.0
        for verdict in reversed(later):
            if self._is_ill(verdict):
                break
            spent += _level(verdict) if self._is_well(verdict, failed) else 0.0
        last = later[-1]
        if spent < needed or not self._is_well(last, failed):
            return None
        passed = len(self._decided(last))
        return f"{last.subject} is {last.decision.value}, and {passed} metrics passed"

    def _is_ill(self, verdict: Verdict) -> bool:
        if self.metric is None and verdict.decision.value in self.decision:
            return True
        return not all(self._decided(verdict).values())

    def _is_well(self, verdict: Verdict, failed: Set[str]) -> bool:
        known = self._decided(verdict).keys()
        return not self._is_ill(verdict) and bool(known) and failed <= known

    def _decided(self, verdict: Verdict) -> dict[str, bool]:
        """The metrics that the rule goes by, as far as they were measured: whether each passed."""
        return {
            one.name: one.passed
            for one in verdict.metrics
            if one.passed is not None and fnmatchcase(one.name, self.metric or "*")
        }


def _signals(verdict: Verdict) -> Mapping[str, object]:
    """What a look at drift tested, at its level; service levels are not among it."""
    scores: Mapping[str, object] = verdict.evidence.get("scores") or {}
    return scores


def _level(verdict: Verdict) -> float:
    return float(verdict.evidence.get(LEVEL) or 0.0)


class Webhook(Section):
    """A POST in Slack's shape, signed.

    Attributes:
        url: where to, or
        url_env: environment variable with the address, where that is a secret, as Slack's are.
    """

    url: Url | None = None
    url_env: str | None = None

    @model_validator(mode="after")
    def _one_address(self) -> "Webhook":
        if (self.url is None) == (self.url_env is None):
            raise ValueError("give either url or url_env")
        return self


class PagerDuty(Section):
    """An incident: triggered by a verdict, resolved by a later one that is well.

    Attributes:
        routing_key_env: environment variable with the integration's key.
        url: of the Events API v2.
        severity: of the incident.
    """

    routing_key_env: str
    url: Url = PAGERDUTY
    severity: Severity = "error"


class Rule(Section):
    """One rule; it does one thing.

    Attributes:
        name: unique; what was sent is remembered under it.
        webhook: post a message, or
        pagerduty: open and resolve an incident, or
        evaluation: arguments of `llmops`, such as `[evals, run, "{prompt}"]`: `{prompt}`,
            `{subject}` and `{verdict_id}` are those of the verdict; or
        pipeline: name of a model's spec, which is trained anew.
        cooldown: a subject triggers the rule at most once in this time; a model is trained by the
            rules that name it at most once, whatever the subject.
    """

    name: Name
    when: When = When()
    webhook: Webhook | None = None
    pagerduty: PagerDuty | None = None
    evaluation: tuple[str, ...] | None = Field(None, min_length=1)
    pipeline: Name | None = None
    cooldown: Span = 6 * 3600.0

    @model_validator(mode="after")
    def _one_thing(self) -> "Rule":
        given = (self.webhook, self.pagerduty, self.evaluation, self.pipeline)
        if sum(one is not None for one in given) != 1:
            raise ValueError("give one of webhook, pagerduty, evaluation and pipeline")
        return self

    @property
    def starts(self) -> bool:
        """Whether it starts a command."""
        return self.pipeline is not None or self.evaluation is not None

    def command_for(self, verdict: Verdict) -> Sequence[str]:
        """Arguments of `llmops`, with what the verdict says. Raises ValueError if it does not say
        it, or the spec cannot be read."""
        if self.pipeline is not None:
            return ("train", load_spec(Path(self.pipeline)).kind, self.pipeline)
        return [PLACE.sub(partial(_filled, verdict), part) for part in self.evaluation or ()]

    @property
    def address(self) -> str | None:
        """Where it sends to, as far as the file says."""
        if self.pagerduty is not None:
            return self.pagerduty.url
        return self.webhook.url if self.webhook is not None else None


def _filled(verdict: Verdict, place: re.Match[str]) -> str:
    values = {
        "subject": verdict.subject,
        "verdict_id": verdict.verdict_id,
        "prompt": verdict.evidence.get("prompt"),
    }
    value = values[place[1]]
    if not value or str(value).startswith("-"):  # a value must not become an option
        raise ValueError(f"the verdict on {verdict.subject} gives no {place[1]} for {place[0]}")
    return str(value)


class Triggers(Section):
    """The whole section.

    Attributes:
        hosts: where messages may go to, each `host` or `host:port`; nothing else is ever called.
        attempts: how often a message is sent before it is given up; 100 take about 23 hours.
        look_back: verdicts that are older when they are first seen trigger nothing.
    """

    hosts: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    attempts: int = Field(100, ge=1, le=1000)
    look_back: Span = 24 * 3600.0

    @model_validator(mode="after")
    def _rules_fit(self) -> "Triggers":
        names = [rule.name for rule in self.rules]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"rules: {', '.join(twice)}: a name that is there twice")
        for rule in self.rules:
            if rule.address is not None and not self.allows(rule.address):
                raise ValueError(
                    f"rules: {rule.name}: {urlsplit(rule.address).netloc} is not among hosts"
                )
        return self

    def rivals(self, rule: Rule) -> Sequence[str]:
        """Names of the rules that start the same training, `rule`'s among them; none otherwise."""
        if rule.pipeline is None:
            return ()
        return [one.name for one in self.rules if one.pipeline == rule.pipeline]

    def allows(self, url: str) -> bool:
        """Whether messages may go to `url`; never to one that is malformed."""
        try:
            parts = urlsplit(url)
            known = parts.netloc in self.hosts or (
                parts.port is None and parts.hostname in self.hosts
            )
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and known

    @property
    def variables(self) -> Sequence[str]:
        """The environment variables that its rules name."""
        names = [rule.webhook.url_env for rule in self.rules if rule.webhook is not None]
        names += [rule.pagerduty.routing_key_env for rule in self.rules if rule.pagerduty]
        return sorted({name for name in names if name is not None})
