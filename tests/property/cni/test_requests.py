"""Whatever a runtime or an administrator writes: a request is taken, or refused with one of CNI's codes."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from felixpy.cni import wire
from felixpy.cni.addresses import _families
from felixpy.cni.endpoints import labels_of
from felixpy.cni.errors import CniError
from felixpy.cni.request import COMMANDS, VERSIONS, etcd_settings, mtu, node_name, read_request
from felixpy.cni.results import read, render

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = (
    "cniVersion", "name", "ipam", "mtu", "nodename", "nodename_file", "nodename_file_optional", "datastore_type",
    "args", "etcd_endpoints", "etcd_authority", "etcd_scheme", "num_queues", "policy", "container_settings",
    "device_type", "readiness_gates", "feature_control", "prevResult", "hostname", "etcd_key_file", "ipam_lock_file",
    "require_mtu_file",
)  # fmt: skip
GOOD: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net", "nodename_file_optional": True, "nodename": "n"}
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12)


@given(
    st.dictionaries(st.sampled_from(KEYS), anything, max_size=4), st.sampled_from([*COMMANDS, "", "X"]),
    texts | st.just("c1"), texts | st.just("eth0"), texts | st.just("IgnoreUnknown=1"),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_a_request_is_taken_or_refused_in_one_line(
    changes: dict[str, Any], command: str, container: str, ifname: str, args: str
) -> None:
    environ = {"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_IFNAME": ifname, "CNI_NETNS": "/x",
               "CNI_ARGS": args}  # fmt: skip
    try:
        request = read_request("calico", environ, json.dumps({**GOOD, **changes}))
        assert request.version in VERSIONS
        assert request.handle == f"{request.network}.{request.container}"
        for look in (node_name, mtu, labels_of, lambda r: etcd_settings(r, {}), lambda r: _families(r.ipam),
                     lambda r: r.ipam_type, lambda r: r.section("policy"),
                     lambda r: read(r.conf.get("prevResult"), "prevResult")):  # fmt: skip
            try:
                look(request)
            except CniError as why:
                _is_answer(why, request.version)
    except CniError as why:
        _is_answer(why, "1.0.0")


def _is_answer(why: CniError, version: str) -> None:
    said = json.loads(why.text(version))
    assert said["msg"]
    assert 1 <= said["code"] <= 100


@given(st.dictionaries(texts.filter(lambda t: "=" not in t), texts, max_size=5), st.sampled_from("QTDFRN"))
def test_what_goes_over_the_socket_comes_out_as_it_went_in(values: dict[str, str], letter: str) -> None:
    message = wire.pack(letter, wire.fields(values))
    assert wire.length_of(message[:4]) == len(message) - 4
    found, text = wire.unpack(message[4:])
    assert (found, wire.read_fields(text) if values else {}) == (letter, values)


@given(st.lists(st.sampled_from(["10.0.0.1/32", "10.0.0.2/24", "fd00::1/128"]), max_size=3), st.sampled_from(VERSIONS))
def test_a_result_of_any_version_is_read_as_it_was_meant(addresses: list[str], version: str) -> None:
    addresses = list({("v6" if ":" in text else "v4"): text for text in addresses}.values())
    result = read({"ips": [{"address": text} for text in addresses]}, "x")
    again = read(json.loads(render(result, version)), "x")
    assert {str(a) for a in again.addresses} == set(addresses)
