"""A request as the runtime makes it: the CNI_* environment and the network configuration, judged.

Keys and defaults are those of Calico's plugin (cni-plugin/pkg/types/types.go); what is only Kubernetes' or Windows' is
accepted and has no effect.  Limits of names: CNI specification 1.1.0, "Parameters" and "Configuration format".
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from felixpy.cni.errors import BAD_CONFIG, BAD_ENVIRONMENT, BAD_FIELD, BAD_IO, BAD_JSON, BAD_VERSION, CniError
from libcalico.datastore.etcd_settings import EtcdSettings

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
COMMANDS = ("ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION")
_SINCE = {"CHECK": "0.4.0", "STATUS": "1.1.0", "GC": "1.1.0"}
_OF_A_CONTAINER = {"ADD", "DEL", "CHECK"}

NODENAME_FILE = "/var/lib/calico/nodename"
MTU_FILE = "/var/lib/calico/mtu"
LOCK_FILE = "/var/run/calico/ipam.lock"
STATUS_DIR = "/var/run/calico/endpoint-status"

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*\Z")
_INTERFACE = re.compile(r"[^/:\s]{1,15}\Z")


@dataclass(frozen=True)
class Request:
    """One request; ``conf`` is the network configuration as it came, for what is passed on."""

    plugin: str
    command: str
    container: str
    netns: str
    ifname: str
    path: str
    args: Mapping[str, str]
    conf: Mapping[str, Any]
    environ: Mapping[str, str] = field(repr=False)

    @property
    def version(self) -> str:
        return str(self.conf["cniVersion"])

    @property
    def network(self) -> str:
        return str(self.conf.get("name", ""))

    @property
    def ipam(self) -> Mapping[str, Any]:
        return self.section("ipam")

    @property
    def ipam_type(self) -> str:
        """The IPAM plugin's name, empty when there is none."""
        kind = self.ipam.get("type") or ""
        if not isinstance(kind, str):
            raise CniError(BAD_CONFIG, f"ipam.type must be a string, not {kind!r}")
        return kind

    def section(self, *names: str) -> Mapping[str, Any]:
        """A nested object, empty when it is not there.  Raises CniError when it is something else."""
        found: Any = self.conf
        for name in names:
            found = found.get(name)
            if found is None:
                return {}
            if not isinstance(found, dict):
                raise CniError(BAD_CONFIG, f"{'.'.join(names)} must be an object")
        return dict(found)

    def text(self, name: str, default: str = "") -> str:
        """A key of the configuration that must be text."""
        value = self.conf.get(name)
        if value is not None and not isinstance(value, str):
            raise CniError(BAD_CONFIG, f"{name} must be a string, not {value!r}")
        return value or default

    def number(self, name: str, default: int = 0) -> int:
        """A key of the configuration that must be a number, not negative."""
        value = self.conf.get(name)
        if value is None:
            return default
        if type(value) is not int or value < 0:
            raise CniError(BAD_CONFIG, f"{name} must be a number from 0 on, not {value!r}")
        return value

    def flag(self, name: str, *sections: str) -> bool:
        """A key of the configuration, or of a nested object, that must be true or false."""
        value = (self.section(*sections) if sections else self.conf).get(name)
        if value is not None and type(value) is not bool:
            raise CniError(BAD_CONFIG, f"{'.'.join((*sections, name))} must be true or false, not {value!r}")
        return bool(value)

    @property
    def handle(self) -> str:
        """Under which the addresses stand: ``<network>.<container>``."""
        return f"{self.network}.{self.container}"


def read_request(plugin: str, environ: Mapping[str, str], stdin: str) -> Request:
    """Judge a request.  Raises CniError with the specification's codes."""
    command = environ.get("CNI_COMMAND", "")
    if command not in COMMANDS:
        raise CniError(BAD_ENVIRONMENT, f"CNI_COMMAND {command!r} is not known; known are {', '.join(COMMANDS)}")
    conf = _read_conf(stdin)
    request = Request(
        plugin, command, environ.get("CNI_CONTAINERID", ""), environ.get("CNI_NETNS", ""),
        environ.get("CNI_IFNAME", ""), environ.get("CNI_PATH", ""), _read_args(environ.get("CNI_ARGS", "")), conf,
        dict(environ),
    )  # fmt: skip
    if VERSIONS.index(request.version) < VERSIONS.index(_SINCE.get(command, VERSIONS[0])):
        raise CniError(BAD_VERSION, f"{command} is of CNI {_SINCE[command]}, the configuration of {request.version}")
    if not _NAME.match(request.network):
        raise CniError(
            BAD_CONFIG, f"name {request.network!r}: a network's name begins with a letter or a digit, "
            "and holds only those and _ . -",
        )  # fmt: skip
    if command in _OF_A_CONTAINER:
        _check_container(request)
    if command == "ADD":
        _check_supported(request)
    return request


def _check_supported(request: Request) -> None:
    """Refuse what Calico's plugin would heed and this one does not: passing over it would break a promise."""
    if (device := request.text("device_type", "veth")) not in {"veth", "netkit"}:  # as on a kernel without netkit
        raise CniError(BAD_CONFIG, f"unknown device_type {device!r}; there are veth and netkit")
    if request.conf.get("readiness_gates"):
        raise CniError(BAD_FIELD, "readiness_gates is not supported")
    if request.flag("ip_addrs_no_ipam", "feature_control"):
        raise CniError(BAD_FIELD, "feature_control.ip_addrs_no_ipam needs Kubernetes")


def _read_conf(stdin: str) -> dict[str, Any]:
    try:
        conf = json.loads(stdin)
    except ValueError as why:
        raise CniError(BAD_JSON, "the network configuration is no JSON", str(why)) from None
    if not isinstance(conf, dict):
        raise CniError(BAD_JSON, "the network configuration is no JSON object")
    version = conf.get("cniVersion") or "0.2.0"
    if version not in VERSIONS:
        raise CniError(BAD_VERSION, f"unsupported CNI version {version!r}", f"supported are {', '.join(VERSIONS)}")
    return {**conf, "cniVersion": version}


def _check_container(request: Request) -> None:
    if not _NAME.match(request.container):
        raise CniError(BAD_ENVIRONMENT, f"CNI_CONTAINERID {request.container!r} is no container id")
    if not _INTERFACE.match(request.ifname) or request.ifname in {".", ".."}:
        raise CniError(BAD_ENVIRONMENT, f"CNI_IFNAME {request.ifname!r} is no interface name")
    if request.command != "DEL" and not request.netns and request.plugin == "calico":
        raise CniError(BAD_ENVIRONMENT, "CNI_NETNS is missing")


def _read_args(text: str) -> dict[str, str]:
    found = {}
    for entry in filter(None, text.split(";")):
        name, equals, value = entry.partition("=")
        if not equals:
            raise CniError(BAD_ENVIRONMENT, f"CNI_ARGS: {entry!r} is not NAME=VALUE")
        found[name] = value
    return found


def node_name(request: Request) -> str:
    """This node's name: of the configuration, its file, the deprecated key, or the host's.

    Raises:
        CniError: The file must be there and is not.  A guessed name would look for, and leave behind, another node's
            endpoints and addresses.
    """
    path = Path(request.text("nodename_file", NODENAME_FILE))
    if request.plugin == "calico" and not request.flag("nodename_file_optional") and not path.is_file():
        raise CniError(BAD_IO, f"{path}: no such file", "is the node's agent running? (nodename_file_optional)")
    if name := request.text("nodename"):
        return name
    try:
        if name := path.read_text().strip():
            return name
    except FileNotFoundError:
        pass
    except OSError as why:
        raise CniError(BAD_IO, f"{path}: {why.strerror}") from None
    return request.text("hostname") or socket.gethostname().strip().lower()


def mtu(request: Request) -> int:
    """The MTU in bytes: of the configuration, else of the node's file, else 0, the kernel's default."""
    try:
        found = int(Path(MTU_FILE).read_text().strip() or 0)
    except FileNotFoundError:
        found = 0
        if request.flag("require_mtu_file"):
            raise CniError(BAD_IO, f"{MTU_FILE}: no such file, and require_mtu_file is set") from None
    except (OSError, ValueError) as why:
        raise CniError(BAD_IO, f"{MTU_FILE}: {why}") from None
    return request.number("mtu") or found


def etcd_settings(request: Request, environ: Mapping[str, str]) -> EtcdSettings:
    """Where the datastore is: the configuration's keys over the environment's.  Raises CniError."""
    if (kind := request.text("datastore_type", "etcdv3")) != "etcdv3":
        raise CniError(BAD_CONFIG, f"datastore_type {kind!r} is not supported; only etcdv3 is")
    if request.text("etcd_discovery_srv"):
        raise CniError(BAD_CONFIG, "etcd_discovery_srv is not supported; name the members in etcd_endpoints")
    endpoints = request.text("etcd_endpoints")
    if not endpoints and (authority := request.text("etcd_authority")):
        endpoints = f"{request.text('etcd_scheme', 'http')}://{authority}"
    given = {
        "ETCD_ENDPOINTS": endpoints, "ETCD_KEY_FILE": request.text("etcd_key_file"),
        "ETCD_CERT_FILE": request.text("etcd_cert_file"), "ETCD_CA_CERT_FILE": request.text("etcd_ca_cert_file"),
    }  # fmt: skip
    chosen = {name: value for name, value in given.items() if value}
    try:
        return EtcdSettings.from_env({**environ, **chosen, **{f"CALICO_{n}": v for n, v in chosen.items()}})
    except ValueError as why:
        raise CniError(BAD_CONFIG, str(why)) from None
