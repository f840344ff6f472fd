"""First-party inference modules: prefill and decode."""
