"""The client half of the data plane: attach, endpoints, and the framing of control connections."""
