"""What validation examples mend: a temperature, and sets of a stated coverage."""

import numpy as np

from bayesnorm import metrics
from bayesnorm.conformal import ConformalSets
from bayesnorm.prediction.outputs import temper
from bayesnorm.prediction.predict import predict
from trainers.evaluation.records import Record
from trainers.report.section import Section
from trainers.report.tables import number, table

# Shares of sets without the right class.
_ALPHAS = (0.1, 0.01)


def calibrated(evaluation):
    """Returns temperature scaling and conformal sets, fitted on validation."""
    splits = evaluation.splits
    if splits.dense:
        return None  # The pixels of an image are not exchangeable.
    held, labels = splits.validation, splits.test.labels
    alphas = [a for a in _ALPHAS if len(held.labels) >= 1 / a - 1]
    rows, records, right = [], [], []
    for key, method in evaluation.methods.items():
        validation = predict(
            method.runs[0],
            splits.part_inputs("validation"),
            from_logits=True,
            **method.arguments,
        ).probs
        if (validation.argmax(-1) == held.labels).all():
            right.append(method.title)
        test = evaluation.predictions["test"][key][0].probs
        found = [
            *_tempered(key, validation, held.labels, test, labels),
            *_sets(key, validation, held.labels, test, labels, alphas),
        ]
        forms = [_FORMS.get(record.figure.partition("_of_")[0]) for record in found]
        rows.append(
            [
                method.title,
                *(
                    number(record.value, form)
                    for record, form in zip(found, forms, strict=True)
                    if form
                ),
            ]
        )
        records += found
    head = ["test", "T", "NLL, nats", "ECE, %"]
    for alpha in alphas:
        share = f"{100 * (1 - alpha):g} %"
        head += [f"coverage, for {share}", f"set size, for {share}"]
    n = len(held.labels)
    return Section(
        "calibrated",
        "Calibrated on validation",
        f"On the {n} validation examples, of the first run of each method: the "
        "temperature T of the average, softmax(log p / T), of the lowest NLL, and what "
        "it makes of NLL and calibration error (15 bins of equal width) on the test "
        "examples; the threshold of 1 - p of split conformal sets, and how often they "
        "contain the right class of a test example (in per cent), and their mean "
        "number of classes. The expected coverage exceeds the stated one by "
        f"1 / {n + 1} at most; where the network errs less often than that, sets may "
        f"be empty.{_without_errors(right)}\n\n{table(head, rows)}",
        records=records,
    )


def _without_errors(titles):
    """Says of which methods validation has no temperature to say, if of any."""
    if not titles:
        return ""
    return (
        f" **Not of {', '.join(titles)}**: all validation examples are right, so that "
        "the NLL falls with T as far as it is let. Take no temperature, or more "
        "validation data."
    )


_FORMS = {
    "temperature": ".3f",
    "tempered_nll": ".4f",
    "tempered_ece": ".2f",
    "coverage": ".2f",
    "set_size": ".3f",
}


def _tempered(key, validation, held, test, labels):
    temperature = metrics.fit_temperature(validation, held)
    probs, _ = temper(test.astype("float64"), temperature, np)
    ece = 100 * metrics.ece_equal_width(probs, labels)
    return [
        Record("validation", "temperature", temperature, "1", key),
        Record("test", "tempered_nll", metrics.nll(probs, labels), "nats", key),
        Record("test", "tempered_ece", ece, "%", key),
    ]


def _sets(key, validation, held, test, labels, alphas):
    for alpha in alphas:
        summary = ConformalSets(validation, held, alpha).summary(test, labels)
        share = f"of_{100 * (1 - alpha):g}"
        yield Record("test", f"coverage_{share}", summary["coverage"], "%", key)
        yield Record("test", f"set_size_{share}", summary["set_size"], "1", key)
        yield Record("test", f"empty_sets_{share}", summary["empty"], "%", key)
