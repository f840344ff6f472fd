"""Processes that run user code: module hosts and stage hosts."""
