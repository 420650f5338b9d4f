"""What holds secrets leaves them out where it is printed: in a log, a traceback, a page of an error."""

from __future__ import annotations

from typing import Any

from outbox.brokers.kafka.options import KafkaOptions
from outbox.conf import outbox_settings


def test_configuration_shows_no_password_when_it_is_printed(settings: Any) -> None:
    options = {"bootstrap_servers": "h:1", "common": {"security_protocol": "SSL", "ssl_password": "Sw0rdfish"}}
    settings.OUTBOX = {"BROKER": {"BACKEND": "kafka", "OPTIONS": options}}

    assert "kafka" in repr(outbox_settings())
    for configured in (outbox_settings(), KafkaOptions.parse(options)):
        assert "Sw0rdfish" not in repr(configured) + str(configured)
