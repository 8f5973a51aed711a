"""``felixpy-lab``: up, down, inspect, exec, enter, demo, check, graph."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lab import demo, graph, live, readme
from lab import expect as ex
from lab.namespaces import LabError
from lab.runner import Lab, remove, require_root
from lab.topology import TopologyError, lab_name


def _progress() -> Callable[[str], None]:
    began = time.monotonic()

    def say(text: str) -> None:
        sys.stderr.write(f"[{time.monotonic() - began:6.1f} s] {text}\n")

    return say


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="felixpy-lab", description="Run a containerlab topology file in network namespaces, without Docker."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("up", "build the lab"),
        ("down", "remove every trace of it"),
        ("inspect", "show its nodes"),
        ("demo", "build it, wait until it works, show it"),
        ("check", "compare a running lab with its expect.yml"),
        ("readme", "run all commands of a running lab's README.md, and say which of them show something else"),
    ):
        sub = commands.add_parser(name, help=text)
        sub.add_argument("file", type=Path)
        if name == "inspect":
            sub.add_argument("-o", "--output", choices=["text", "json"], default="text")
        if name == "readme":
            sub.add_argument("--write", action="store_true", help="put what they show into the file")
    draw = commands.add_parser("graph", help="draw the topology, with its live state while it runs (root)")
    how = draw.add_mutually_exclusive_group()
    how.add_argument("--svg", metavar="FILE", help="write an SVG picture; - for standard output")
    how.add_argument("--text", action="store_true", help="as text (the default)")
    draw.add_argument("file", type=Path)
    run = commands.add_parser("exec", help="run a command in a node, or in a pod of it")
    run.add_argument("file", type=Path)
    run.add_argument("--pod", default="")
    run.add_argument("node")
    run.add_argument("args", nargs=argparse.REMAINDER)
    enter = commands.add_parser("enter", help="a shell in a node, or in a pod of it")
    enter.add_argument("file", type=Path)
    enter.add_argument("--pod", default="")
    enter.add_argument("node")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 done, 1 something is not as expected, 2 cannot be done."""
    args = _parser().parse_args(argv)
    if args.command != "graph":
        require_root()
    try:
        return _run(args)
    except (LabError, TopologyError) as why:
        sys.stderr.write(f"felixpy-lab: {why}\n")
        return 2
    except KeyboardInterrupt:
        gone = ", everything is removed" if args.command in {"up", "demo"} else ""
        sys.stderr.write(f"felixpy-lab: interrupted{gone}\n")
        return 130


def _interrupt(*_: object) -> None:
    """A terminal that is closed, and kill(1), end a build as Ctrl-C does: with nothing left."""
    raise KeyboardInterrupt


def _run(args: argparse.Namespace) -> int:
    if args.command == "down":
        remove(lab_name(args.file))  # whatever has become of the rest of the file
        return 0
    if args.command in {"up", "demo"}:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # not under nohup
                signal.signal(number, _interrupt)
    lab = Lab.from_file(args.file, progress=_progress())
    match args.command:
        case "up":
            lab.up()
        case "demo":
            return _demo(lab)
        case "check":
            return _check(lab.attach())
        case "readme":
            return _readme(lab.attach(), args.write)
        case "graph":
            _graph(lab, args.svg)
        case "inspect":
            _inspect(lab.attach(), args.output)
        case "exec" | "enter":
            node = lab.attach().node(args.node)
            words = getattr(args, "args", [])
            if words[:1] == ["--pod"]:
                raise LabError("--pod comes before the node: exec --pod POD FILE NODE -- COMMAND")
            words = words[1:] if words[:1] == ["--"] else words
            command = node.command(words or ["bash"], netns=args.pod, env={"TERM": os.environ.get("TERM", "dumb")})
            os.execvp(command[0], command)  # noqa: S606  # becoming the command is the point
        case _:
            raise LabError(f"unknown command {args.command}")
    return 0


def _inspect(lab: Lab, output: str) -> None:
    rows = [
        {"name": n.name, "pid": n.pid, "kind": n.spec.kind, "cmd": " ".join(n.spec.command)} for n in lab.nodes.values()
    ]
    if output == "json":
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            print(f"{row['name']:12} pid {row['pid']:<8} {row['cmd']}")


def _readme(lab: Lab, write: bool) -> int:
    path = lab.topology.path.parent / "README.md"
    try:
        text = path.read_text()
        if write:
            path.write_text(readme.rewritten(lab, text))
            return 0
    except OSError as why:
        raise LabError(f"{path}: {why.strerror}") from None
    wrong = [found for example in readme.examples(text) if (found := readme.difference(lab, example))]
    print("\n\n".join(wrong) or f"{path}: all is as it says")
    return 1 if wrong else 0


def _graph(lab: Lab, svg: str | None) -> None:
    if os.geteuid() == 0 and lab.is_up():
        lab.attach()
    drawn = live.picture(lab)
    if svg is None:
        sys.stdout.write(graph.text(drawn))
    elif svg == "-":
        sys.stdout.write(graph.svg(drawn))
    else:
        try:
            Path(svg).write_text(graph.svg(drawn))
        except OSError as why:
            raise LabError(f"{svg}: {why.strerror}") from None


def _demo(lab: Lab) -> int:
    say = _progress()
    expect = ex.Expectation.load(lab.topology.path.parent / "expect.yml")
    try:
        lab.up()
        say("waiting for BGP sessions")
        try:
            ex.until("sessions", lambda: ex.missing_sessions(lab, expect))
            say("waiting for routes")
            ex.until("routes", lambda: ex.missing_routes(lab, expect))
        except LabError as why:
            say(f"giving up waiting: {why}")
        wrong = demo.show(lab, expect)
    except KeyboardInterrupt:
        lab.down()
        raise
    return _verdict(wrong)


def _check(lab: Lab) -> int:
    expect = ex.Expectation.load(lab.topology.path.parent / "expect.yml")
    return _verdict(demo.show(lab, expect))


def _verdict(wrong: list[str]) -> int:
    if not wrong:
        print("\nEverything is as the topology expects.")
        return 0
    print("\nNot as expected:")
    for line in wrong:
        print(f"  {line}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
