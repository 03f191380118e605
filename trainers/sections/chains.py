"""Chains of samplers: whether they are at the temperature, and whether they agree."""

import numpy as np

from bayesnorm import metrics, plots
from bayesnorm.samplers import effective_sample_size, r_hat
from trainers.evaluation.records import Record
from trainers.report.section import Section
from trainers.report.tables import number, table

# Above it chains are taken to disagree.
_R_HAT = 1.01
# Draws of a chain that R-hat needs.
_DRAWS = 4


def detail(row):
    """Returns what the line of an epoch says of the temperatures: "T 1.02, 0.85"."""
    kinetic = row.get("kinetic_temperature")
    if kinetic is None:
        return ""
    return f"T {kinetic:.2f}, {row['configurational_temperature']:.2f}  "


def sections(chains, posterior):
    """Returns the functions of the sections on chains.

    Args:
        chains: List of `trainers.atmc.Chain`s.
        posterior: `WeightSets` of all samples, or None.
    """
    if posterior is None:
        return (equal_masses,)
    counts = [len(chain.samples) for chain in chains]
    return (
        equal_masses,
        lambda evaluation: number_of_samples(evaluation, counts),
        lambda evaluation: temperatures(evaluation, chains),
        lambda evaluation: agreement(evaluation, counts),
    )


def equal_masses(evaluation):
    """Returns the reliability over 8 bins of equal mass, as the paper has them."""
    labels = evaluation.splits.test.labels
    curves, rows = {}, []
    for key, runs in evaluation.predictions["test"].items():
        title = evaluation.methods[key].title
        bins = metrics.equal_mass_bins(runs[0].probs, labels)
        curves[title] = bins.confidence, bins.accuracy
        rows.append([title, f"{100 * bins.calibration_error:.2f}"])
    return Section(
        "equal_mass",
        "Calibration, 8 bins of equal mass",
        "Mean confidence and accuracy of the eighths of the test examples, from the "
        "least to the most confident.\n\n" + table(["", "calibration error, %"], rows),
        plots.calibration_curves(curves),
    )


def number_of_samples(evaluation, counts):
    """Returns NLL and accuracy of averages of more and more samples."""
    (prediction,) = evaluation.predictions["test"]["posterior"]
    labels = evaluation.splits.test.labels
    # All chains side by side: the first sample of each, then the second.
    order = np.argsort(np.concatenate([np.arange(n) for n in counts]), kind="stable")
    sums = np.cumsum(prediction.samples[order], axis=0, dtype="float64")
    sizes = range(1, len(order) + 1)
    nll = [metrics.nll(_normalized(sums[n - 1]), labels) for n in sizes]
    accuracy = [100 * metrics.accuracy(_normalized(sums[n - 1]), labels) for n in sizes]
    return Section(
        "samples",
        "Number of samples",
        f"The NLL falls from {nll[0]:.4f} nats of one sample to {nll[-1]:.4f} of "
        f"{len(order)}, the accuracy goes from {accuracy[0]:.2f} to "
        f"{accuracy[-1]:.2f} %.",
        plots.run_curves(
            {
                # Infinite where the right class has no probability in any sample yet.
                "NLL, nats": {"average": np.where(np.isfinite(nll), nll, np.nan)},
                "accuracy, %": {"average": accuracy},
            },
            "",
            log=False,
            xlabel="samples",
        ),
        [
            Record("samples", figure, value, unit, axis="samples", at=n)
            for figure, unit, values in (
                ("nll", "nats", nll),
                ("accuracy", "%", accuracy),
            )
            for n, value in zip(sizes, values, strict=True)
            if np.isfinite(value)
        ],
    )


def _normalized(sums):
    return sums / sums.sum(-1, keepdims=True)


def temperatures(evaluation, chains):
    """Returns the temperatures epoch by epoch, and what they mean."""
    flags = evaluation.flags
    panels = {}
    for key, title in (
        ("kinetic_temperature", "kinetic"),
        ("configurational_temperature", "configurational"),
    ):
        runs = [[row[key] for row in chain.history] for chain in chains]
        panels[title] = {"chains": np.array(runs)}
    last = [chain.history[-1] for chain in chains]
    rows = [
        [
            f"chain {i}",
            f"{row['kinetic_temperature']:.3f}",
            f"{row['configurational_temperature']:.3f}",
            f"{row['rms_step']:.2g}",
            f"{row['thermostat']:.3g}" if "thermostat" in row else "",
        ]
        for i, row in enumerate(last)
    ]
    head = ["last epoch", "kinetic", "configurational", "rms step", "thermostat"]
    said = "\n".join(
        f"- Chain {i}, last epoch: {chain.verdict}" for i, chain in enumerate(chains)
    )
    return Section(
        "temperatures",
        "Temperatures",
        f"Both are to be {flags.temperature:g}: the kinetic one of the momenta, the "
        "configurational one of the weights, which takes longer. Means over the steps "
        f"of an epoch and all weights.\n\n{table(head, rows)}\n\n{said}",
        plots.run_curves(panels, "temperature"),
        [
            Record("chain", key, row[key], "1", axis="chain", at=i)
            for i, row in enumerate(last)
            for key in ("kinetic_temperature", "configurational_temperature")
        ],
    )


def agreement(evaluation, counts):
    """Returns R-hat and the effective sample size of predictions, over the chains."""
    if len(set(counts)) > 1 or counts[0] < _DRAWS:
        return None
    (prediction,) = evaluation.predictions["test"]["posterior"]
    labels = evaluation.splits.test.labels
    right = prediction.samples[:, np.arange(len(labels)), labels]
    draws = right.reshape(len(counts), counts[0], -1)
    ratio, size = r_hat(draws), effective_sample_size(draws)
    known = np.isfinite(ratio)
    if not known.any():
        return None
    share = 100 * float((ratio[known] > _R_HAT).mean())
    middle = float(np.median(size[known]))
    return Section(
        "agreement",
        "Whether chains agree",
        "Of the probability of the right class of each test example, over "
        f"{len(counts)} {'chains' if len(counts) > 1 else 'chain'} of {counts[0]} "
        f"samples: R-hat, over halves of chains, is above {_R_HAT} for "
        f"{number(share, '.1f')} % of the examples, its median "
        f"{np.median(ratio[known]):.3f}; the median effective sample size is "
        f"{middle:.0f} of {draws.shape[0] * draws.shape[1]}.",
        records=[
            Record("chain", "r_hat", float(np.median(ratio[known])), "1"),
            Record("chain", "disagreeing", share, "%"),
            Record("chain", "effective_samples", middle, "1"),
        ],
    )
