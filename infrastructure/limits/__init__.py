"""Rate limits: how many requests of the same requester pass, counted in this process or in Redis."""
