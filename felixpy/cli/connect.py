"""How felixctl reaches the datastore: calicoctl's environment, over calicoctl's configuration file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from felixpy.cli.defaults import CONFIG_FILE
from libcalico.datastore.etcd import EtcdDatastore, EtcdSettings

# CalicoAPIConfig's fields, and the environment variables that override them
_FIELDS = {
    "etcdEndpoints": "ETCD_ENDPOINTS", "etcdUsername": "ETCD_USERNAME", "etcdPassword": "ETCD_PASSWORD",
    "etcdCACertFile": "ETCD_CA_CERT_FILE", "etcdCertFile": "ETCD_CERT_FILE", "etcdKeyFile": "ETCD_KEY_FILE",
}  # fmt: skip


def settings(file: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment, with what the configuration file says where it says nothing.

    Raises:
        ValueError: The file cannot be used.  That the usual one does not exist is no fault; a file that was named must
            be there: its user means another datastore than the one that would be found without it.
    """
    found = dict(environ)
    for variable in ("CALICO_DATASTORE_TYPE", "DATASTORE_TYPE"):
        if (kind := environ.get(variable)) and kind != "etcdv3":
            raise ValueError(f"{variable} {kind!r} is not supported, only etcdv3")
    try:
        document: Any = yaml.safe_load(Path(file).read_text())
    except FileNotFoundError:
        if file != CONFIG_FILE:
            raise ValueError(f"{file}: No such file or directory") from None
        return found
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as why:
        raise ValueError(f"{file}: {' '.join(str(why).split())}") from None
    spec = document.get("spec") if isinstance(document, dict) else None
    if not isinstance(spec, dict):
        raise ValueError(f"{file}: has no spec")
    if spec.get("datastoreType") not in {None, "etcdv3"}:
        raise ValueError(f"{file}: datastoreType {spec['datastoreType']!r} is not supported, only etcdv3")
    for field, variable in _FIELDS.items():
        if spec.get(field) and not found.get(variable):
            found[variable] = str(spec[field])
    return found


def open_store(file: str) -> EtcdDatastore:
    """Open the datastore.  Raises ValueError when the settings cannot be used."""
    return EtcdDatastore(EtcdSettings.from_env(settings(file, os.environ)))
