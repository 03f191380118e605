"""Flags: groups and their attributes, validators, the file of flags, the start."""

import subprocess
import sys
import types

import pytest
from absl import flags as absl_flags

from trainers import all_cnn, cell_fcn, groups, sbn, sbp
from trainers.flags import Flag, command, define, defining, given, parse
from trainers.groups import image_size
from trainers.program import Program, start

PROGRAMS = {"all_cnn": all_cnn, "cell_fcn": cell_fcn, "sbn": sbn, "sbp": sbp}


def flags_of(*arguments, of=all_cnn):
    """The flags of a binary with a command line."""
    flags = define(*of.PROGRAM.all_groups)
    parse(flags, ["program", *arguments])
    return flags


@pytest.mark.parametrize(
    "argument",
    [
        "--epochs=0",
        "--epochs=x",
        "--batch_size=0",
        "--learning_rate=fast",
        "--learning_rate=0",
        "--learning_rate=nan",
        "--learning_rate=inf",
        "--optimizer=sdg",
        "--norm=layer",
        "--scale=noise",
        "--scale_stddev=0.1,x",
        "--shift_stddev=-0.1",
        "--train_examples=0",
        "--validation_examples=0",
        "--seeds=1,x",
        "--padding=full",
        "--dataset=imagenet",
        "--resize=big",
        "--resize=0",
        "--resize=8x",
        "--resize=8x8x3",
        "--channels=2",
        "--width=-1",
        "--decay=0",
        "--decay=1.5",
        "--decay_epochs=0",
        "--kl_warmup_epochs=-1",
        "--samples=0",
        "--seed=-1",
        "--seed=4294967",
        "--initial_stddev=0",
        "--checkpoint_every=0",
        "--jobs=0",
        "--nothing=1",
    ],
)
def test_wrong_values_are_refused_by_name(argument):
    with pytest.raises(absl_flags.Error, match=argument[2:].split("=")[0]):
        flags_of(argument)


@pytest.mark.parametrize(
    ("name", "foreign"),
    [
        ("all_cnn", ["tile", "downscale", "activation", "members"]),
        ("cell_fcn", ["held_out", "ood", "resize", "channels", "padding", "members"]),
        ("sbn", ["norm", "scale", "projection", "kl_factor", "tile", "runs", "seeds"]),
        ("sbp", ["norm", "scale", "projection", "initial_stddev", "members", "tile"]),
    ],
)
def test_a_binary_has_no_flag_that_would_change_nothing(name, foreign):
    flags = define(*PROGRAMS[name].PROGRAM.all_groups)
    assert not set(foreign) & set(flags)
    with pytest.raises(absl_flags.UnrecognizedFlagError, match=foreign[0]):
        PROGRAMS[name].PROGRAM.flags({foreign[0]: 1})


@pytest.mark.parametrize("binary", PROGRAMS.values(), ids=PROGRAMS)
def test_defaults_are_of_flags_that_there_are_and_pass_their_checks(binary):
    program = binary.PROGRAM
    known = set(define(*program.all_groups))
    for dataset, defaults in program.by_dataset.items():
        assert set(program.common | defaults) <= known
        flags = program.flags({"dataset": dataset})
        assert None not in (flags.epochs, flags.batch_size, flags.width)


@pytest.mark.parametrize(
    ("of", "dataset"), [(cell_fcn, "digits"), (all_cnn, "cells"), (sbn, "dic_hela")]
)
def test_sets_of_other_binaries_are_refused(of, dataset):
    with pytest.raises(absl_flags.Error, match=f"--dataset={dataset}: value should"):
        of.PROGRAM.flags({"dataset": dataset})


def test_defaults_do_not_touch_what_was_given():
    program = Program("x", (groups.TRAINING,), {"epochs": 3}, {"digits": {}}, None)
    assert program.flags({"epochs": 7}).epochs == 7
    flags = program.flags()
    # Of the data set, of the binary, of all of them, of the flag.
    assert (flags.dataset, flags.epochs, flags.batch_size) == ("digits", 3, 32)
    assert flags.steps_per_call == 100


def test_attributes_say_what_a_flag_is_for():
    flags = define(
        (
            Flag("size", "integer", "", 3),
            Flag("place", "string", "", figures=False, stated="DIR"),
            Flag("trace", "bool", "", False, figures=lambda flags: flags.size > 3),
        )
    )
    parse(flags, ["x", "--place=here", "--trace"])
    assert defining(flags) == {"size": "3"}
    assert given(flags) == {"place": "here", "trace": "true"}
    parse(flags, ["x", "--size=4"])
    assert defining(flags) == {"size": "4", "trace": "true"}
    assert command(flags).endswith(" --size=4 --place=DIR --trace=true")


def test_flags_file_gives_the_same_flags_and_the_command_line_wins(tmp_path):
    arguments = ["--epochs=7", "--held_out=1,cat", "--noprojection", "--width=0.25"]
    of_run = defining(flags_of(*arguments, f"--workdir={tmp_path}"))
    assert of_run["held_out"] == "1,cat"
    assert of_run["projection"] == "false"
    assert "workdir" not in of_run
    assert "data_dir" not in of_run
    file = tmp_path / "flags.txt"
    file.write_text("".join(f"--{k}={v}\n" for k, v in of_run.items()))
    for config in ([f"--config={file}"], ["--config", str(file)]):
        assert defining(flags_of(*config)) == of_run
        flags = flags_of("--epochs=9", *config)
        assert (flags.epochs, flags.width) == (9, 0.25)


@pytest.mark.parametrize(
    "argument",
    [
        "--network=vgg11",
        "--pretrain_epochs=-1",
        "--pretrain_learning_rate=0",
        "--pretrain_dropout=1.5",
        "--posterior_rate=0",
        "--beta_1=1",
        "--decay_start=1",
        "--threshold=0",
        "--depth=0",
    ],
)
def test_wrong_values_of_pruning_are_refused(argument):
    with pytest.raises(absl_flags.Error, match=argument[2:].split("=")[0]):
        flags_of(argument, of=sbp)


def test_missing_flags_file_is_named(tmp_path):
    with pytest.raises(absl_flags.Error, match=r"none\.txt: there is no such file"):
        flags_of(f"--config={tmp_path}/none.txt")


def test_a_directory_or_no_text_as_flags_file_is_refused(tmp_path):
    with pytest.raises(absl_flags.Error, match=r"a directory; give the flags\.txt in"):
        flags_of(f"--config={tmp_path}")
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(absl_flags.Error, match="decode"):
        flags_of(f"--config={tmp_path}/x")


@pytest.mark.parametrize(
    ("of", "own", "other"),
    [
        (all_cnn, ["npz", "image_folder"], "mnist"),
        (cell_fcn, ["image_folder"], "dic_hela"),
    ],
)
def test_own_images_define_a_run(of, own, other):
    for dataset in own:
        found = defining(flags_of(f"--dataset={dataset}", "--data_dir=own", of=of))
        assert found["data_dir"] == "own"
    assert "data_dir" not in defining(
        flags_of(f"--dataset={other}", "--data_dir=own", of=of)
    )


def test_sizes_of_images():
    assert defining(flags_of("--resize=8x9"))["resize"] == "8x9"
    assert [image_size(text) for text in (None, "8", "8x9")] == [None, (8, 8), (8, 9)]


def test_flags_of_the_search_define_a_run_that_searches():
    found = defining(flags_of("--search_epochs=2", "--learning_rate=auto"))
    assert found["search_epochs"] == "2"
    found = defining(flags_of("--search_epochs=2", "--learning_rate=0.1"))
    assert "search_epochs" not in found


def test_help_is_of_the_binary_and_of_its_flags_alone():
    done = subprocess.run(
        [sys.executable, "-m", "trainers.sbn", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1  # As absl has it.
    assert "Trains batch-normalized networks" in done.stdout
    for flag in ("--network", "--members", "--jobs", "--parallel", "--epochs"):
        assert f"{flag}:" in done.stdout
    assert "--norm:" not in done.stdout


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (types.SimpleNamespace(name="trainers.sbn"), "python -m trainers.sbn"),
        (None, "bayesnorm-sbn"),
    ],
)
def test_the_command_is_as_it_was_given(monkeypatch, spec, words):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    monkeypatch.setattr(sys, "argv", ["/usr/local/bin/bayesnorm-sbn"])
    flags = flags_of("--epochs=2", "--jobs=2", "--data_dir=/home/x", of=sbn)
    assert command(flags) == f"{words} --data_dir=DIR --epochs=2"


def started(monkeypatch, error):
    def main(flags):
        assert flags.epochs == 2
        raise error

    monkeypatch.setattr(sys, "argv", ["program", "--epochs=2"])
    start(main, define(groups.TRAINING), "trainers.flags")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("mend this"), "error: mend this"),
        (OSError("disk full"), "error: disk full"),
    ],
)
def test_what_a_user_can_mend_ends_without_a_traceback(monkeypatch, error, code):
    with pytest.raises(SystemExit) as stop:
        started(monkeypatch, error)
    assert stop.value.code == code


def test_a_bug_keeps_its_traceback(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        started(monkeypatch, ZeroDivisionError())
