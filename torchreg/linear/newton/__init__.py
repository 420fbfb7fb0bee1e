"""Proximal Newton paths of generalised linear models, whatever the penalty."""
