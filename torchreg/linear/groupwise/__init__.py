"""Paths of penalties of groups, for least squares."""
