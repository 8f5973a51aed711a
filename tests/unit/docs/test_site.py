"""The reference holds all that the code has, and the site builds strictly and needs no network."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from birdpy.agent.settings import BirdpySettings
from confd.agent.settings import ConfdSettings
from felixpy.agent.settings import AgentSettings
from felixpy.cli.main import VERBS
from libcalico.model.keys import KINDS
from libcalico.model.resources import SPECS

ROOT = Path(__file__).parents[3]


def load_generator() -> Any:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generator()


def rows(page: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in page.splitlines() if line[:2] == "| "]


def test_every_setting_stands_in_the_reference_with_its_default() -> None:
    found = {row[1]: row[2] for row in rows(generate.settings_page()) if len(row) > 2}
    for cls, prefix in ((AgentSettings, "FELIXPY_"), (ConfdSettings, "CONFD_"), (BirdpySettings, "BIRDPY_")):
        for field in msgspec.structs.fields(cls):
            assert f"`{prefix}{field.name.upper()}`" in found, field.name
    assert found["`FELIXPY_AUDIT_INTERVAL_S`"] == "`60.0`"
    assert found["`FELIX_PROMETHEUSMETRICSPORT`"] == "`9091`"
    assert "annotation `felixpy.io/denyLog`" in generate.settings_page()


def test_a_meaning_of_several_lines_is_whole() -> None:
    class Sample(msgspec.Struct):
        """Settings.

        Attributes:
            one: First line
                and second.
            two, three: Both.
        """

    assert generate._attributes(Sample) == {"one": "First line and second.", "two": "Both.", "three": "Both."}


def test_every_verb_and_every_kind_with_its_fields_stands_in_the_reference() -> None:
    commands, model = generate.cli_page(), generate.data_model_page()
    for verb in VERBS:
        assert f"### felixctl {verb}\n" in commands
        assert f"usage: felixctl {verb} " in commands
    for kind, (plural, _) in KINDS.items():
        assert f"/{plural}/" in model
        assert kind not in SPECS or f"## {kind}\n" in model
    assert "| `ipv4IPIPTunnelAddr` | string |" in model
    for anchor in re.findall(r"\]\(#([^)]+)\)", model):
        assert re.search(rf"^##+ {anchor}$", model, re.MULTILINE | re.IGNORECASE), anchor


def test_every_example_is_shown_whole() -> None:
    page = generate.examples_page()
    files = list((ROOT / "docs" / "examples").glob("*.yaml"))
    assert len(files) > 20
    for file in files:
        assert file.read_text().rstrip() in page, file.name


def test_links_out_of_the_documentation_become_names() -> None:
    markdown = "[a lab](../containerlab/x/README.md), [bgp](bgp.md), [containerlab/y](../containerlab/y)"
    assert generate.on_page_markdown(markdown) == "a lab (`containerlab/x/README.md`), [bgp](bgp.md), `containerlab/y`"


def test_a_page_whose_commands_no_test_runs_says_so() -> None:
    page = "# Page\n\n```bash\ntrue\n```\n"
    assert "no test runs them" in generate.on_page_markdown(page)
    assert generate.on_page_markdown(f"{generate.TESTED}\n{page}") == f"{generate.TESTED}\n{page}"
    assert generate.on_page_markdown("# Page\n") == "# Page\n"


def test_the_navigation_leaves_out_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.md").touch()
    nav = [{"One": [{"A": "a.md"}, {"B": "b.md"}]}, {"Two": [{"C": "c.md"}]}, {"R": "reference/metrics.md"}]
    assert generate._present(nav, tmp_path) == [{"One": [{"A": "a.md"}]}, {"R": "reference/metrics.md"}]


def test_every_page_is_in_the_navigation() -> None:
    def targets(entry: Any) -> list[str]:
        (target,) = entry.values()
        return [t for inner in target for t in targets(inner)] if isinstance(target, list) else [target]

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = {target for entry in nav for target in targets(entry)}
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert pages <= listed, "add it to nav in mkdocs.yml"


@pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="needs the extra docs")
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=110,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    pages = list((tmp_path / "site").rglob("*.html"))
    assert {"index.html", "cookbook.html", "metrics.html", "data-model.html"} <= {page.name for page in pages}
    for page in pages:
        loaded = re.findall(r"<(?:script|img|link)[^>]+(?:src|href)=\"?(https?://[^\s\">]+)", page.read_text())
        assert not loaded, f"{page.name} loads {loaded}"


def test_every_setting_has_a_meaning_in_plain_words() -> None:
    """One program each a section; what the tables say comes from docstrings."""
    tables = generate.settings_page().partition("## FelixConfiguration")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables.splitlines() if line.startswith("| `")]
    assert len(rows) > 40
    assert not [row[0] for row in rows if not row[-1] or ":mod:" in row[-1] or ":class:" in row[-1]]
