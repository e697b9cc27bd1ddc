"""A bundle in, a device that serves it out: signatures, chunks, what the two say to each other, the agent."""
