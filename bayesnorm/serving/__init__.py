"""Models for a server that runs without Python."""
