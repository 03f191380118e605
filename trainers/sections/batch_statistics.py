"""What the report of `trainers.sbn` adds: the paper's table and its figures."""

import numpy as np
from keras import ops
from scipy import stats

from bayesnorm import plots
from bayesnorm.measurement.minibatch import record_statistics
from bayesnorm.prediction.predict import predict
from trainers.evaluation.records import Record
from trainers.report.section import Section
from trainers.report.tables import cells, table

_BATCHES = 200
# Simulated ones, of which the median is known to 5 %.
_PARTS = 100
# The size of the comparison with real batches, where noise must not hide a distance.
_EXAMPLES, _SAMPLES = 500, 200


def errors(evaluation):
    """Returns the paper's table 1: error and NLL without and with SBN."""
    pairs = {
        "single network": ("bn", "sbn"),
        "ensemble": ("ensemble", "ensemble_sbn"),
        "dropout": ("dropout", "dropout_sbn"),
    }
    columns = [("test", "error", ".2f"), ("test", "nll", ".4f")]
    rows = [
        [title, *cells(evaluation.records, columns, pair)]
        for title, pair in pairs.items()
        if pair[0] in evaluation.methods
    ]
    head = ["", "error, %", "error with SBN, %", "NLL", "NLL with SBN"]
    text = (
        "Without and with stochastic batch normalization; mean ± standard deviation "
        f"over members where there are several runs.\n\n{table(head, rows)}"
    )
    return Section("table", "Error and NLL, as table 1 of the paper", text)


def entropies(evaluation):
    """Returns the entropy out of the domain, None without such data."""
    outside = evaluation.predictions.get("ood")
    if outside is None:
        return None
    titles = {key: method.title for key, method in evaluation.methods.items()}
    found = {titles[key]: runs[0].entropy for key, runs in outside.items()}
    means = ", ".join(f"{name} {e.mean():.3f}" for name, e in found.items())
    return Section(
        "entropy_cdf_methods",
        "Entropy out of the domain, every method",
        f"Figure 1 of the paper. Further right is better. Mean entropy, nats: {means}.",
        plots.entropy_cdf(found, evaluation.splits.num_classes),
    )


def real_batches(evaluation, batches):
    """Returns the distance from MCBN, and the drift of the mean prediction.

    None where MCBN is not among the methods.

    Args:
        evaluation: The `Evaluation`, of a calibrated network.
        batches: An epoch of training batches, an iterable.
    """
    if "mcbn" not in evaluation.methods:
        return None
    splits, model, seed = evaluation.splits, evaluation.model, evaluation.flags.seed
    images = splits.inputs(splits.test.images[:_EXAMPLES])
    # As an array, of which each seed makes batches of its own.
    batches = np.concatenate(list(batches))
    sampling = {"samples": _SAMPLES, "seed": seed, "from_logits": True}
    real = predict(model, images, method="minibatch", train_data=batches, **sampling)
    # What two averages of real batches differ by is the noise of the measurement.
    other = sampling | {"seed": seed + 1}
    found = {
        "sbn": predict(model, images, **sampling),
        "sbn_independent": predict(
            evaluation.methods["sbn_independent"].runs[0], images, **sampling
        ),
        "bn": predict(model, images, method="mean", from_logits=True),
        "mcbn": predict(model, images, method="minibatch", train_data=batches, **other),
    }
    distances = {
        name: 0.5 * np.abs(p.probs - real.probs).sum(-1).mean()
        for name, p in found.items()
    }
    information = {name: p.mutual_information.mean() for name, p in found.items()}
    drift = np.abs((found["sbn"].probs - found["bn"].probs).mean(0)).max()
    records = [
        Record("distance", figure, value, unit, name)
        for figure, unit, values in (
            ("mcbn", "1", distances),
            ("mutual_information", "nats", information),
        )
        for name, value in values.items()
    ]
    records.append(Record("distance", "drift_of_class_shares", drift, "1"))
    titles = {key: method.title for key, method in evaluation.methods.items()}
    titles["mcbn"] = "other real batches"
    rows = [
        [titles[name], f"{distances[name]:.4f}", f"{information[name]:.4f}"]
        for name in found
    ]
    text = (
        "Real training batches give the distribution that SBN approximates. Mean total "
        f"variation distance of the averaged prediction ({_SAMPLES} samples) from "
        f"theirs, and mutual information, over {len(images)} test examples; theirs has "
        f"{real.mutual_information.mean():.4f} nats. What other real batches are off "
        "by is the noise of the measurement. The mean probability of a class moves by "
        f"at most {100 * drift:.2f} % from BN to SBN."
        f"\n\n{table(['', 'total variation', 'mutual information, nats'], rows)}"
    )
    heading = "Against the statistics of real batches"
    return Section("real_batches", heading, text, records=records)


def statistics(evaluation, held_out):
    """Returns how far statistics of held-out batches are from the laws of training.

    Args:
        evaluation: The `Evaluation`, of a calibrated network.
        held_out: A `session.TrainingInputs` of the validation part.
    """
    model, seed = evaluation.model, evaluation.flags.seed
    size, inputs = held_out.batch_size, np.concatenate(list(held_out))
    recorded = record_statistics(model, inputs, _BATCHES, size, seed)
    panels, records, rows = {}, [], []
    for layer, *met in recorded.by_call():
        moments = [ops.convert_to_numpy(x) for x in layer.statistics_moments()]
        (channels,) = moments[0].shape
        name = layer.name.removesuffix("_norm")
        medians = []
        for i, kind in enumerate(("mean", "log variance")):
            values = met[i]
            mean, stddev = moments[2 * i], np.maximum(moments[2 * i + 1], 1e-12)
            distances = [
                stats.kstest(values[:, c], stats.norm(mean[c], stddev[c]).cdf).statistic
                for c in range(channels)
            ]
            figure, median = f"ks_{kind.replace(' ', '_')}", np.median(distances)
            at = {"axis": "layer", "at": name}
            records.append(Record("statistics", figure, median, "1", **at))
            medians.append(f"{median:.3f}")
            middle = int(np.argsort(distances)[channels // 2])
            panels[f"{name}, {kind}"] = values[:, middle], mean[middle], stddev[middle]
        rows.append([name, *medians])
    directions, along = _directions(recorded)
    if directions:
        panels |= directions
        records += [
            Record("statistics", "ks_directions", value, "1", name)
            for name, value in along.items()
        ]
    text = (
        f"Statistics of {_BATCHES} batches of {size} validation images against the "
        "laws from the training data, figures 2 and 3 of the paper. Median over the "
        "channels of the Kolmogorov-Smirnov distance, about "
        f"{_distance_if_exact(len(inputs), size):.2f} where the law is exact, as the "
        f"batches are of {len(inputs)} images only; the plot shows the channel of that "
        f"distance.\n\n{table(['layer', 'mean', 'log variance'], rows)}"
    )
    if directions:
        text += (
            "\n\nThese hold for the joint law and for independent statistics alike. In "
            "the directions in which the statistics of all layers vary together most, "
            f"the median distance is {along['sbn']:.3f} from the joint law and "
            f"{along['sbn_independent']:.3f} from independent ones."
        )
    shown = [name for name in panels if name not in directions]
    if len(shown) > 8:  # The first, a middle, and the last two layers.
        layers = len(shown) // 2
        chosen = sorted({0, layers // 2, layers - 2, layers - 1})
        shown = [shown[2 * i + j] for i in chosen for j in (0, 1)]
    shown += directions
    figure = plots.batch_statistics({name: panels[name] for name in shown})
    return Section("statistics", "Batch statistics", text, figure, records)


def _directions(recorded):
    """Statistics along the directions of the joint law's factor.

    Args:
        recorded: `RecordedStatistics` of held-out batches.

    Returns:
        `(panels, distances)`: those of the first two directions for the plot, and the
        median Kolmogorov-Smirnov distances from the joint and from the independent law
        by method; both empty where layers have no joint law.
    """
    values, factors, seen = [], [], set()
    for layer, *met in recorded.by_call():
        if not layer.law_rank or layer in seen:
            continue
        seen.add(layer)
        moments = [ops.convert_to_numpy(x) for x in layer.statistics_moments()]
        for x, mean, stddev in zip(met, moments[::2], moments[1::2], strict=True):
            values.append((x - mean) / np.maximum(stddev, 1e-12))
        factors.append(
            ops.convert_to_numpy(layer.law_factor).reshape(layer.law_rank, -1)
        )
    if not factors:
        return {}, {}
    factor = np.concatenate(factors, axis=1).astype("float64")
    # Of length 1: independent statistics have variance 1 along each.
    _, lengths, directions = np.linalg.svd(factor, full_matrices=False)
    directions = directions[lengths > 1e-6 * lengths[0]]
    own = 1.0 - np.square(factor).sum(0)
    variances = np.square(directions @ factor.T).sum(1) + np.square(directions) @ own
    projected = np.concatenate(values, axis=1) @ directions.T
    distances = {
        "sbn": _median_distance(projected, np.sqrt(variances)),
        "sbn_independent": _median_distance(projected, np.ones(len(directions))),
    }
    panels = {
        f"direction {k + 1} of all layers": (projected[:, k], 0.0, variances[k] ** 0.5)
        for k in range(min(2, len(directions)))
    }
    return panels, distances


def _median_distance(values, stddevs):
    return np.median(
        [
            stats.kstest(x, stats.norm(0.0, stddev).cdf).statistic
            for x, stddev in zip(values.T, stddevs, strict=True)
        ]
    )


def _distance_if_exact(examples, batch_size):
    """The median KS distance of means of a part's full batches from their true law.

    The part is a sample of the law, and its batches are nearer to its own mean.
    """
    rng = np.random.default_rng(0)
    law = stats.norm(0.0, batch_size**-0.5)
    passes = -(-_BATCHES // (examples // batch_size))
    distances = []
    for _ in range(_PARTS):
        part = rng.standard_normal(examples)
        orders = rng.permuted(np.tile(part, (passes, 1)), axis=1)
        means = orders.reshape(-1, batch_size).mean(1)[:_BATCHES]
        distances.append(stats.kstest(means, law.cdf).statistic)
    return float(np.median(distances))
