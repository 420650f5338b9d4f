"""Which webhooks and which network addresses a notification may be sent to."""

from __future__ import annotations

import pytest

from agent_events.notification.webhooks import (
    Webhook,
    WebhookRefusedError,
    check_token,
    is_public,
    parse_webhook,
)

SECRET = "c0ffee00112233445566778899aabbcc"
GOOD = f"https://www.feishu.cn/flow/api/trigger-webhook/{SECRET}"


@pytest.mark.parametrize(
    ("address", "host", "target"),
    [
        (GOOD, "www.feishu.cn", f"/flow/api/trigger-webhook/{SECRET}"),
        ("https://feishu.cn/flow/api/trigger-webhook/a", "feishu.cn", "/flow/api/trigger-webhook/a"),
        ("https://a.b.feishu.cn/flow/api/trigger-webhook/a/b", "a.b.feishu.cn", "/flow/api/trigger-webhook/a/b"),
        ("HTTPS://WWW.Feishu.CN/flow/api/trigger-webhook/Ab", "www.feishu.cn", "/flow/api/trigger-webhook/Ab"),
        ("https://feishu.cn:443/flow/api/trigger-webhook/a?x=1", "feishu.cn", "/flow/api/trigger-webhook/a?x=1"),
    ],
)
def test_feishu_webhook_is_allowed(address: str, host: str, target: str) -> None:
    assert parse_webhook(address, allowed_hosts=()) == Webhook("https", host, 443, target, named=False)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "feishu.cn",
        "http://www.feishu.cn/flow/api/trigger-webhook/abc",
        "ftp://www.feishu.cn/flow/api/trigger-webhook/abc",
        "//www.feishu.cn/flow/api/trigger-webhook/abc",
        # other hosts that look like it
        "https://evilfeishu.cn/flow/api/trigger-webhook/abc",
        "https://feishu.cn.evil.example/flow/api/trigger-webhook/abc",
        "https://feishu.cn@evil.example/flow/api/trigger-webhook/abc",
        "https://evil.example/feishu.cn/flow/api/trigger-webhook/abc",
        "https://evil.example#.feishu.cn/flow/api/trigger-webhook/abc",
        "https://evil.example?.feishu.cn/flow/api/trigger-webhook/abc",
        "https://evil.example\\.feishu.cn/flow/api/trigger-webhook/abc",
        "https://evil.example%2f.feishu.cn/flow/api/trigger-webhook/abc",
        "https://user:pw@www.feishu.cn/flow/api/trigger-webhook/abc",
        "https://www.feishu.cn./flow/api/trigger-webhook/abc",
        "https://.feishu.cn/flow/api/trigger-webhook/abc",
        "https://a..feishu.cn/flow/api/trigger-webhook/abc",
        f"https://{'a' * 64}.feishu.cn/flow/api/trigger-webhook/abc",
        "https://www.feishu。cn/flow/api/trigger-webhook/abc",
        "https://ＦＥＩＳＨＵ.cn/flow/api/trigger-webhook/abc",
        "https://xn--feishu.com/flow/api/trigger-webhook/abc",
        # addresses of machines
        "https://127.0.0.1/flow/api/trigger-webhook/abc",
        "https://2130706433/flow/api/trigger-webhook/abc",
        "https://0x7f.1/flow/api/trigger-webhook/abc",
        "https://[::1]/flow/api/trigger-webhook/abc",
        "https://localhost/flow/api/trigger-webhook/abc",
        "https://169.254.169.254/flow/api/trigger-webhook/abc",
        # ports
        "https://www.feishu.cn:8443/flow/api/trigger-webhook/abc",
        "https://www.feishu.cn:80/flow/api/trigger-webhook/abc",
        "https://www.feishu.cn:0/flow/api/trigger-webhook/abc",
        "https://www.feishu.cn:99999/flow/api/trigger-webhook/abc",
        "https://www.feishu.cn:/flow/api/trigger-webhook/abc",
        # paths
        "https://www.feishu.cn",
        "https://www.feishu.cn/flow/api/trigger-webhook",
        "https://www.feishu.cn/flow/api/trigger-webhook/",
        "https://www.feishu.cn/flow/api/trigger-webhook//abc",
        "https://www.feishu.cn/flow/api/trigger-webhook/abc/",
        "https://www.feishu.cn/flow/api/trigger-webhook/../../../admin",
        "https://www.feishu.cn/flow/api/trigger-webhook/./abc",
        "https://www.feishu.cn/flow/api/trigger-webhook/%2e%2e/admin",
        "https://www.feishu.cn/flow/api/trigger-webhook/..%2fadmin",
        "https://www.feishu.cn/flow/api/trigger-webhook-evil/abc",
        "https://www.feishu.cn/FLOW/api/trigger-webhook/abc",
        "https://www.feishu.cn/x/flow/api/trigger-webhook/abc",
        "https://www.feishu.cn/flow/api/trigger-webhook/abc#part",
        # what could split a request
        "https://www.feishu.cn/flow/api/trigger-webhook/abc\r\nX-Evil: 1",
        "https://www.feishu.cn/flow/api/trigger-webhook/abc\n",
        "https://www.feishu.cn/flow/api/trigger-webhook/a bc",
        " https://www.feishu.cn/flow/api/trigger-webhook/abc",
        "https://www.feishu.cn/flow/api/trigger-webhook/" + "a" * 1000,
    ],
)
def test_other_address_is_refused(address: str) -> None:
    with pytest.raises(WebhookRefusedError):
        parse_webhook(address, allowed_hosts=())


@pytest.mark.parametrize(
    "address",
    [
        f"http://www.feishu.cn/flow/api/trigger-webhook/{SECRET}",
        f"https://evil.example/flow/api/trigger-webhook/{SECRET}",
        f"https://www.feishu.cn:8443/flow/api/trigger-webhook/{SECRET}",
        f"https://www.feishu.cn/flow/api/trigger-webhook/{SECRET}/..",
        f"https://www.feishu.cn/flow/api/{SECRET}",
        f"https://user:{SECRET}@www.feishu.cn/flow/api/trigger-webhook/abc",
        SECRET,
    ],
)
def test_refusal_does_not_tell_the_secret(address: str) -> None:
    with pytest.raises(WebhookRefusedError) as refused:
        parse_webhook(address, allowed_hosts=())
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("http://127.0.0.1:8080/flow/api/trigger-webhook/a", "127.0.0.1"),
        ("http://127.0.0.1:8080/flow/api/trigger-webhook/a", "127.0.0.1:8080"),
        ("http://[::1]:8080/flow/api/trigger-webhook/a", "[::1]"),
        ("https://hooks.intern:8443/flow/api/trigger-webhook/a", "Hooks.Intern"),
        ("https://hooks.intern/flow/api/trigger-webhook/a", "hooks.intern:443"),
    ],
)
def test_host_that_the_setting_names_may_be_http_and_on_any_port(address: str, named: str) -> None:
    assert parse_webhook(address, allowed_hosts=[named]).named


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.2:8080/flow/api/trigger-webhook/a",
        "http://127.0.0.1:8081/flow/api/trigger-webhook/a",
        "http://sub.hooks.intern/flow/api/trigger-webhook/a",
        "https://hooks.intern/other/a",
    ],
)
def test_setting_allows_nothing_beside_what_it_names(address: str) -> None:
    with pytest.raises(WebhookRefusedError):
        parse_webhook(address, allowed_hosts=["127.0.0.1:8080", "hooks.intern"])


def test_text_of_a_webhook_does_not_tell_the_secret() -> None:
    assert SECRET not in repr(parse_webhook(GOOD, allowed_hosts=()))


@pytest.mark.parametrize("token", ["abc", "t-5f2b8d1e.9a7c_46~30+b1/d2==", "A" * 1000])
def test_bearer_token_is_allowed(token: str) -> None:
    check_token(token)


@pytest.mark.parametrize("token", ["", "a b", "a\r\nX: 1", "a\n", "ä", "=a", "a\x00", "A" * 1001, "Bearer secret99"])
def test_token_that_could_not_be_sent_is_refused_without_being_told(token: str) -> None:
    with pytest.raises(WebhookRefusedError) as refused:
        check_token(token)
    assert "secret99" not in str(refused.value)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "1.1.1.1",
        "101.126.59.1",
        "192.88.98.255",
        "192.88.100.0",
        "2400:3200::1",
        "2001:4860:4860::8888",
        "2a00:1450::1",
        "3ffe:ffff::1",
        "2400:3200::1:5efe:8.8.8.8",  # only bits 64 to 95 make ISATAP
        "::ffff:8.8.8.8",
        "64:ff9b::8.8.8.8",
    ],
)
def test_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.0.1",
        "198.18.0.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "2001:db8::1",
        # IPv4 addresses in disguise
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "2002:a00:1::1",
        "2001:0:7f00:1::",
        "64:ff9b:1::10.0.0.1",
        "64:ff9b:1:ffff::8.8.8.8",
        "::ffff:0:127.0.0.1",
        "::8.8.8.8",
        "2002:808:808::1",
        "2002:c058:6301::",
        "64:ff9b::192.88.99.1",
        "::ffff:192.88.99.1",
        "::ffff:203.0.113.7%eth0",
        "2400:3200::5efe:10.0.0.1",
        "2400:3200::5efe:8.8.8.8",
        "2400:3200::200:5efe:192.168.0.1",
        "fe80::5efe:10.0.0.1",
        # what ipaddress of Python 3.11 takes for global, and other versions for something else
        "192.88.99.0",
        "192.88.99.1",
        "192.88.99.255",
        "192.0.0.9",
        "192.0.0.10",
        "192.31.196.1",
        "192.52.193.1",
        "192.175.48.1",
        "fec0::",
        "fec0::1",
        "feff:ffff::1",
        "3fff::",
        "3fff:fff:ffff::1",
        "5f00::1",
        "100::1",
        "100:0:0:1::1",
        "2001:1::1",
        "2001:3::1",
        "2001:4:112::1",
        "2001:20::1",
        "2001:30::1",
        "2001:1ff:ffff::1",
        "2620:4f:8000::1",
        "4000::1",
        "fe00::1",
    ],
)
def test_address_inside_is_not_public(address: str) -> None:
    assert not is_public(address)
