"""fabricctl: shows and changes what a node does, through its control API only."""
