"""Paths of penalties of type L1."""
