"""Penalised linear models: whole paths, cross-validation, a duality gap for every answer."""
