"""Images in, ranges and Q/DQ graphs out."""
