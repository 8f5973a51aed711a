"""WorkloadEndpoint and profile of a container, in the datastore; as Calico's plugin without Kubernetes has them.

Source: cni-plugin/pkg/plugin/plugin.go, libcalico-go/lib/names/workloadendpoint.go.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from felixpy.cni.errors import BAD_CONFIG, BAD_ENVIRONMENT, FAILED, TRY_AGAIN, CniError
from felixpy.cni.request import Request
from libcalico.clock import Clock
from libcalico.datastore.api import Datastore, KeyValue, Put, unchanged
from libcalico.model.keys import RESOURCES, ResourceKey
from libcalico.model.stored import encode, parse_object
from libcalico.validation.endpoints import workload_name

ORCHESTRATOR = "cni"
_TRIES = 20


class Endpoint:
    """A WorkloadEndpoint as it stands in the datastore."""

    def __init__(self, row: KeyValue) -> None:
        self.row = row
        try:
            self.value: dict[str, Any] = json.loads(row.value)
            self.spec: dict[str, Any] = self.value.get("spec") or {}  # null counts as absent, as in Go
            self.profiles = [str(name) for name in self.spec.get("profiles") or ()]
        except (ValueError, AttributeError, TypeError) as why:
            raise CniError(FAILED, f"{row.key}: this endpoint cannot be read", str(why)) from None

    @property
    def container(self) -> str:
        return str(self.spec.get("containerID", ""))

    @property
    def ifname(self) -> str:
        return str(self.spec.get("endpoint", ""))


class Endpoints:
    """The endpoints of this node's containers."""

    def __init__(self, store: Datastore, node: str, clock: Clock) -> None:
        self._store, self._node, self._clock = store, node, clock

    async def check_ready(self) -> None:
        """Raises CniError unless the cluster says that its datastore may be used."""
        row = await self._store.get(ResourceKey("ClusterInformation", "default").path)
        if row is None:
            raise CniError(TRY_AGAIN, "there is no ClusterInformation: the datastore has not been set up")
        spec = (parse_object(row.value) or {}).get("spec")
        if not isinstance(spec, dict) or spec.get("datastoreReady") is not True:
            raise CniError(TRY_AGAIN, "Calico is currently not ready to process requests", "datastoreReady is not set")

    def key(self, request: Request) -> str:
        """Where the container's endpoint stands.  Raises CniError when an identifier makes no name."""
        return self._key(request, request.ifname)

    def _key(self, request: Request, ifname: str) -> str:
        name, problems = workload_name(self._identifiers(request, ifname))
        if problems:
            field, value, rule = problems[0]
            raise CniError(BAD_ENVIRONMENT, f"no endpoint can be named after {field} {value!r}: it {rule}")
        return ResourceKey("WorkloadEndpoint", name, labels_of(request)[0]).path

    def _identifiers(self, request: Request, ifname: str) -> dict[str, str]:
        return {
            "orchestrator": ORCHESTRATOR, "node": self._node, "containerID": request.container, "endpoint": ifname,
        }  # fmt: skip

    async def of_container(self, request: Request) -> Endpoint | None:
        """The container's endpoint, whatever its interface is called: Calico gives a container one."""
        prefix = self._key(request, "x").removesuffix("x")
        found = (Endpoint(row) for row in (await self._store.list(prefix)).items)
        return next((endpoint for endpoint in found if endpoint.container == request.container), None)

    async def has_another(self, request: Request) -> bool:
        """Whether the container has an endpoint that this network has made for another interface."""
        try:
            found = await self.of_container(request)
        except CniError:
            return False  # what cannot be read holds nothing
        return found is not None and found.ifname != request.ifname and found.profiles[:1] == [request.network]

    async def of_network(self, network: str) -> list[Endpoint]:
        """This node's endpoints that the network's plugin has made."""
        node = self._node.replace("-", "--")
        rows = (await self._store.list(f"{RESOURCES}workloadendpoints/")).items
        mine = [row for row in rows if row.key.rpartition("/")[2].startswith(f"{node}-{ORCHESTRATOR}-")]
        found = []
        for row in mine:
            try:
                endpoint = Endpoint(row)
            except CniError:
                continue  # somebody's slip of the pen; nothing is known of it
            if endpoint.spec.get("node") == self._node and endpoint.profiles[:1] == [network]:
                found.append(endpoint)
        return found

    async def create(self, request: Request, addresses: Iterable[str], interface: str, mac: str, profile: str) -> int:
        """Write a new endpoint, and ``profile`` unless empty; return the revision.

        Raises:
            CniError: There is such an endpoint by now.
        """
        namespace, labels = labels_of(request)
        key = self.key(request)
        spec = {
            **self._identifiers(request, request.ifname), "ipNetworks": list(addresses),
            "profiles": [request.network], "interfaceName": interface, "mac": mac,
        }  # fmt: skip
        labels |= {"projectcalico.org/namespace": namespace, "projectcalico.org/orchestrator": ORCHESTRATOR}
        value = self._object("WorkloadEndpoint", key.rpartition("/")[2], spec, namespace=namespace, labels=labels)
        done = await self._store.txn([unchanged(key, None)], [Put(key, value)])
        if not done.succeeded:
            raise CniError(FAILED, f"{key}: somebody else has just made this endpoint")
        await self._make_profile(profile)
        return done.revision

    async def join(self, endpoint: Endpoint, network: str, profile: str) -> int:
        """Put an endpoint into one more network: its profile is appended.  Raises CniError on a conflict."""
        await self._make_profile(profile)
        if network in endpoint.profiles:
            return endpoint.row.mod_revision
        endpoint.spec["profiles"] = [*endpoint.profiles, network]
        same = unchanged(endpoint.row.key, endpoint.row)
        done = await self._store.txn([same], [Put(endpoint.row.key, encode(endpoint.value), endpoint.row.lease)])
        if not done.succeeded:
            raise CniError(TRY_AGAIN, f"{endpoint.row.key} was changed meanwhile")
        return done.revision

    async def delete(self, key: str) -> None:
        """Remove an endpoint; gone already: fine."""
        await self._store.delete(key)

    async def missing_profile(self, network: str) -> str:
        """``network`` if that name is not empty and there is no such profile, else empty."""
        there = not network or await self._store.get(ResourceKey("Profile", network).path) is not None
        return "" if there else network

    async def _make_profile(self, network: str) -> None:
        """The network's profile: its containers talk to each other.  One that is there by now is not changed."""
        if not network:
            return
        spec = {
            "egress": [{"action": "Allow"}],
            "ingress": [{"action": "Allow", "source": {"selector": f"has({network})"}}],
            "labelsToApply": {network: ""},
        }
        key = ResourceKey("Profile", network).path
        await self._store.txn([unchanged(key, None)], [Put(key, self._object("Profile", network, spec))])

    def _object(
        self, kind: str, name: str, spec: Mapping[str, Any], *, namespace: str = "", labels: Mapping[str, str] = {},
    ) -> bytes:  # fmt: skip
        """An object with the uid and time without which calicoctl would not change it."""
        metadata: dict[str, Any] = {"name": name}
        if namespace:
            metadata["namespace"] = namespace
        metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": f"{self._clock.utc():%Y-%m-%dT%H:%M:%SZ}"}
        if labels:
            metadata["labels"] = dict(labels)
        value = {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": metadata, "spec": spec}
        return encode(value)


def labels_of(request: Request) -> tuple[str, dict[str, str]]:
    """(namespace, labels) of a container: of ``args."org.apache.mesos".network_info.labels``, else default and none."""
    info = request.section("args", "org.apache.mesos", "network_info", "labels")
    namespace, labels = "default", {}
    for entry in info.get("labels") or ():
        try:
            key, value = str(entry["key"]), str(entry.get("value", ""))
        except (TypeError, KeyError, AttributeError):
            raise CniError(BAD_CONFIG, f"args: a label must have key and value, not {entry!r}") from None
        if key == "projectcalico.org/namespace":
            namespace = _sanitized(value)
        else:
            labels[_sanitized(key)] = _sanitized(value)
    return namespace, labels


def _sanitized(text: str) -> str:
    """Any text as a label's part, by Calico's rules (utils.go, SanitizeMesosLabel)."""
    text = re.sub(r"[^-_.a-zA-Z0-9]+", "-", text.replace("/", "."))
    return re.sub(r"[.-]*[.][.-]*", ".", text).strip(".-")
