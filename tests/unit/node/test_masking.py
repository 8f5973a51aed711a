"""No secret passes the masker, whatever it stands in, and what is none stays readable."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felixpy.node.masking import HIDDEN, Masker, secrets_in

PLANTED = "hunter2-Planted"
PEM = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIPlanted\nAbCd==\n-----END EC PRIVATE KEY-----"


@pytest.mark.parametrize(
    "text",
    [
        f"ETCD_PASSWORD={PLANTED}",
        f"ETCD_PASSWORD = '{PLANTED} with blanks'",
        f'{{"password": "{PLANTED}", "x": 1}}',
        f'{{\\"password\\": \\"{PLANTED}\\"}}',
        f'{{"password": "say \\"{PLANTED}\\" twice {PLANTED}"}}',
        f"etcdPassword: {PLANTED}",
        f"    md5-password '{PLANTED}';",
        f"    md5-password {PLANTED};",
        f'  password "{PLANTED}";',
        f"connect to https://root:{PLANTED}@10.0.0.1:2379/x",
        f"Authorization: Bearer {PLANTED}",
        "Authorization: Basic aHVudGVyMi1QbGFudGVk",
        f"PrivateKey = {PLANTED}=",
        f"PresharedKey={PLANTED}",
        f"api-key={PLANTED}",
        f'password: "{PLANTED}',  # the quote that ends it is cut off
        "a eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJQbGFudGVkIn0.Planted",
        f"before\n{PEM}\nafter",
        "line\n" + PEM.split("\n", 1)[1],
        PEM.rsplit("\n", 1)[0],
        json.dumps({"k": PEM}),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str) -> None:
    masked = Masker().text(text)
    assert "lanted" not in masked
    assert "aHVudGVy" not in masked
    assert HIDDEN in masked


@pytest.mark.parametrize(
    "text",
    [
        "peer 10.0.0.1: session up, 12 routes",
        "inet calico chain cali-tw-1 { type filter hook forward priority 0; policy accept; }",
        "password refused by 10.0.0.9",
        "secretKeyRef: {name: bgp, key: mesh}",
        "http://[2001:db8::1]:2379",
        "fe80::1 dev eth0 lladdr 02:00:00:00:00:01 REACHABLE",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "",
    ],
)
def test_what_is_none_stays_as_it_is(text: str) -> None:
    assert Masker().text(text) == text


def test_json_stays_json_and_a_second_pass_changes_nothing() -> None:
    line = json.dumps({"a": {"password": PLANTED}, "b": json.dumps({"token": PLANTED}), "c": f"x, secret={PLANTED}"})
    once = Masker().text(line.replace(f"={PLANTED}", f"={HIDDEN}"))
    assert json.loads(once) == {
        "a": {"password": HIDDEN},
        "b": json.dumps({"token": HIDDEN}),
        "c": f"x, secret={HIDDEN}",
    }
    assert Masker().text(once) == once


def test_a_known_secret_is_hidden_wherever_and_however_it_stands() -> None:
    awkward = 'pa"ss w\\rd/ü'
    masker = Masker([awkward, "", "  "])
    for text in (f"xx{awkward}yy", json.dumps({"k": awkward}), base64.b64encode(awkward.encode()).decode(),
                 "https://h/?p=pa%22ss%20w%5Crd%2F%C3%BC"):  # fmt: skip
        assert HIDDEN in masker.text(text), text
        assert "ss w" not in masker.text(text)
        assert "ss%20w" not in masker.text(text)
    assert masker.text("plain") == "plain"


def test_a_short_secret_is_hidden_where_it_stands_alone() -> None:
    assert Masker(["123"]).text("x 123, 1234") == f"x {HIDDEN}, 1234"


def test_documents_keep_their_shape_and_references_stay() -> None:
    document = {
        "spec": {
            "password": {"secretKeyRef": {"name": "bgp", "key": "mesh"}}, "peerIP": "10.0.0.1", "asNumber": 64512,
            "sourceAddress": None, "flag": True,
        },
        "env": [{"name": "ETCD_PASSWORD", "value": PLANTED}, {"name": "NODENAME", "value": "n1"}],
        "apiToken": {"deep": [PLANTED, 7]},
        "metadata": {"annotations": {"last-applied": json.dumps({"password": PLANTED})}},
    }  # fmt: skip
    masked = Masker().document(document)
    assert "lanted" not in json.dumps(masked)
    assert masked["spec"] == document["spec"]
    assert masked["env"][1] == {"name": "NODENAME", "value": "n1"}
    assert masked["apiToken"] == {"deep": [HIDDEN, HIDDEN]}


def test_secrets_named_in_a_configuration_are_found() -> None:
    text = "md5-password 'mesh-1';\nETCD_PASSWORD=one\nETCD_KEY_FILE=/x\npassword: \"two\"\nsecret: /etc/s\n"
    assert set(secrets_in(text)) == {"mesh-1", "one", "two"}


_SECRETS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=30).filter(
    lambda secret: len(secret.strip()) >= 6 and secret.strip() not in HIDDEN
)


@given(_SECRETS, st.text(max_size=20), st.text(max_size=20))
def test_no_known_secret_of_any_form_passes(secret: str, before: str, after: str) -> None:
    masked = Masker([secret]).text(f"{before}{secret}{after}{json.dumps(secret)}")
    rest = masked.replace(HIDDEN, "\0")
    assert secret.strip() not in rest


@given(st.text(max_size=300))
def test_masking_ends_and_a_second_time_hides_nothing_more_of_what_was_hidden(text: str) -> None:
    once = Masker().text(text)
    assert Masker().text(once).count("\n") <= text.count("\n")
