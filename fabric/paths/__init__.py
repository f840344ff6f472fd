"""How the bytes go between two places: which link is taken, which would be preferred, and why."""
