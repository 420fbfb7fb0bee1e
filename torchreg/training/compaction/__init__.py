"""Zeros that pay: smaller models that compute the same, from units that are zero, constant or unread."""
