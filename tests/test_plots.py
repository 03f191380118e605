import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bayesnorm import metrics, plots


@pytest.fixture
def predictions(rng):
    return rng.dirichlet(np.ones(3), 200), rng.integers(0, 3, 200)


def data(axes, label):
    """The points of the line with a label."""
    found = [line for line in axes.get_lines() if line.get_label().startswith(label)]
    assert len(found) == 1
    return found[0].get_data()


def drawn(figure, tmp_path):
    assert isinstance(figure, Figure)
    path = tmp_path / "figure.png"
    figure.savefig(path)
    assert path.stat().st_size > 5000
    return figure


def test_training_curves(tmp_path):
    history = {
        "train": [2.0, 1.5, 1.0],
        "validation": [2.1, 1.7, 1.3],
        "validation_averaged": [np.nan, np.nan, 1.1],
        "kl": [5.0, 6.0, 7.0],
    }
    figure = drawn(plots.training_curves(history), tmp_path)
    ax, right = figure.axes
    np.testing.assert_array_equal(data(ax, "train"), [[1, 2, 3], [2, 1.5, 1]])
    np.testing.assert_array_equal(data(ax, "validation, averaged"), [[3], [1.1]])
    np.testing.assert_array_equal(data(right, "KL"), [[1, 2, 3], [5, 6, 7]])
    assert "nats" in ax.get_ylabel()
    assert "nats" in right.get_ylabel()


def test_reliability_diagram(tmp_path, predictions):
    figure = drawn(plots.reliability_diagram(*predictions), tmp_path)
    found = metrics.reliability_bins(*predictions)
    full = found.count > 0
    bars, gaps = figure.axes[0].containers
    heights = [bar.get_height() for bar in bars]
    np.testing.assert_allclose(heights, found.accuracy[full])
    tops = [bar.get_y() + bar.get_height() for bar in gaps]
    np.testing.assert_allclose(tops, found.confidence[full])
    counts = [bar.get_height() for bar in figure.axes[1].containers[0]]
    np.testing.assert_array_equal(counts, found.count)


def test_batch_statistics(tmp_path, rng):
    values = rng.normal(2.0, 3.0, 200)
    panels = {"a": (values, 2.0, 3.0), "constant": (np.ones(5), 1.0, 0.0)}
    figure = drawn(plots.batch_statistics(panels), tmp_path)
    x, density = data(figure.axes[0], "law")
    assert x[np.argmax(density)] == pytest.approx(2.0, abs=0.1)
    assert density.max() == pytest.approx(1 / (3 * np.sqrt(2 * np.pi)), rel=1e-3)
    with pytest.raises(ValueError, match="`panels` is empty"):
        plots.batch_statistics({})


def test_error_coverage(tmp_path, rng):
    uncertainty, errors = rng.random(50), rng.random(50) < 0.3
    figure = plots.error_coverage({"a": (uncertainty, errors), "b": (errors, errors)})
    drawn(figure, tmp_path)
    coverage, risk = metrics.error_coverage(uncertainty, errors)
    found = data(figure.axes[0], "a (area")
    np.testing.assert_allclose(found, [100 * coverage, 100 * risk])


def test_entropy_figures(tmp_path, rng):
    entropies = {"in domain": rng.random(60), "out of domain": 1 + rng.random(90)}
    figure = drawn(plots.entropy_cdf(entropies, 10), tmp_path)
    h, cdf = data(figure.axes[0], "out of domain (n = 90)")
    assert h[0] == cdf[0] == 0
    assert cdf[-1] == 1
    np.testing.assert_allclose(cdf[1:-1], np.arange(1, 91) / 90)
    figure = drawn(plots.entropy_histogram(entropies, 10), tmp_path)
    areas = [patch.get_data().values.sum() for patch in figure.axes[0].patches]
    np.testing.assert_allclose(areas, 100)


def test_scale_uncertainty(tmp_path, rng):
    ratios = {"conv_0": rng.random(8) + 0.01, "conv_1": [0.3], "conv_2": [0.0, 0.5]}
    figure = drawn(plots.scale_uncertainty(ratios), tmp_path)
    ax = figure.axes[0]
    assert [text.get_text() for text in ax.get_xticklabels()] == list(ratios)
    points = ax.get_lines()[0].get_ydata()
    np.testing.assert_array_equal(points, ratios["conv_0"])
    wide = plots.scale_uncertainty({"a": [0.01], "b": [0.5]})
    assert wide.axes[0].get_yscale() == "log"


def test_channel_statistics(tmp_path, rng):
    statistics = {
        method: {name: (rng.normal(size=9), rng.random(9)) for name in ("a", "b", "c")}
        for method in ("analytic", "weight")
    }
    figure = drawn(plots.channel_statistics(statistics), tmp_path)
    for part, ax in enumerate(figure.axes):
        for container, by in zip(ax.containers, statistics.values(), strict=True):
            medians = [np.median(by[name][part]) for name in "abc"]
            np.testing.assert_allclose(container[0].get_ydata(), medians)


def test_bar_comparison(tmp_path):
    values = {"batch": [1.0, 2.0, 3.0], "analytic": [0.5]}
    figure = drawn(plots.bar_comparison(values, "NLL (nats)", "Test"), tmp_path)
    ax = figure.axes[0]
    heights = [container[0].get_height() for container in ax.containers[::2]]
    assert heights == [2.0, 0.5]
    low, high = ax.containers[1][2][0].get_segments()[0][:, 1]
    assert (low, high) == (1.0, 3.0)
    assert "1/3 runs" in ax.get_ylabel()


@pytest.mark.parametrize("channels", [1, 3])
def test_example_grid(tmp_path, rng, predictions, channels):
    probs, labels = predictions[0][:20], predictions[1][:20]
    labels[0] = -1
    images = rng.integers(0, 255, (20, 6, 5, channels)).astype("uint8")
    figure = plots.example_grid(images, probs, labels, "abc", rows=1, columns=3)
    drawn(figure, tmp_path)
    entropy = np.sort(metrics.predictive_entropy(probs))
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    shown = [float(title.split("= ")[1]) for title in titles]
    expected = [*entropy[::-1][:3], *entropy[:3]]
    np.testing.assert_allclose(shown, expected, atol=0.006)


def test_example_grid_of_few_images(tmp_path, rng):
    probs = rng.dirichlet(np.ones(3), 3)
    images = np.zeros((3, 4, 4, 1), "uint8")
    drawn(plots.example_grid(images, probs, np.zeros(3, int), "abc"), tmp_path)


def test_given_axes(predictions):
    figure = Figure()
    axes = figure.subplots(1, 2)
    assert plots.entropy_cdf({"all": [0.1, 0.2]}, ax=axes[0]) is figure
    assert plots.reliability_diagram(*predictions, ax=axes[1]) is figure
    assert len(figure.axes) == 2


def test_no_global_state():
    before = pyplot.get_fignums()
    figure = plots.entropy_cdf({"all": [0.1]})
    assert isinstance(figure.canvas, FigureCanvasAgg)
    assert pyplot.get_fignums() == before


@pytest.mark.parametrize(
    ("function", "args", "match"),
    [
        (plots.training_curves, ({"loss": [1]},), "at least one of"),
        (plots.training_curves, ({"train": [1], "kl": [1, 2]},), "one number an epoch"),
        (plots.error_coverage, ({},), "`curves` is empty"),
        (plots.entropy_cdf, ({},), "`entropies` is empty"),
        (plots.entropy_histogram, ({"a": [np.nan]},), "must be finite"),
        (plots.scale_uncertainty, ({"a": [np.inf]},), r"ratios\['a'\]` must be finite"),
        (plots.bar_comparison, ({"a": []}, "x"), r"values\['a'\]` is empty"),
        (
            plots.example_grid,
            (np.zeros((2, 3, 3, 2)), [[0.5, 0.5]] * 2, [0, 1], "ab"),
            "height, width, 1 or 3",
        ),
        (
            plots.example_grid,
            (np.zeros((3, 3, 3, 1)), [[0.5, 0.5]] * 2, [0, 1], "ab"),
            "need one n",
        ),
        (
            plots.example_grid,
            (np.zeros((2, 3, 3, 1)), [[0.5, 0.5]] * 2, [0, 1], "a"),
            "needs 2 names, got 1",
        ),
    ],
)
def test_bad_input(function, args, match):
    with pytest.raises(ValueError, match=match):
        function(*args)
