"""``torchreg ablate``."""
