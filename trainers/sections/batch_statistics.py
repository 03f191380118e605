"""What the report of `trainers.sbn` adds: the paper's table and its figures."""

import numpy as np
from keras import ops
from scipy import stats

from bayesnorm import plots
from bayesnorm.measurement.minibatch import record_statistics
from bayesnorm.prediction.predict import predict
from trainers.report import Section, cell

_BATCHES = 200
# Simulated ones, of which the median is known to 5 %.
_PARTS = 100
# The size of the comparison with real batches, where noise must not hide a distance.
_EXAMPLES, _SAMPLES = 500, 200


def sections(flags, splits, model, batches, held_out, methods, figures, predictions):
    """Returns the sections, and adds what they found to `figures`.

    Args:
        flags: The flags of the run.
        splits: The `Splits`.
        model: A calibrated network.
        batches: An epoch of training batches, an iterable.
        held_out: A `session.TrainingInputs` of the validation part.
        methods: The methods of the report, by key.
        figures: Dict of figures, changed.
        predictions: Part -> method -> predictions of each run.
    """
    found = {"table": _table(figures)}
    if "ood" in predictions:
        found["entropy_cdf_methods"] = _entropy(splits, methods, predictions["ood"])
    if "mcbn" in predictions["test"]:
        found["real_batches"] = _against_real_batches(
            flags, splits, model, batches, figures
        )
    found["statistics"] = _statistics(flags, held_out, model, figures)
    return found


def _table(figures):
    """The paper's table 1: error and NLL without and with SBN."""
    rows = [
        ("single network", "bn", "sbn"),
        ("ensemble", "ensemble", "ensemble_sbn"),
        ("dropout", "dropout", "dropout_sbn"),
    ]
    lines = [
        "| | error, % | error with SBN, % | NLL | NLL with SBN |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for title, without, with_sbn in rows:
        if f"test/nll_{without}" not in figures:
            continue
        cells = [
            cell(figures, f"test/{name}_{method}", form)
            for name, form in (("error", ".2f"), ("nll", ".4f"))
            for method in (without, with_sbn)
        ]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    text = (
        "Without and with stochastic batch normalization; mean ± standard deviation "
        "over members where there are several runs.\n\n" + "\n".join(lines)
    )
    return Section("Error and NLL, as table 1 of the paper", None, text)


def _entropy(splits, methods, outside):
    entropies = {methods[name].title: runs[0].entropy for name, runs in outside.items()}
    means = ", ".join(f"{name} {e.mean():.3f}" for name, e in entropies.items())
    return Section(
        "Entropy out of the domain, every method",
        plots.entropy_cdf(entropies, splits.num_classes),
        f"Figure 1 of the paper. Further right is better. Mean entropy, nats: {means}.",
    )


def _against_real_batches(flags, splits, model, batches, figures):
    """Total variation from MCBN, and the drift of the mean prediction."""
    images = splits.inputs(splits.test.images[:_EXAMPLES])
    # As an array, of which each seed makes batches of its own.
    batches = np.concatenate(list(batches))
    sampling = {"samples": _SAMPLES, "seed": flags.seed, "from_logits": True}
    real = predict(model, images, method="minibatch", train_data=batches, **sampling)
    ours = predict(model, images, **sampling)
    plain = predict(model, images, method="mean", from_logits=True)
    # What two averages of real batches differ by is the noise of the measurement.
    again = predict(
        model,
        images,
        method="minibatch",
        train_data=batches,
        **(sampling | {"seed": flags.seed + 1}),
    )
    distances = {
        name: 0.5 * np.abs(p.probs - real.probs).sum(-1)
        for name, p in (("sbn", ours), ("bn", plain), ("mcbn", again))
    }
    for name, distance in distances.items():
        figures[f"distance/mcbn_{name}"] = float(distance.mean())
    drift = (ours.probs - plain.probs).mean(0)
    figures["distance/drift_of_class_shares"] = float(np.abs(drift).max())
    means = {name: distance.mean() for name, distance in distances.items()}
    text = (
        "Real training batches give the distribution that SBN approximates. Mean total "
        f"variation distance of the averaged prediction ({_SAMPLES} samples) from "
        f"theirs, over {len(images)} test examples: SBN {means['sbn']:.4f}, plain BN "
        f"{means['bn']:.4f}, other real batches {means['mcbn']:.4f}, which is the "
        "noise of the measurement. The mean probability of a class moves by at most "
        f"{100 * np.abs(drift).max():.2f} % from BN to SBN."
    )
    return Section("Against the statistics of real batches", None, text)


def _statistics(flags, held_out, model, figures):
    """KS distances per layer on held-out batches, and densities of some channels."""
    size, inputs = held_out.batch_size, np.concatenate(list(held_out))
    recorded = record_statistics(model, inputs, _BATCHES, size, flags.seed)
    panels, lines = {}, []
    for layer, *met in recorded.by_call():
        moments = [ops.convert_to_numpy(x) for x in layer.statistics_moments()]
        (channels,) = moments[0].shape
        name = layer.name.removesuffix("_norm")
        cells = []
        for i, kind in enumerate(("mean", "log variance")):
            values = met[i]
            mean, stddev = moments[2 * i], np.maximum(moments[2 * i + 1], 1e-12)
            distances = [
                stats.kstest(values[:, c], stats.norm(mean[c], stddev[c]).cdf).statistic
                for c in range(channels)
            ]
            key = f"statistics/ks_{kind.replace(' ', '_')}/{name}"
            figures[key] = float(np.median(distances))
            cells.append(f"{np.median(distances):.3f}")
            middle = int(np.argsort(distances)[channels // 2])
            panels[f"{name}, {kind}"] = values[:, middle], mean[middle], stddev[middle]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    table = "\n".join(
        ["| layer | mean | log variance |", "| --- | ---: | ---: |", *lines]
    )
    text = (
        f"Statistics of {_BATCHES} batches of {size} validation images against the "
        "laws from the training data, figures 2 and 3 of the paper. Median over the "
        "channels of the Kolmogorov-Smirnov distance, about "
        f"{_distance_if_exact(len(inputs), size):.2f} where the law is exact, as the "
        f"batches are of {len(inputs)} images only; the plot shows the channel of that "
        f"distance.\n\n{table}"
    )
    shown = list(panels)
    if len(shown) > 8:  # The first, a middle, and the last two layers.
        layers = len(shown) // 2
        chosen = sorted({0, layers // 2, layers - 2, layers - 1})
        shown = [shown[2 * i + j] for i in chosen for j in (0, 1)]
    return Section(
        "Batch statistics",
        plots.batch_statistics({name: panels[name] for name in shown}),
        text,
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
