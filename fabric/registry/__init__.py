"""Registry: what the cluster agrees on (nodes, channels, endpoints), kept by the first node."""
