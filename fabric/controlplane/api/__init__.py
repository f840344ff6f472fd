"""The gRPC control API `fabric.v1` of a node: its server, its client, its error mapping."""
