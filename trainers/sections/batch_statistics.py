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
    ours = predict(model, images, **sampling)
    plain = predict(model, images, method="mean", from_logits=True)
    # What two averages of real batches differ by is the noise of the measurement.
    again = predict(
        model,
        images,
        method="minibatch",
        train_data=batches,
        **(sampling | {"seed": seed + 1}),
    )
    distances = {
        name: 0.5 * np.abs(p.probs - real.probs).sum(-1)
        for name, p in (("sbn", ours), ("bn", plain), ("mcbn", again))
    }
    means = {name: distance.mean() for name, distance in distances.items()}
    drift = np.abs((ours.probs - plain.probs).mean(0)).max()
    records = [Record("distance", "mcbn", v, "1", name) for name, v in means.items()]
    records.append(Record("distance", "drift_of_class_shares", drift, "1"))
    text = (
        "Real training batches give the distribution that SBN approximates. Mean total "
        f"variation distance of the averaged prediction ({_SAMPLES} samples) from "
        f"theirs, over {len(images)} test examples: SBN {means['sbn']:.4f}, plain BN "
        f"{means['bn']:.4f}, other real batches {means['mcbn']:.4f}, which is the "
        "noise of the measurement. The mean probability of a class moves by at most "
        f"{100 * drift:.2f} % from BN to SBN."
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
    text = (
        f"Statistics of {_BATCHES} batches of {size} validation images against the "
        "laws from the training data, figures 2 and 3 of the paper. Median over the "
        "channels of the Kolmogorov-Smirnov distance, about "
        f"{_distance_if_exact(len(inputs), size):.2f} where the law is exact, as the "
        f"batches are of {len(inputs)} images only; the plot shows the channel of that "
        f"distance.\n\n{table(['layer', 'mean', 'log variance'], rows)}"
    )
    shown = list(panels)
    if len(shown) > 8:  # The first, a middle, and the last two layers.
        layers = len(shown) // 2
        chosen = sorted({0, layers // 2, layers - 2, layers - 1})
        shown = [shown[2 * i + j] for i in chosen for j in (0, 1)]
    figure = plots.batch_statistics({name: panels[name] for name in shown})
    return Section("statistics", "Batch statistics", text, figure, records)


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
