"""Secrets are masked where they are shown and sealed where they are stored."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from agent_events.notification.channels import SealedChannel
from agent_events.notification.masking import MASK, Redactor, mask, mask_webhook, redactor_of
from agent_events.notification.sealing import Sealer, SealError, configured_sealer
from agent_events.notification.webhooks import parse_webhook
from tests.webhooks import SECRET, TOKEN

WEBHOOK = parse_webhook(f"https://www.feishu.cn/flow/api/trigger-webhook/{SECRET}?k=q1w2e3", allowed_hosts=())


@pytest.mark.parametrize("secret", ["", "a", "abc", "abcdefghijklmno"])
def test_short_secret_shows_nothing_of_itself(secret: str) -> None:
    assert mask(secret) == MASK


def test_long_secret_shows_its_last_four_characters() -> None:
    assert mask(SECRET) == f"{MASK}bbcc"


def test_masked_webhook_tells_where_it_leads_to_and_not_how_to_use_it() -> None:
    assert mask_webhook(WEBHOOK) == f"https://www.feishu.cn/flow/api/trigger-webhook/{MASK}bbcc"


@pytest.mark.parametrize(
    "echo",
    [
        f"not found: https://www.feishu.cn/flow/api/trigger-webhook/{SECRET}?k=q1w2e3",
        f"no flow {SECRET}",
        f"token {TOKEN} is unknown",
        f'{{"path": "\\/flow\\/api\\/trigger-webhook\\/{SECRET}"}}',
        quote(f"https://www.feishu.cn/flow/api/trigger-webhook/{SECRET}?k=q1w2e3", safe=""),
        f"{TOKEN}{SECRET}{TOKEN}",
        "k=q1w2e3",
    ],
)
def test_echo_of_a_secret_is_redacted(echo: str) -> None:
    redacted = redactor_of(WEBHOOK, TOKEN)(echo)
    assert MASK in redacted
    for secret in (SECRET, TOKEN, "q1w2e3"):
        assert secret not in redacted


def test_secret_with_slashes_is_redacted_in_every_spelling() -> None:
    redact = Redactor(["one/two"])
    assert redact("one/two one%2Ftwo one\\/two") == f"{MASK} {MASK} {MASK}"


def test_what_is_no_secret_stays() -> None:
    assert redactor_of(WEBHOOK, None)("code 0 from www.feishu.cn") == "code 0 from www.feishu.cn"
    assert Redactor(["a", ""])("a banana") == "a banana"


def test_nul_is_replaced_since_postgresql_cannot_store_it() -> None:
    assert Redactor()("a\x00b") == "a\ufffdb"


def test_sealed_text_opens_to_itself_and_looks_different_every_time() -> None:
    sealer = Sealer(["key"])
    sealed = sealer.seal(SECRET)
    assert SECRET not in sealed
    assert sealer.seal(SECRET) != sealed
    assert sealer.open(sealed) == SECRET


def test_text_sealed_under_an_older_key_still_opens() -> None:
    sealed = Sealer(["old"]).seal(SECRET)
    both = Sealer(["new", "old"])
    assert both.open(sealed) == SECRET
    assert Sealer(["new"]).open(both.reseal(sealed)) == SECRET


@pytest.mark.parametrize("stored", ["", "plain text", "gAAAAA", SECRET])
def test_text_that_was_not_sealed_does_not_open(stored: str) -> None:
    with pytest.raises(SealError) as error:
        Sealer(["key"]).open(stored)
    assert SECRET not in str(error.value)


def test_text_sealed_under_another_key_does_not_open() -> None:
    with pytest.raises(SealError):
        Sealer(["key"]).open(Sealer(["other"]).seal(SECRET))


def test_keys_are_those_of_the_setting_or_else_djangos(settings: Any) -> None:
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "now", ["before"]
    settings.NOTIFICATION = {}
    assert configured_sealer().open(Sealer(["before"]).seal("x")) == "x"
    assert Sealer(["now"]).open(configured_sealer().seal("x")) == "x"
    settings.NOTIFICATION = {"SECRET_KEYS": ["own"]}
    assert Sealer(["own"]).open(configured_sealer().seal("x")) == "x"


def test_text_of_a_channel_does_not_show_what_is_sealed() -> None:
    assert "sealed-thing" not in repr(SealedChannel(1, enabled=True, webhook="sealed-thing", token="sealed-thing"))
