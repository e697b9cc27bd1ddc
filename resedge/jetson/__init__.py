"""What a Jetson is and how it fares: from its files and from tegrastats, with the standard library alone."""
