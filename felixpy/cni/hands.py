"""What is done in the kernel for a pod, as tasks of names and texts: by the plugin's process, which is root.

The datastore's side (``plugin``) asks for them, from the agent through the socket or from the same process.
"""

from __future__ import annotations

from libcalico.kernel.pod_link import PodLink, host_links, remove_host_link

MAKE, REMOVE, LOOK, LINKS, REMOVE_HOST, EXISTS = "make", "remove", "look", "links", "remove-host", "exists"


def perform(task: dict[str, str]) -> str:
    """Do a task and return what is to be known of it.

    ``make`` returns the container's MAC address; ``look`` a line per fault; ``links`` NAME ALIAS lines; ``exists`` a 1
    when both ends of the link are there.

    Raises:
        KernelError: It could not be done.
    """
    what = task.get("task", "")
    if what == LINKS:
        return "\n".join(f"{name} {alias}" for name, alias in host_links().items())
    if what == REMOVE_HOST:
        remove_host_link(task["outer"], task["owner"])
        return ""
    link = PodLink(
        task.get("netns", ""), task.get("inner", ""), task.get("outer", ""),
        tuple(text for text in task.get("addresses", "").split(",") if text),
        mtu=int(task.get("mtu") or 0), queues=int(task.get("queues") or 1),
        forwarding=task.get("forwarding") == "1", owner=task.get("owner", ""),
        host_routes=task.get("host_routes") != "0",
    )  # fmt: skip
    if what == MAKE:
        return link.make()
    if what == EXISTS:
        return "1" if link.exists() else ""
    if what == LOOK:
        return "\n".join(link.problems(task.get("mac", "")))
    link.remove()
    return ""
