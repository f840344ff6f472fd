"""Measurements beside peers: interleaved, repeated, printed with their spread."""
