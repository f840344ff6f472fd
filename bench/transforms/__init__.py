"""Measurements of group `transforms` that need nodes of their own: what codecs are worth on a path."""
