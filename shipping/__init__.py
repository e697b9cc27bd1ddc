"""A bundle in, a device that serves it out: signatures, chunks, one file of a bundle, the agent's own file."""
