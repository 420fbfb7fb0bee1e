"""``torchreg demo``."""
