"""The papers' tables on an accelerator, in pieces that any minute of it can take on.

    python -m benchmarks.accelerator --budget_s=540 --data=cifar10.npz --out=DIR
    python -m benchmarks.accelerator --plan --data=cifar10.npz --out=DIR

It needs jax, keras, tfp-nightly, numpy, scipy, scikit-learn, matplotlib, h5py, pillow
and absl-py, and no TensorFlow. Pieces run in the order of their value until the budget
is spent: a table of speeds, the tables of the papers, what the precisions cost. The
same command goes on where the last one ended, or was killed; `--plan` says what it
would do and how long each piece should take. `DIR/report.md` has what there is so far.

Flags of the trainers on the command line hold for all experiments, such as `--width`,
`--epochs`, `--train_examples` or `--seeds`.
"""
