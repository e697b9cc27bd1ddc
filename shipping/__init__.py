"""A bundle in, a device that serves it out: signatures, chunks, packing, and the agent's own file."""
