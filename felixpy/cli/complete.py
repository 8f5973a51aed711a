"""``felixctl completion bash|zsh`` and ``felixctl version``."""

from __future__ import annotations

import argparse

from felixpy.cli.kinds import words

_BASH = """\
_felixctl() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}"
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{verbs}" -- "$word"))
    elif [ "$COMP_CWORD" -eq 2 ] && [[ " {kinded} " == *" ${{COMP_WORDS[1]}} "* ]] && [[ "$word" != -* ]]; then
        COMPREPLY=($(compgen -W "{kinds}" -- "$word"))
    elif [ "$COMP_CWORD" -ge 3 ] && [[ " {kinded} " == *" ${{COMP_WORDS[1]}} "* ]] && [[ "$word" != -* ]]; then
        local names="$(felixctl get "${{COMP_WORDS[2]}}" -a -o custom-columns=NAME 2>/dev/null | tail -n +2)"
        COMPREPLY=($(compgen -W "$names" -- "$word"))
    else
        COMPREPLY=($(compgen -f -- "$word"))
    fi
}}
complete -F _felixctl felixctl
"""


def add_completion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=["bash", "zsh"])


def completion(args: argparse.Namespace, verbs: list[str]) -> int:
    """Print the script; ``source <(felixctl completion bash)``."""
    if args.shell == "zsh":
        print("autoload -U +X bashcompinit && bashcompinit")
    kinded = "get delete patch label"
    print(_BASH.format(verbs=" ".join(verbs), kinds=" ".join(words()), kinded=kinded), end="")
    return 0


def add_version_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--client", action="store_true", help="do not ask the datastore")


async def version(args: argparse.Namespace) -> int:
    """Client version, and what the datastore says of the cluster."""
    from libcalico.runtime.version import own_version

    print(f"Client Version:    {own_version()}")
    if args.client:
        return 0
    from felixpy.cli.connect import open_store
    from libcalico.model.keys import ResourceKey
    from libcalico.model.stored import parse_object

    store = open_store(args.config)
    try:
        row = await store.get(ResourceKey("ClusterInformation", "default").path)
    finally:
        await store.close()
    found = (parse_object(row.value) or {}).get("spec") if row is not None else None
    spec = found if isinstance(found, dict) else {}
    print(f"Cluster Version:   {spec.get('calicoVersion') or 'unknown'}")
    print(f"Cluster Type:      {spec.get('clusterType') or 'unknown'}")
    return 0


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--filename", default="")
    parser.add_argument("-o", "--output", default="yaml")


async def convert(args: argparse.Namespace) -> int:
    """Say that there is nothing to convert.  Raises ValueError."""
    raise ValueError(
        "there is nothing to convert: felixctl knows projectcalico.org/v3 only; "
        "for manifests of Calico 2 (apiVersion v1) take a calicoctl of release 3"
    )
