"""A small run of each binary."""

SMALL = "--samples=3 --width=0.1"
# What takes some ten seconds, half of them training: sbn calibrates, sbp prunes, atmc
# samples the posterior, and all of them export.
BINARIES = {
    "all_cnn": f"trainers.all_cnn --epochs=8 {SMALL}",
    "cell_fcn": f"trainers.cell_fcn --epochs=6 --train_examples=16 {SMALL}",
    "sbn": f"trainers.sbn --epochs=3 --members=2 {SMALL}",
    "sbp": f"trainers.sbp --pretrain_epochs=2 --epochs=4 --finetune_epochs=2 {SMALL}",
    "atmc": "trainers.atmc --epochs=6 --cycle_epochs=2 --burn_in_epochs=2 --samples=3 "
    "--network=resnet_plus_plus --batch_size=32 --checkpoint_every=1 --width=0.25",
}
