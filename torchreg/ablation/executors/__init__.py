"""Where cells run: in this process, in processes of our own, on a Ray cluster, in any other executor."""
