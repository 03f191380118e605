"""The report of a run: figures, plots, models, and a page that shows them."""

import shutil

import keras

from bayesnorm.serving.export import export
from trainers.evaluation.methods import chunk_size
from trainers.report import model_card, section, standard
from trainers.report.tables import cells, table


def write(workdir, evaluation, description, sections=(), note=print, served=None):
    """Writes the report of a trained classifier.

    The folder gets `metrics.json`, `report.md`, `model_card.md`, the plots as PNG,
    `model.keras` and, with TensorFlow, `saved_model/1/`.

    Args:
        workdir: The `trainers.workdir.Workdir`.
        evaluation: The `Evaluation`.
        description: What was trained, for the report: a noun phrase.
        sections: Functions of further sections, as for `section.collect`.
        note: Function that is given a line of text for each part that is done.
        served: What is exported for a model server, a model or `WeightSets`; None for
            the evaluation's model.

    Returns:
        The `Records` that `metrics.json` has, those of the sections too.
    """
    page = section.collect(evaluation, (*standard.SECTIONS, *sections))
    evaluation.records.write(workdir / "metrics.json")
    note("wrote metrics.json")
    count = section.save_plots(workdir, page)
    evaluation.model.save(workdir / "model.keras")
    note(f"wrote {count} plots and model.keras")
    serving = _export(workdir, evaluation, served)
    note(serving)
    path = workdir / "report.md"
    section.write_page(path, _head(evaluation, description, serving), page)
    model_card.write(workdir, evaluation, description)
    note(f"wrote {path} and model_card.md")
    return evaluation.records


def _export(workdir, evaluation, served=None):
    """Exports for a model server; returns the sentence on it."""
    if keras.backend.backend() != "tensorflow":
        return "No SavedModel: it is exported with the TensorFlow backend only."
    path = workdir / "saved_model" / "1"
    # Of a run of these flags that was stopped, or has been reported before.
    shutil.rmtree(path, ignore_errors=True)
    export(
        evaluation.model if served is None else served,
        path,
        samples=evaluation.flags.samples,
        from_logits=True,
        chunk_size=chunk_size(evaluation.splits),
    )
    return "`saved_model/1/` is for a model server, `model.keras` for Keras."


def _head(evaluation, description, serving):
    """The page above its sections."""
    records, dense = evaluation.records, evaluation.splits.dense
    columns = {"IoU (%)": ("test", "iou", ".1f")} if dense else {}
    columns |= {
        "NLL (nats)": ("test", "nll", ".4f"),
        "error (%)": ("test", "error", ".2f"),
        "Brier": ("test", "brier", ".4f"),
        "ECE (%)": ("test", "ece_equal_width", ".2f"),
        "AURC (%)": ("test", "aurc", ".3f"),
    }
    auroc = ""
    if "ood" in evaluation.predictions:
        columns["OOD AUROC (%)"] = ("ood", "auroc", ".1f")
        auroc = (
            "; the AUROC is that of the predictive entropy, out-of-distribution data "
            "against the test part"
        )
    rows = [
        [method.title, *cells(records, columns.values(), [key])]
        for key, method in evaluation.methods.items()
    ]
    examples = records.value("test", "examples", evaluation.shown)
    hardware, versions = records.about["hardware"], records.about["versions"]
    versions = ", ".join(f"{name} {version}" for name, version in versions.items())
    seconds = {name: records.value("seconds", name) for name in ("training", "epoch")}
    return f"""# {records.about["dataset"]}

{description}: {records.value(None, "parameters"):,} trained parameters, \
{standard.count_of(records.value(None, "epochs"))} in \
{seconds["training"]:.0f} s ({seconds["epoch"]:.2f} s an epoch) on \
{hardware["cores"]} cores and {", ".join(hardware["devices"])}; {versions}.

The flags are in `flags.txt`, all figures in `metrics.json`, every epoch in \
`history.csv`. {serving}

{table(["test", *columns], rows)}

Of {examples} test {"pixels" if dense else "examples"}. NLL in nats, errors in per \
cent; ECE over 15 bins of equal width; AURC is the area under the error-coverage \
curve{auroc}."""
