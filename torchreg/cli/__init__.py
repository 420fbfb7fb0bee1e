"""The command line."""

from torchreg.cli.main import main

__all__ = ["main"]
