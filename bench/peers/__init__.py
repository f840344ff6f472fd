"""One file per peer; each does the same job with what that peer offers for it."""
