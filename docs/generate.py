"""The reference pages, made from the code when the documentation is built; a hook of mkdocs (see mkdocs.yml).

    reference/settings.md     what each program can be told, from its settings struct and FelixConfig
    reference/metrics.md      from the registries of the daemons
    reference/cli.md          from the argument parsers
    reference/data-model.md   kinds, keys and fields, from libcalico.model
    reference/examples.md     the files of docs/examples

Nothing of it is stored, so nothing of it can be out of date.  ``python docs/generate.py`` prints the pages.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
from prometheus_client import CollectorRegistry

REPOSITORY = Path(__file__).resolve().parent.parent
_HEAD = "<!-- made by docs/generate.py -->\n\n"


# --- settings -------------------------------------------------------------------------------------------------------


def settings_page() -> str:
    """What each program can be told."""
    from birdpy.agent.settings import BirdpySettings
    from confd.agent.settings import ConfdSettings
    from felixpy.agent.settings import AgentSettings

    parts = [
        "# Settings\n",
        "Each program merges *default < file < environment < command line*. An unknown name in a file, or a value that "
        "does not fit, ends the program with status 78 and one line that names it.\n",
        "## etcd, for all programs\n",
        _etcd_table(),
    ]
    for program, cls, prefix, file in (
        ("felixpy", AgentSettings, "FELIXPY_", "/etc/felixpy/felixpy.toml"),
        ("confd", ConfdSettings, "CONFD_", "/etc/confd/confd.toml"),
        ("birdpy", BirdpySettings, "BIRDPY_", "/etc/felixpy/birdpy.toml"),
    ):
        parts += [f"## {program}\n", f"File `{file}`, environment `{prefix}…`.\n", _settings_table(cls, prefix)]
    parts += ["## FelixConfiguration\n", _felix_table()]
    return "\n".join(parts)


def _settings_table(cls: type[msgspec.Struct], prefix: str) -> str:
    said = _attributes(cls)
    rows = [
        (f"`{f.name}`", f"`{prefix}{f.name.upper()}`", _code(f.default), said.get(f.name, ""))
        for f in msgspec.structs.fields(cls)
    ]
    return _table(("setting", "environment", "default", "meaning"), rows)


def _etcd_table() -> str:
    from libcalico.datastore.etcd_settings import EtcdSettings

    said = _attributes(EtcdSettings)
    names = ("endpoints", "ca_cert_file", "cert_file", "key_file", "username", "password")
    rows = [(f"`ETCD_{name.upper()}`", said.get(name, "")) for name in names]
    return _table(("environment", "meaning"), rows) + "\nThe same with the prefix `CALICO_` wins.\n"


def _felix_table() -> str:
    """Fields that have an effect, with Felix's variables in the environment."""
    from felixpy.calc.config import FelixConfig, resolve_config
    from felixpy.calc.config_environment import DENY_LOG, FIELD_OF
    from felixpy.calc.config_undone import UNDONE, why_undone
    from libcalico.model.resources import FelixConfigurationSpec

    encoded = {f.name: f.encode_name for f in msgspec.structs.fields(FelixConfigurationSpec)}
    default, _ = resolve_config(None, None, {})
    ours = set(FelixConfig.__struct_fields__)
    variable_of = {name: f"FELIX_{param.upper()}" for param, name in FIELD_OF.items()} | {DENY_LOG: "FELIXPY_DENYLOG"}
    rows = []
    for name in sorted({*encoded, *variable_of} - UNDONE):
        shown = getattr(default, name) if name in ours else None
        variable = variable_of.get(name, "")
        place = f"annotation `{name}`" if "/" in name else f"`{encoded.get(name, '')}`" if name in encoded else ""
        rows.append((place, f"`{variable}`" if variable else "", _code(shown) if name in ours else ""))
    intro = (
        "FelixConfiguration `default`, over it `node.<name>`, over both `/etc/calico/felix.cfg` and, first of all, the "
        "environment of felixpy; files and environment are read at the start. These are the "
        "fields that felixpy acts on or understands; other fields of Calico's are kept and have no effect. A value "
        "that cannot be used is reported (`felixctl doctor`), and the default holds. An empty last column: no "
        "default, or one that is built of several.\n"
    )
    undone = [(f"`{encoded[name]}`", why_undone(name)) for name in sorted(UNDONE)]
    return "\n".join((
        intro, _table(("field", "environment", "default"), rows),
        "Whoever asks for one of these is told that nothing comes of it:\n", _table(("field", "what is said"), undone),
    ))  # fmt: skip


def _attributes(cls: type) -> dict[str, str]:
    """The ``Attributes:`` of a docstring, by name."""
    _, _, text = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in text.splitlines():
        head = re.match(r"    ([a-z_0-9]+(?:, [a-z_0-9]+)*): (.*)", line)
        if head:
            names = head[1].split(", ")
            found.update(dict.fromkeys(names, head[2].strip()))
        elif line.strip():
            for name in names:
                found[name] += " " + line.strip()
    return {name: said.replace("``", "`") for name, said in found.items()}


# --- metrics --------------------------------------------------------------------------------------------------------


class MetricRow(NamedTuple):
    """One family as a scrape shows it; ``samples``: the names a query can use."""

    program: str
    name: str
    kind: str
    help: str
    labels: tuple[str, ...]
    samples: tuple[str, ...]


_SAMPLES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "summary": ("", "_sum", "_count")}


def metric_rows() -> list[MetricRow]:
    """All families of all daemons."""
    return [row for program, registry in _registries() for row in _families(program, registry)]


def _registries() -> Iterator[tuple[str, CollectorRegistry]]:
    from felixpy.agent.metrics import AgentMetrics
    from felixpy.calc.graph import CalcGraph

    yield "felixpy", AgentMetrics(CalcGraph("node"), lambda: 0).registry
    if importlib.util.find_spec("birdpy.agent.metrics"):
        from birdpy.agent.daemon import Daemon
        from birdpy.agent.settings import BirdpySettings

        daemon: Any = Daemon(typing.cast(Any, None), BirdpySettings())
        yield "birdpy", daemon.metrics.registry
    if importlib.util.find_spec("confd.agent.metrics"):
        metrics: Any = importlib.import_module("confd.agent.metrics")
        empty = types.SimpleNamespace(
            renders=0, changes=0, revision=0, failures={}, problems={}, resources=[], connected=True
        )
        yield "confd", metrics.ConfdMetrics(empty).registry


def _families(program: str, registry: CollectorRegistry) -> Iterator[MetricRow]:
    owners = getattr(registry, "_names_to_collectors", {})
    for family in registry.collect():
        labels = list(getattr(family, "_labelnames", ()) or getattr(owners.get(family.name), "_labelnames", ()))
        for sample in family.samples:
            labels += [label for label in sample.labels if label not in labels and label != "le"]
        samples = tuple(family.name + suffix for suffix in _SAMPLES.get(family.type, ("",)))
        yield MetricRow(program, family.name, family.type, family.documentation, tuple(labels), samples)
    if program == "birdpy" and "exabgp_process_cpu_seconds" not in owners:  # shown while ExaBGP is there
        for row in list(_families("", _process_registry())):
            yield row._replace(
                program="birdpy", name=f"exabgp_{row.name}", samples=tuple(f"exabgp_{s}" for s in row.samples)
            )


def _process_registry() -> CollectorRegistry:
    from prometheus_client import ProcessCollector

    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


def metrics_page() -> str:
    """All metrics, by program."""
    parts = [
        "# Metrics\n",
        "felixpy serves them where FelixConfiguration `prometheusMetricsEnabled` says, birdpy and confd where "
        "`BIRDPY_HTTP_PORT` and `CONFD_HTTP_PORT` do. Names are Felix's, bird_exporter's and Calico's where those have "
        "one. Labels are bounded by this node's policies, peers and template resources; none holds an address of "
        "traffic. Felix's summaries are histograms here, which can be added up over nodes.\n",
        "A [Grafana dashboard](../grafana/felixpy.json) and [alert rules](../prometheus/alerts.yml) use them.\n",
    ]
    for program in ("felixpy", "birdpy", "confd"):
        rows = [
            (", ".join(f"`{name}`" for name in row.samples), row.kind.replace("unknown", "untyped"),
             ", ".join(f"`{label}`" for label in row.labels), row.help)
            for row in sorted(metric_rows()) if row.program == program
        ]  # fmt: skip
        if rows:
            parts += [f"## {program}\n", _table(("metric", "type", "labels", "meaning"), rows)]
    return "\n".join(parts)


# --- command lines --------------------------------------------------------------------------------------------------


def cli_page() -> str:
    """``--help`` of all programs and verbs."""
    from birdpy.agent.main import _parser as birdpy
    from confd.agent.main import _parser as confd
    from felixpy.agent.main import _parser as felixpy
    from felixpy.cli.main import VERBS
    from felixpy.cli.main import _parser as felixctl
    from lab.main import _parser as lab

    parts = ["# Command lines\n", "What each program prints for `--help`.\n", "## felixctl\n", _help(felixctl([]))]
    for verb in VERBS:
        sub = _subparser(felixctl([verb]), verb)
        parts += [f"### felixctl {verb}\n", _help(sub)]
    for name, parser in (("felixpy", felixpy()), ("confd", confd()), ("birdpy", birdpy()), ("felixpy-lab", lab())):
        parts += [f"## {name}\n", _help(parser)]
    return "\n".join(parts)


def _subparser(parser: argparse.ArgumentParser, verb: str) -> argparse.ArgumentParser:
    action = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    found: argparse.ArgumentParser = action.choices[verb]
    return found


def _help(parser: argparse.ArgumentParser) -> str:
    with _columns(100):
        return f"```text\n{parser.format_help().rstrip()}\n```\n"


@contextlib.contextmanager
def _columns(width: int) -> Iterator[None]:
    """argparse takes its width from the environment, and only there."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(width)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


# --- data model -----------------------------------------------------------------------------------------------------


def data_model_page() -> str:
    """Kinds with their keys, and the fields that are read in detail."""
    from libcalico.model.keys import KINDS, RESOURCES
    from libcalico.model.resources import SPECS, STATUSES

    rows = [
        (f"[{kind}](#{kind.lower()})" if kind in SPECS else kind,
         f"`{RESOURCES}{plural}/{'<namespace>/' if namespaced else ''}<name>`")
        for kind, (plural, namespaced) in KINDS.items()
    ]  # fmt: skip
    parts = [
        "# Data model\n",
        "The keys and values are Calico's. Each value is the JSON of a resource: `apiVersion`, `kind`, `metadata`, "
        "`spec`; with etcdctl `apiVersion`, `kind` and `metadata` may be left out. Fields that are not listed are kept "
        "and not looked at. `felixctl validate -f` checks ranges and formats.\n",
        _table(("kind", "key"), rows),
    ]
    nested: dict[str, type[msgspec.Struct]] = {}
    for kind, spec in SPECS.items():
        parts += [f"## {kind}\n", _fields(spec, nested)]
        if kind in STATUSES:
            parts += ["Status, written by the daemons:\n", _fields(STATUSES[kind], nested)]
    parts += ["## Parts\n"]
    shown: set[str] = set()
    while todo := sorted(nested.keys() - shown):
        for name in todo:
            shown.add(name)
            parts += [f"### {name}\n", _fields(nested[name], nested)]
    return "\n".join(parts)


def _fields(struct: type[msgspec.Struct], nested: dict[str, type[msgspec.Struct]]) -> str:
    hints = typing.get_type_hints(struct)
    rows = [
        (f"`{f.encode_name}`", _type(hints[f.name], nested), "required" if f.required else "")
        for f in msgspec.structs.fields(struct)
    ]
    return _table(("field", "type", ""), rows) if rows else "No fields are read.\n"


def _type(hint: Any, nested: dict[str, type[msgspec.Struct]]) -> str:
    """A type in words: ``list of string``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    words: dict[Any, str] = {str: "string", int: "integer", bool: "true or false", float: "number", Any: "any"}
    if hint in words:
        return words[hint]
    if origin in {typing.Union, types.UnionType}:
        return " or ".join(_type(a, nested) for a in arguments if a is not type(None))
    if origin in {list, tuple}:
        return f"list of {_type(arguments[0], nested)}"
    if origin is dict:
        return "map"
    if origin is Literal:
        return ", ".join(f"`{a}`" for a in arguments)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        nested[hint.__name__] = hint
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    return str(getattr(hint, "__name__", hint))


def examples_page() -> str:
    """The files of docs/examples, one for each kind."""
    parts = [
        "# Examples\n",
        "One of every kind, as `felixctl apply -f` takes them; the tests validate each. The same with etcdctl: "
        "[cookbook](../cookbook.md).\n",
    ]
    for file in sorted((REPOSITORY / "docs" / "examples").glob("*.yaml")):
        text = file.read_text()
        kinds = dict.fromkeys(re.findall(r"^kind: (\w+)$", text, re.MULTILINE))
        parts += [f"## {', '.join(kinds)}\n", f'```yaml title="{file.name}"\n{text.rstrip()}\n```\n']
    return "\n".join(parts)


# --- text -----------------------------------------------------------------------------------------------------------


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _code(value: Any) -> str:
    if value is msgspec.NODEFAULT or value is None or value in ("", ()):
        return ""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`" if len(text) < 60 else "several"


PAGES: dict[str, Callable[[], str]] = {
    "reference/settings.md": settings_page,
    "reference/metrics.md": metrics_page,
    "reference/cli.md": cli_page,
    "reference/data-model.md": data_model_page,
    "reference/examples.md": examples_page,
}


# --- mkdocs ---------------------------------------------------------------------------------------------------------


def on_config(config: Any) -> Any:
    """Leave out of the navigation what is not there: pages that come with parts of the project."""
    config["nav"] = _present(config["nav"], Path(config["docs_dir"]))
    return config


def _present(entries: list[Any], folder: Path) -> list[Any]:
    kept: list[Any] = []
    for entry in entries:
        ((title, target),) = entry.items()
        if isinstance(target, list):
            if inner := _present(target, folder):
                kept.append({title: inner})
        elif target in PAGES or (folder / target).exists():
            kept.append(entry)
    return kept


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    sys.path.insert(0, str(REPOSITORY))
    for path, make in PAGES.items():
        files.append(File.generated(config, path, content=_HEAD + make()))
    return files


TESTED = "<!-- commands: tested -->"
_FOLDERS = "containerlab|systemd|bench|tests|felixpy|birdpy|confd|libcalico|lab"
_OUTSIDE = re.compile(rf"\[([^]]+)\]\((?:\.\./)+((?:{_FOLDERS})\b[^)]*|[A-Z]+\.md)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Say of a page whether its commands are run by the tests, and mend links.

    Links out of docs/ lead to files of the repository, which the site does not have: they become names.
    """
    if TESTED not in markdown and re.search(r"^```(bash|sh|shell)\b", markdown, re.MULTILINE):
        markdown = f"{markdown}\n\n*The commands on this page are illustrations; no test runs them.*\n"
    return _OUTSIDE.sub(lambda m: f"`{m[2]}`" if m[1].strip("`") == m[2] else f"{m[1]} (`{m[2]}`)", markdown)


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))
    for page in PAGES.values():
        sys.stdout.write(page() + "\n")
