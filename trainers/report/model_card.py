"""The model card of a run: what the network is for, how good it is, what is not known.

Reference:
    Mitchell et al., 2019, "Model Cards for Model Reporting": the sections. The header
    is that of Hugging Face's hub, https://huggingface.co/docs/hub/model-cards.
"""

import datetime
import json
import math

import keras
from scipy import stats

from bayesnorm.storage import write_atomically
from trainers import flags as trainer_flags
from trainers.report.tables import number, table
from trainers.workdir import read_flags

# Longer lists of classes are cut.
_NAMES_SHOWN = 20
# (part, figure, title, format, what it means), in the order of the table.
_FIGURES = (
    ("test", "error", "error, %", ".2f", "wrong among all {examples}"),
    ("test", "iou", "IoU, %", ".1f", "intersection over union of the classes but 0"),
    (
        "test",
        "nll",
        "NLL, nats",
        ".4f",
        "mean of -log p of the right class; {log_k:.3f} is what equal probabilities of "
        "all classes have",
    ),
    ("test", "brier", "Brier score", ".4f", "mean squared error of p, from 0 to 2"),
    (
        "test",
        "ece_equal_width",
        "ECE, %",
        ".2f",
        "calibration error: how far the share of right answers is from the confidence, "
        "over 15 bins of equal width",
    ),
    (
        "test",
        "aurc",
        "AURC, %",
        ".3f",
        "mean error of what is left when {examples} are rejected by entropy",
    ),
    ("test", "entropy", "entropy, nats", ".4f", "mean uncertainty of a prediction"),
    (
        "test",
        "mutual_information",
        "mutual information, nats",
        ".4f",
        "the part of it that comes from networks that disagree",
    ),
    (
        "validation",
        "temperature",
        "temperature",
        ".3f",
        "T of the lowest validation NLL of softmax(log p / T)",
    ),
    ("test", "tempered_nll", "NLL at T, nats", ".4f", "with that T"),
    ("test", "tempered_ece", "ECE at T, %", ".2f", "with that T"),
    (
        "test",
        "coverage_of_90",
        "coverage of 90 % sets, %",
        ".2f",
        "conformal sets, fitted on validation, that contain the right class",
    ),
    ("test", "set_size_of_90", "size of 90 % sets", ".3f", "classes in such a set"),
    (
        "ood",
        "auroc",
        "OOD AUROC, %",
        ".1f",
        "how well the entropy tells out-of-distribution data from test data; 50 is "
        "chance",
    ),
    ("ood", "aupr", "OOD AUPR, %", ".1f", "likewise, precision over recall"),
    (
        "ood",
        "fpr_at_95_tpr",
        "OOD FPR, %",
        ".1f",
        "test data taken for others where 95 % of those are found",
    ),
)


def write(workdir, evaluation, description):
    """Writes `model_card.md`.

    Args:
        workdir: The `Workdir` of the run, with what it has written so far.
        evaluation: The `Evaluation`, with all records.
        description: What was trained, a noun phrase.
    """
    binary = read_flags(workdir / "flags.txt")["# binary"]
    parts = [
        _header(evaluation, binary),
        f"# {binary}: {evaluation.records.about['dataset']}",
        _details(evaluation, description),
        _use(evaluation),
        _loading(evaluation),
        _serving(workdir),
        _data(evaluation),
        _training(evaluation, binary),
        _figures(evaluation),
        _limits(evaluation),
    ]
    page = "\n\n".join(part for part in parts if part)
    write_atomically(workdir / "model_card.md", page + "\n")


def _task(evaluation):
    return f"image-{'segmentation' if evaluation.splits.dense else 'classification'}"


def _header(evaluation, binary):
    """What the hub reads: YAML, of which JSON's texts are a part."""
    records, shown = evaluation.records, evaluation.shown
    rows = [
        (title, records.find(part, figure, shown))
        for part, figure, title, _, _ in (
            ("test", "accuracy", "accuracy, %", None, None),
            *_FIGURES,
        )
        if part == "test"
    ]
    measured = "".join(
        f"""
    - type: {record.figure}
      name: {json.dumps(title)}
      value: {json.dumps(record.value)}"""
        for title, record in rows
        if record is not None
    )
    tags = ["bayesnorm", "uncertainty", "calibration", keras.backend.backend()]
    return f"""---
library_name: keras
pipeline_tag: {_task(evaluation)}
tags: {json.dumps(tags)}
model-index:
- name: {json.dumps(f"{binary}-{evaluation.flags.dataset}")}
  results:
  - task:
      type: {_task(evaluation)}
    dataset:
      name: {json.dumps(records.about["dataset"])}
      type: {json.dumps(evaluation.splits.name)}
      split: test
    metrics:{measured}
---"""


def _details(evaluation, description):
    records = evaluation.records
    versions = ", ".join(f"{k} {v}" for k, v in records.about["versions"].items())
    today = datetime.datetime.now(datetime.UTC).date()
    return f"""## Model details

- **What it is:** {description}; {records.value(None, "parameters"):,} trained \
parameters.
- **Predicts by:** {evaluation.methods[evaluation.shown].title}.
- **Made with:** {versions}.
- **Date of this card:** {today.isoformat()} (UTC)."""


def _names(names):
    shown = ", ".join(map(str, names[:_NAMES_SHOWN]))
    left = len(names) - _NAMES_SHOWN
    return f"{shown} and {left} others" if left > 0 else shown


def _shape(splits):
    return " x ".join(map(str, splits.image_shape))


def _use(evaluation):
    splits = evaluation.splits
    unit = "each pixel of an image" if splits.dense else "an image"
    return f"""## Intended use

To say of {unit} which of {splits.num_classes} classes it is of \
({_names(splits.class_names)}), with which probability, and how uncertain that is. \
Images are {_shape(splits)} (height x width x channels), of the kind of the training \
data, and are multiplied by {splits.scale:.6g} before the network sees them.

Any other use is out of its scope, and so is any image of none of these classes: of \
these a high entropy is the best that it can say."""


def loaded(evaluation):
    """Returns the key of the method that the code of the card predicts by.

    The one that is shown, if what is saved is its (first) network; else one of which
    that holds.
    """
    methods = evaluation.methods
    keys = [evaluation.shown, *methods]
    return next(
        key
        for key in keys
        if methods[key].loading or methods[key].runs[0] is evaluation.model
    )


def _loading(evaluation):
    splits, method = evaluation.splits, evaluation.methods[loaded(evaluation)]
    # What figures depend on; the rest is of this machine.
    arguments = "".join(
        f"        {name}={json.dumps(method.arguments[name])},\n"
        for name in ("method", "samples", "seed")
        if name in method.arguments
    )
    several = (
        f" Its figures are means over {len(method.runs)} networks; this is the first."
        if len(method.runs) > 1
        else ""
    )
    made = f"{method.loading}\n" if method.loading else ""
    network = "network" if made else "model"
    return f"""## How to use it

In the folder of this card ({method.title}):{several}

```python
import bayesnorm
import keras

model = keras.saving.load_model("model.keras")
{made}

def predict(images):
    \"\"\"Of images [n, {", ".join(map(str, splits.image_shape))}] as they are stored.\
\"\"\"
    return bayesnorm.predict(
        {network},
        images.astype("float32") * {float(splits.scale)!r},
{arguments}        from_logits=True,
    )
```

`predict(images).probs` are the probabilities, `.entropy` and `.mutual_information` \
how uncertain each is, in nats."""


def _serving(workdir):
    if not (workdir / "saved_model" / "1").is_dir():
        return None
    return """## How to serve it

`saved_model/1/` is for TensorFlow Serving; the `README.md` in it has the commands, \
and says what to ask. `python -m bayesnorm.serving saved_model` serves the same folder \
with Ray Serve."""


def _data(evaluation):
    splits, flags = evaluation.splits, evaluation.flags
    counts = [
        f"{len(getattr(splits, part)):,} {part}"
        for part in ("train", "validation", "test")
    ]
    outside = ""
    if splits.ood is not None:
        what = f" of {_names(splits.ood_class_names)}" if splits.ood_class_names else ""
        outside = (
            f" Out of distribution, and in none of these parts: {len(splits.ood):,} "
            f"images{what}."
        )
    return f"""## Training and evaluation data

{evaluation.records.about["dataset"]} (`{splits.name}`): {", ".join(counts)} images. \
Train and validation are divided by the seed {flags.split_seed}; the network was \
trained on the first alone, and what is fitted after training (temperature, conformal \
sets) on the second. All figures below are of the test part.{outside}"""


def _training(evaluation, binary):
    flags, records = evaluation.flags, evaluation.records
    defining = trainer_flags.defining(flags)
    words, lines = [], []
    for name, value in trainer_flags.texts(flags).items():
        stated = flags[name].about.stated
        if stated == "":
            continue
        if name in defining:
            lines.append(f"--{name}={value if stated is None else stated}")
        elif stated is not None:
            words.append(f"--{name}={stated}")
    command = " ".join(
        [f"python -m trainers.{binary}", "--config=flags.txt", "--workdir=NEW", *words]
    )
    hardware = records.about["hardware"]
    seconds = records.value("seconds", "training")
    return f"""## Training

```shell
{command}
```

The flags, as in `flags.txt`:

```
{chr(10).join(sorted(lines))}
```

{records.value(None, "epochs")} epochs, {seconds:.0f} s on {hardware["cores"]} cores \
and {", ".join(hardware["devices"])}; learning rate \
{number(records.value("train", "first_learning_rate"), ".4g")} at first, \
{number(records.value("train", "learning_rate"), ".4g")} at the end. `history.csv` has \
every epoch, `report.md` the plots."""


def _figures(evaluation):
    """The table, of the method that is shown and of the one that is loaded."""
    splits, records = evaluation.splits, evaluation.records
    keys = [evaluation.shown, loaded(evaluation), "one_pass"]
    keys = [key for key in dict.fromkeys(keys) if key in evaluation.methods]
    fields = {
        "examples": "pixels" if splits.dense else "examples",
        "log_k": math.log(splits.num_classes),
    }
    rows = []
    for part, figure, title, form, meaning in _FIGURES:
        found = [records.find(part, figure, key) for key in keys]
        if any(record is not None for record in found):
            values = [
                "-" if r is None else number(r.value, form, r.stddev) for r in found
            ]
            rows.append([title, *values, meaning.format(**fields)])
    titles = [evaluation.methods[key].title for key in keys]
    text = table(["", *titles, "what it is"], rows, left=(0, 1 + len(titles)))
    return f"""## Figures

{records.value("test", "examples", evaluation.shown):,} test {fields["examples"]}. \
{_precision(evaluation)}All figures, also of other ways to predict, are in \
`metrics.json`; `report.md` shows them.

{text}"""


def _is_one_network(evaluation):
    """Whether no way to predict has networks that could disagree."""
    return all(
        method.arguments["method"] == "mean" and isinstance(method.runs[0], keras.Model)
        for method in evaluation.methods.values()
    )


def _precision(evaluation):
    """What so few examples leave open: 95 %, Clopper & Pearson (1934)."""
    records, shown = evaluation.records, evaluation.shown
    if evaluation.splits.dense:
        return ""  # Pixels of an image are not independent.
    count = records.value("test", "examples", shown)
    wrong = records.value("test", "error", shown) / 100 * count
    low = stats.beta.ppf(0.025, wrong, count - wrong + 1) if wrong else 0.0
    high = stats.beta.ppf(0.975, wrong + 1, count - wrong) if wrong < count else 1.0
    return (
        f"By their number alone the error may be anything from {100 * low:.2f} to "
        f"{100 * high:.2f} % (a 95 % interval). "
    )


def _limits(evaluation):
    splits, records = evaluation.splits, evaluation.records
    method = evaluation.methods[evaluation.shown]
    said = []
    if splits.ood is None:
        said.append("What it says of images of other classes was not measured.")
    else:
        said.append(
            "Out-of-distribution detection was measured on the images above alone; "
            "others may be easier or harder to tell."
        )
    if not records.select(axis="perturbation"):
        said.append("Robustness to noise and to attacks was not measured.")
    said.append(
        "There are no figures by class, nor by any group of people, devices or places: "
        "the data say nothing of these."
    )
    if len(method.runs) == 1:
        said.append(
            "It is one training run: how much another seed changes is not in these "
            "figures."
        )
    said.append(
        "Test data are of the same source as the training data. Calibration and "
        "coverage hold for such data, and not for shifted ones."
    )
    if records.value("validation", "accuracy") == 100:
        said.append(
            "All validation examples are right, so that the temperature is as low as "
            "it may be: it says nothing."
        )
    if _is_one_network(evaluation):
        said.append(
            "It is one network without noise: nothing tells how sure it is of its "
            "weights, and its mutual information is 0."
        )
    lines = "\n".join(f"- {sentence}" for sentence in said)
    return f"## Limits\n\n{lines}"
