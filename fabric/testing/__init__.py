"""Tools for tests of the fabric and of what is built on it; nothing here runs in a daemon or module."""
