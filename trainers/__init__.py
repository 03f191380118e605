"""Training binaries, `python -m trainers.NAME`, and the one loop they share."""
