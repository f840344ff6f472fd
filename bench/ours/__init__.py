"""The fabric itself as a subject of the bench: one file per way of joining the two halves."""
