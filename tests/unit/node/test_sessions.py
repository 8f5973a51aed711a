"""The tables of ``felixctl node status``, against calicoctl's as its documentation prints them."""

from __future__ import annotations

from typing import Any

import pytest

from felixpy.node.sessions import Session, of_bird, of_birdpy, session_table

# docs.tigera.io, calicoctl node status
CALICOCTLS = """\
+--------------+-------------------+-------+----------+-------------+
| PEER ADDRESS |     PEER TYPE     | STATE |  SINCE   |    INFO     |
+--------------+-------------------+-------+----------+-------------+
| 172.17.8.102 | node-to-node mesh | up    | 23:30:04 | Established |
+--------------+-------------------+-------+----------+-------------+"""


def protocol(neighbor: str, **more: Any) -> dict[str, Any]:
    row = {"neighbor": neighbor, "kind": "mesh", "state": "up", "since": "2026-11-21 23:30:04", "info": "Established"}
    return {**row, "lastError": "", **more}


def test_the_table_is_that_of_calicoctl() -> None:
    found = of_birdpy([protocol("172.17.8.102")], "2026-11-20 01:02:03", "2026-11-21")
    assert session_table(found) == CALICOCTLS


def test_what_birdpy_says_becomes_calicos_words() -> None:
    rows = [
        protocol("172.17.8.102", kind="global", since="2026-11-19 23:30:04", lastError="of long ago"),
        protocol("fd00::2", kind="node", state="start", info="Active", since="", lastError="connection refused"),
    ]
    assert of_birdpy(rows, "2026-11-20 01:02:03", "2026-11-21") == [
        Session("172.17.8.102", "global", "up", "2026-11-19", "Established"),
        Session("fd00::2", "node specific", "start", "2026-11-20", "Active connection refused"),
    ]


def test_bird_is_read_as_calicoctl_reads_it() -> None:
    answer = """2002-Name       Proto      Table      State  Since         Info
1002-device1    Device     ---        up     02:41:36.950
 Global_172_31_0_2 BGP        ---        up     02:41:38.514  Established
 Mesh_fd00_31__12 BGP        ---        start  02:41:39.941  Active        Socket: Connection refused
 mine BGP        ---        up     02:41:38.514  Established
"""
    assert of_bird(answer) == [
        Session("172.31.0.2", "global", "up", "02:41:38.514", "Established"),
        Session("fd00:31::12", "node-to-node mesh", "start", "02:41:39.941", "Active Socket: Connection refused"),
    ]
    with pytest.raises(ValueError, match="unknown"):
        of_bird("2002-Name State\n")
