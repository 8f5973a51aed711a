"""ExaBGP as our speaker: its process, its pipe, its language."""
