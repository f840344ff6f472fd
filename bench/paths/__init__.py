"""Group `paths`: several rails between nodes, shaped, throttled, lost and returned, beside peers with several."""
