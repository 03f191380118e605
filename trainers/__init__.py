"""Training binaries, `python -m trainers.NAME`, and the one loop they share."""

import os

# Before TensorFlow is imported: its notes on the build of CPU kernels hide what a
# binary says.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
