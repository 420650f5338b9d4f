"""From a claimed record and its user's channel to a request, or to the reason why there is none. No I/O."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from agent_events.notification.channels import SealedChannel
from agent_events.notification.masking import MASK, Redactor, mask_webhook, redactor_of
from agent_events.notification.messages import body_of
from agent_events.notification.policy import MAX_ATTEMPTS, Outcome, Verdict
from agent_events.notification.records import Claimed
from agent_events.notification.sealing import Sealer, SealError
from agent_events.notification.webhooks import Webhook, WebhookRefusedError, check_token, parse_webhook


@dataclass(frozen=True, slots=True)
class Request:
    """A request that is ready to go."""

    webhook: Webhook
    token: str | None = field(repr=False)
    body: bytes = field(repr=False)
    redact: Redactor

    def stored(self) -> str:
        """Return what is kept of it: all but the secrets."""
        kept = {
            "method": "POST",
            "url": mask_webhook(self.webhook),
            "authorization": f"Bearer {MASK}" if self.token else None,
            "body": msgspec.Raw(self.body),
        }
        return self.redact(msgspec.json.encode(kept).decode())


@dataclass(frozen=True, slots=True)
class Preparation:
    """What all requests of a deliverer share."""

    sealer: Sealer
    allowed_hosts: Collection[str]
    site_url: str

    def request(self, record: Claimed, channel: SealedChannel | None, *, sent_at: datetime) -> Request | Verdict:
        """Return the request for ``record``, or the verdict when nothing can be sent."""
        if record.attempt > MAX_ATTEMPTS:
            reason = f"attempt {MAX_ATTEMPTS}, the last one, was interrupted: nobody knows whether it was received"
            return Verdict(Outcome.HOPELESS, "interrupted", reason, counts=False)
        if channel is None or not channel.webhook:
            return Verdict(Outcome.SKIPPED, "no_webhook", "the user has no webhook", counts=False)
        if not channel.enabled:
            return Verdict(Outcome.SKIPPED, "switched_off", "the user's webhook is switched off", counts=False)
        try:
            webhook = parse_webhook(self.sealer.open(channel.webhook), allowed_hosts=self.allowed_hosts)
            token = self.sealer.open(channel.token) if channel.token else None
            if token:
                check_token(token)
        except WebhookRefusedError as error:
            return Verdict(Outcome.HOPELESS, "webhook_refused", str(error), counts=False)
        except SealError as error:
            # Not the record's fault: there is time to bring the key back before the attempts are used up.
            return Verdict(Outcome.RETRY, "webhook_sealed", str(error))
        body = body_of(record, site_url=self.site_url, sent_at=sent_at)
        return Request(webhook, token, body, redactor_of(webhook, token))
