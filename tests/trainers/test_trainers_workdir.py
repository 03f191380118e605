"""The folder of a run: made, opened again, refused."""

import pytest

from trainers.workdir import Workdir


def test_a_workdir_opens_for_the_same_flags_only(tmp_path):
    flags = {"epochs": "3", "norm": "batch", "seed": "0"}
    workdir = Workdir(tmp_path / "a" / "b", "all_cnn", flags)
    text = (workdir / "flags.txt").read_text() + "\n"
    (workdir / "flags.txt").write_text(text)  # somebody's editor
    (workdir / "checkpoints").mkdir()
    assert text.splitlines()[1:] == ["--epochs=3", "--norm=batch", "--seed=0", ""]
    Workdir(tmp_path / "a" / "b", "all_cnn", dict(reversed(flags.items())))
    other = {"epochs": "4", "norm": "batch", "held_out": "1,2"}
    with pytest.raises(ValueError, match="other flags") as error:
        Workdir(tmp_path / "a" / "b", "all_cnn", other)
    message = str(error.value)
    assert "--epochs: 3 there, 4 now" in message
    assert "--held_out: (not set) there, 1,2 now" in message
    assert "--seed: 0 there, (not set) now" in message
    assert "norm" not in message
    with pytest.raises(ValueError, match="binary: all_cnn there, sbp now"):
        Workdir(workdir.path, "sbp", flags)
    assert (workdir / "flags.txt").read_text() == text


def test_a_workdir_without_results_takes_other_flags(tmp_path):
    Workdir(tmp_path / "a", "all_cnn", {"epochs": "3"})
    Workdir(tmp_path / "a", "all_cnn", {"epochs": "4"})
    (tmp_path / "a" / "learning_rate.json").write_text("[]")
    with pytest.raises(ValueError, match="--epochs: 4 there, 5 now"):
        Workdir(tmp_path / "a", "all_cnn", {"epochs": "5"})


def test_a_workdir_has_results_where_a_folder_in_it_has(tmp_path):
    Workdir(tmp_path / "a", "sbn", {"epochs": "3"})
    (tmp_path / "a" / "logs").mkdir()
    Workdir(tmp_path / "a", "sbn", {"epochs": "4"})
    (tmp_path / "a" / "plain-0" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match="--epochs: 4 there, 5 now"):
        Workdir(tmp_path / "a", "sbn", {"epochs": "5"})


def test_notes_are_compared_and_are_no_flags(tmp_path):
    workdir = Workdir(tmp_path / "a", "sbn", {"epochs": "3"}, {"family": "plain"})
    (workdir / "checkpoints").mkdir()
    text = (workdir / "flags.txt").read_text()
    assert text == "# binary=sbn\n# family=plain\n--epochs=3\n"
    Workdir(tmp_path / "a", "sbn", {"epochs": "3"}, {"family": "plain"})
    with pytest.raises(ValueError, match="family: plain there, dropout now"):
        Workdir(tmp_path / "a", "sbn", {"epochs": "3"}, {"family": "dropout"})


def test_a_workdir_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(ValueError, match="other than a run"):
            Workdir(path, "all_cnn", {"epochs": "3"})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
