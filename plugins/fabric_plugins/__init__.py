"""First-party transforms, registered through the entry points third parties use."""
