"""Flags: defaults, validators, the file of flags."""

import sys
import types

import pytest
from absl import flags
from absl.testing import flagsaver

from trainers import command, sbn
from trainers.flags import (
    FLAGS,
    _parse,
    defining_flags,
    image_size,
    run,
    set_defaults,
)

PROGRAM = "trainers/test.py"


@pytest.fixture(autouse=True)
def restored():
    with flagsaver.flagsaver():
        FLAGS([PROGRAM])
        yield


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
        "--nothing=1",
    ],
)
def test_wrong_values_are_refused_by_name(argument):
    with pytest.raises(flags.Error, match=argument[2:].split("=")[0]):
        _parse([PROGRAM, argument])


def test_defaults_do_not_touch_what_was_given():
    _parse([PROGRAM, "--epochs=7"])
    set_defaults({"epochs": 3, "batch_size": 5, "learning_rate": "auto"})
    assert (FLAGS.epochs, FLAGS.batch_size, FLAGS.learning_rate) == (7, 5, "auto")


def test_flags_file_gives_the_same_flags_and_the_command_line_wins(tmp_path):
    arguments = ["--epochs=7", "--held_out=1,cat", "--noprojection", "--width=0.25"]
    _parse([PROGRAM, *arguments, f"--workdir={tmp_path}"])
    defining = defining_flags()
    assert defining["held_out"] == "1,cat"
    assert defining["projection"] == "false"
    assert "workdir" not in defining
    assert "data_dir" not in defining
    file = tmp_path / "flags.txt"
    file.write_text("".join(f"--{k}={v}\n" for k, v in defining.items()))
    for config in ([f"--config={file}"], ["--config", str(file)]):
        FLAGS.unparse_flags()
        with flagsaver.flagsaver():
            _parse([PROGRAM, *config])
            assert defining_flags() == defining
            _parse([PROGRAM, "--epochs=9", *config])
            assert FLAGS.epochs == 9
            assert FLAGS.width == 0.25


def test_missing_flags_file_is_named(tmp_path):
    with pytest.raises(flags.Error, match=r"none\.txt: there is no such file"):
        _parse([PROGRAM, f"--config={tmp_path}/none.txt"])


def test_a_directory_or_no_text_as_flags_file_is_refused(tmp_path):
    with pytest.raises(flags.Error, match=r"a directory; give the flags\.txt in it"):
        _parse([PROGRAM, f"--config={tmp_path}"])
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(flags.Error, match="decode"):
        _parse([PROGRAM, f"--config={tmp_path}/x"])


def test_own_images_define_a_run():
    for dataset in ("npz", "image_folder"):
        _parse([PROGRAM, f"--dataset={dataset}", "--data_dir=own", "--resize=8x9"])
        assert defining_flags()["data_dir"] == "own"
        assert defining_flags()["resize"] == "8x9"
    _parse([PROGRAM, "--dataset=mnist", "--data_dir=own"])
    assert "data_dir" not in defining_flags()
    assert [image_size(text) for text in (None, "8", "8x9")] == [None, (8, 8), (8, 9)]


def test_flags_of_the_search_define_a_run_that_searches():
    _parse([PROGRAM, "--search_epochs=2", "--learning_rate=auto"])
    assert defining_flags()["search_epochs"] == "2"
    _parse([PROGRAM, "--search_epochs=2", "--learning_rate=0.1"])
    assert "search_epochs" not in defining_flags()


def test_help_of_an_installed_program_has_the_flags_of_all_its_modules(monkeypatch):
    assert sbn.main  # Its flags are defined.
    program = "/usr/local/bin/bayesnorm-sbn"
    monkeypatch.setattr(sys, "argv", [program])
    _parse([program])
    text = FLAGS.main_module_help()
    for flag in ("--network", "--members", "--jobs", "--parallel", "--epochs"):
        assert f"{flag}:" in text


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (types.SimpleNamespace(name="trainers.sbn"), "python -m trainers.sbn"),
        (None, "bayesnorm-sbn"),
    ],
)
def test_the_command_is_as_it_was_given(monkeypatch, spec, words):
    program = "/usr/local/bin/bayesnorm-sbn"
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    monkeypatch.setattr(sys, "argv", [program])
    _parse([program, "--epochs=2"])
    assert command.as_given() == f"{words} --epochs=2"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("mend this"), "error: mend this"),
        (OSError("disk full"), "error: disk full"),
    ],
)
def test_what_a_user_can_mend_ends_without_a_traceback(monkeypatch, error, code):
    def main():
        raise error

    monkeypatch.setattr(sys, "argv", [PROGRAM])
    with pytest.raises(SystemExit) as stop:
        run(main)
    assert stop.value.code == code


def test_a_bug_keeps_its_traceback(monkeypatch):
    def main():
        raise ZeroDivisionError

    monkeypatch.setattr(sys, "argv", [PROGRAM])
    with pytest.raises(ZeroDivisionError):
        run(main)
