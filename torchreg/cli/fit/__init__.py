"""``torchreg fit``."""
