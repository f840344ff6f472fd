"""Control plane: keeper, daemon, attach server, flows, supervision and audit of one node."""
