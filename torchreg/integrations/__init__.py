"""Callbacks and factories for trainers; each module needs its trainer, an optional extra."""
