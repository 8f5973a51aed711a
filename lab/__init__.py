"""felixpy-lab: run a containerlab topology file in network namespaces, without Docker."""
