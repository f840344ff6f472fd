"""Connections between nodes: who is at the other end, before the engine or the control plane takes the socket."""
