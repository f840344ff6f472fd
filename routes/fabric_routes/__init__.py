"""First-party routing policies, registered through the entry points third parties use."""
