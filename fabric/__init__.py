"""fabric: typed channels, routing, in-flight transforms and adaptive paths for modular inference."""
