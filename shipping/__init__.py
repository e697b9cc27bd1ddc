"""A bundle in, a device that serves it out: signatures, chunks, one file of it all, and the agent's own file."""
