import types

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


def bands(axes):
    """The lowest and highest edge of every band, by its place."""
    found = []
    for band in axes.collections:
        (path,) = band.get_paths()
        x, y = path.vertices.T
        places = np.unique(x)
        found.append([(x0, y[x == x0].min(), y[x == x0].max()) for x0 in places])
    return found


def texts(axis):
    return [text.get_text() for text in axis]


def legend_of(ax):
    return texts(ax.get_legend().get_texts())


def measured(layer, batch_size, positions, scale_stddev=0.1, shift_stddev=0.2):
    return types.SimpleNamespace(
        layer=layer,
        batch_size=batch_size,
        positions=positions,
        scale_stddev=scale_stddev,
        shift_stddev=shift_stddev,
    )


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


def test_signal_to_noise(tmp_path):
    ratios = {"a": [0.2, 0.99, 1.0, 50.0], "b": [1e-9, 1e9, 3.0]}
    figure = drawn(plots.signal_to_noise(ratios, 1.0), tmp_path)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["a: 2 of 4 kept", "b: 2 of 3 kept"]
    for ax, values in zip(figure.axes, ratios.values(), strict=True):
        bars = [
            (bar.get_x(), bar.get_facecolor(), bar.get_height()) for bar in ax.patches
        ]
        # What lies outside is counted at the ends.
        assert sum(height for *_, height in bars) == len(values)
        colors = {x < 0.999: color for x, color, _ in bars}
        assert colors[True] != colors[False]
        below = sum(height for x, _, height in bars if x < 0.999)
        assert below == sum(value < 1 for value in values)


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


def test_run_curves(tmp_path):
    nan = np.nan
    a, b = np.array([[4.0, 2.0, nan], [2.0, nan, nan]]), np.array([0.3, nan, 0.1])
    panels = {"Training": {"a": a}, "Validation": {"b": b, "a": 2 * a}}
    figure = drawn(plots.run_curves(panels, "NLL, nats"), tmp_path)
    left, right = figure.axes
    np.testing.assert_array_equal(data(left, "a"), [[1, 2], [3, 2]])
    np.testing.assert_array_equal(data(right, "a"), [[1, 2], [6, 4]])
    np.testing.assert_array_equal(data(right, "b"), [[1, 3], [0.3, 0.1]])
    assert bands(left) == [[(1, 2, 4), (2, 2, 2)]]
    assert bands(right) == [[(1, 4, 8), (2, 4, 4)]]
    styles = [
        {line.get_label(): (line.get_color(), line.get_linestyle()) for line in lines}
        for lines in (left.get_lines(), right.get_lines())
    ]
    assert styles[0]["a"] == styles[1]["a"] != styles[1]["b"]
    assert [left.get_title(), right.get_title()] == list(panels)
    assert left.get_xlabel() == right.get_xlabel() == "epoch"
    assert left.get_ylabel() == "NLL, nats"
    assert left.get_legend() is None
    assert legend_of(right) == ["a", "b"]
    # The right panel spans more than a decade, and both are to be compared.
    assert left.get_yscale() == right.get_yscale() == "log"


def test_run_curves_axes():
    def scales(values, **kwargs):
        panels = {"one": {"a": [1.0, 2.0]}, "two": {"a": values}}
        axes = plots.run_curves(panels, "x", **kwargs).axes
        assert axes[0].get_yscale() == axes[1].get_yscale()
        return axes[0].get_yscale(), axes[0].get_ylim() == axes[1].get_ylim()

    assert scales([0.01, 0.02]) == ("linear", False)
    assert scales([0.01, 0.02], share_y=True) == ("log", True)
    assert scales([0.01, 1.0]) == ("log", False)
    assert scales([0.01, 1.0], log=False) == ("linear", False)
    assert scales([0.0, 1.0]) == ("linear", False)
    # No axes lose a zero to another panel's logarithm.
    zero = {"wide": {"a": [0.01, 1.0]}, "zero": {"a": [0.0, 1.0]}}
    assert {ax.get_yscale() for ax in plots.run_curves(zero, "x").axes} == {"linear"}


def test_many_runs_differ(tmp_path):
    panels = {"Test": {f"run {i}": [1.0, 1.0 + i] for i in range(24)}}
    figure = drawn(plots.run_curves(panels, "NLL, nats"), tmp_path)
    ax = figure.axes[0]
    lines = {
        (line.get_color(), line.get_linestyle(), str(line._dash_pattern))
        for line in ax.get_lines()
    }
    assert len(lines) == 24
    # Nothing of the legend is cut off, nor hides a curve.
    box = ax.get_legend().get_window_extent()
    assert box.x0 >= ax.get_window_extent().x1
    assert box.x1 <= figure.bbox.x1
    assert box.y0 >= 0


def test_perturbation_curves(tmp_path):
    curves = {
        "one seed": ([0.2, 0.0, 0.1], [50.0, 90.0, 70.0]),
        "seeds": ([0.0, 0.1], [[90.0, 80.0], [94.0, 70.0]]),
    }
    figure = drawn(plots.perturbation_curves(curves, "noise"), tmp_path)
    ax = figure.axes[0]
    np.testing.assert_allclose(data(ax, "one seed"), [[0, 0.1, 0.2], [90, 70, 50]])
    np.testing.assert_allclose(data(ax, "seeds"), [[0, 0.1], [92, 75]])
    assert bands(ax) == [[(0, 90, 94), (0.1, 70, 80)]]
    assert all(line.get_marker() in "osD^v" for line in ax.get_lines())
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("noise", "accuracy (%)")
    assert legend_of(ax) == list(curves)


def test_coverage_curves(tmp_path):
    curves = {"seeds": ([100, 50], [[9.0, 1.0], [11.0, 3.0]])}
    ax = drawn(plots.coverage_curves(curves), tmp_path).axes[0]
    np.testing.assert_allclose(data(ax, "seeds"), [[50, 100], [2, 10]])
    assert ax.get_ylabel() == "error among them (%)"


def test_calibration_curves(tmp_path):
    curves = {"one": ([0.5, 0.9], [0.6, 0.8]), "two": ([0.7], [0.7])}
    ax = drawn(plots.calibration_curves(curves), tmp_path).axes[0]
    np.testing.assert_allclose(data(ax, "one"), [[50, 90], [10, -10]])
    np.testing.assert_allclose(data(ax, "two"), [[70], [0]], atol=1e-12)
    assert legend_of(ax) == list(curves)
    with pytest.raises(ValueError, match="'one'"):
        plots.calibration_curves({"one": ([0.5, 0.9], [0.6])})


def test_batch_noise(tmp_path):
    records = [
        measured(layer, batch, positions, (2 * batch * p) ** -0.5, (batch * p) ** -0.5)
        for layer, positions, p in (("conv", 64, 64), ("last", 1, 1), ("mid", 64, 16))
        for batch in (128, 16, 48)
    ]
    figure = drawn(plots.batch_noise(records), tmp_path)
    left, right = figure.axes
    batch = np.array([16, 48, 128])
    curves = [line.get_data() for line in left.get_lines()]
    assert len(curves) == 7
    for i, p in enumerate((64, 1, 16)):
        np.testing.assert_allclose(curves[2 * i], [batch, 1 / (2 * batch * p)])
        np.testing.assert_allclose(curves[2 * i + 1], [batch, 1 / (batch * p)])
    assert [line.get_linestyle() for line in left.get_lines()[:2]] == ["-", "--"]
    x, y = curves[-1]
    np.testing.assert_allclose(y[0] / y[1], x[1] / x[0])
    assert left.get_lines()[-1].get_color() == plots.style.GREY
    # Of 16, 48 and 128, on a logarithmic scale 48 is nearest to 32.
    assert "48" in right.get_title()
    lines = [line.get_data() for line in right.get_lines()]
    np.testing.assert_allclose(np.ravel(lines[0]), [64, 1 / (96 * 64)])
    np.testing.assert_allclose(np.ravel(lines[1]), [64, 1 / (48 * 64)])
    np.testing.assert_allclose(lines[-2][1], 1 / (2 * 48 * lines[-2][0]))
    np.testing.assert_allclose(lines[-1][1], 1 / (48 * lines[-1][0]))
    assert texts(right.child_axes[0].get_xticklabels()) == ["last", "conv\nmid"]
    assert texts(right.get_xticklabels()) == ["1", "64"]
    assert legend_of(right)[-3:] == ["conv", "last", "mid"]
    for ax in figure.axes:
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_batch_noise_of_shared_and_of_many_layers():
    calls = [measured("bn", batch, 4) for batch in (8, 8, 32, 32)]
    left, right = plots.batch_noise(calls).axes
    assert legend_of(right)[-2:] == ["bn", "bn (2)"]
    assert all(len(line.get_xdata()) == 2 for line in left.get_lines())
    many = [
        measured(f"bn{i}", 32, p) for i, p in enumerate([1024, 961, 1000, 1, 1020, 990])
    ]
    right = plots.batch_noise(many).axes[1]
    names = texts(right.child_axes[0].get_xticklabels())
    assert names == ["bn3", "bn0\n... (5 layers)\nbn5"]


def test_layer_noise(tmp_path):
    series = {
        "learned": {"conv_0": 0.1, "conv_1": 0.2, "conv_2": 0.01},
        "measured": {"conv_2": 0.02, "conv_0": 0.3},
    }
    label = r"$\sigma_S/s$"
    figure = drawn(plots.layer_noise(series, label), tmp_path)
    ax = figure.axes[0]
    np.testing.assert_array_equal(data(ax, "learned"), [[0, 1, 2], [0.1, 0.2, 0.01]])
    np.testing.assert_array_equal(data(ax, "measured"), [[0, 2], [0.3, 0.02]])
    assert texts(ax.get_xticklabels()) == list(series["learned"])
    assert (ax.get_yscale(), ax.get_ylabel()) == ("log", label)
    long = plots.layer_noise({"a": {f"a_layer_with_a_name_{i}": 1.0 for i in range(9)}})
    assert all(text.get_rotation() == 30 for text in long.axes[0].get_xticklabels())


def pictures(figure, title):
    """The arrays of a column, from above."""
    grid = [ax for ax in figure.axes if ax.get_images()]
    (column,) = [i for i, ax in enumerate(grid) if ax.get_title() == title]
    columns = len({ax.get_subplotspec().colspan.start for ax in grid})
    return [ax.get_images()[0].get_array() for ax in grid[column::columns]]


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_segmentation_grid(tmp_path, rng, channels):
    shape = (4, 5, 6)
    images = rng.integers(0, 255, (*shape, *channels)).astype("uint8")
    probs, truth = rng.dirichlet(np.ones(3), shape), rng.integers(0, 3, shape)
    truth[0, 0, 0] = -1
    entropy = metrics.predictive_entropy(probs)
    information = 0.1 * rng.random(shape)
    args = (images, truth, probs, entropy, information, ["sky", "road", "car"])
    figure = drawn(plots.segmentation_grid(*args, rows=3), tmp_path)
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == ["image", "truth", "prediction", "entropy", "mutual information"]
    expected = images[:3].astype(float) - images[:3].min()
    expected = expected[..., 0] if channels == (1,) else expected
    found = pictures(figure, "image")
    np.testing.assert_allclose(found, expected / expected.max())
    np.testing.assert_array_equal(pictures(figure, "entropy"), entropy[:3])
    shown = pictures(figure, "mutual information")
    np.testing.assert_array_equal(shown, information[:3])
    (legend,) = figure.legends
    colors = {
        text.get_text(): patch.get_facecolor()[:3]
        for text, patch in zip(legend.get_texts(), legend.get_patches(), strict=True)
    }
    assert list(colors) == ["sky", "road", "car", "wrong", "unknown"]
    palette = np.array(list(colors.values()))
    assert len(np.unique(palette, axis=0)) == 5
    truth, predicted = truth[:3], probs[:3].argmax(-1)
    np.testing.assert_array_equal(pictures(figure, "truth"), palette[truth])
    kinds = np.where((predicted != truth) & (truth >= 0), 3, predicted)
    np.testing.assert_array_equal(pictures(figure, "prediction"), palette[kinds])
    images = [ax.get_images()[0] for ax in figure.axes if ax.get_images()]
    assert {image.get_interpolation() for image in images} == {"nearest"}
    assert {image.get_clim() for image in images[3::5]} == {(0, np.log(3))}
    assert {image.get_clim() for image in images[4::5]} == {(0, information[:3].max())}
    assert texts([ax.xaxis.label for ax in figure.axes]).count("nats") == 2


def test_segmentation_grid_defaults(tmp_path, rng):
    probs, truth = rng.dirichlet(np.ones(9), (7, 4, 4)), rng.integers(0, 9, (7, 4, 4))
    entropy = metrics.predictive_entropy(probs)
    figure = drawn(plots.segmentation_grid(truth, truth, probs, entropy), tmp_path)
    assert len(pictures(figure, "entropy")) == 6
    names = texts(figure.legends[0].get_texts())
    assert names == [*(f"class {k}" for k in range(9)), "wrong"]
    assert figure.legends[0].get_window_extent().x0 >= 0
    sizes = [ax.get_window_extent().size for ax in figure.axes if ax.get_images()]
    np.testing.assert_allclose(sizes, np.broadcast_to(sizes[0], np.shape(sizes)))


def test_given_axes(predictions):
    figure = Figure()
    axes = figure.subplots(1, 2)
    assert plots.entropy_cdf({"all": [0.1, 0.2]}, ax=axes[0]) is figure
    assert plots.reliability_diagram(*predictions, ax=axes[1]) is figure
    assert plots.perturbation_curves({"a": ([0], [5])}, "x", ax=axes[0]) is figure
    assert plots.layer_noise({"a": {"b": 1.0}}, ax=axes[1]) is figure
    assert len(figure.axes) == 2
    figure = Figure()
    assert plots.run_curves({"a": {"b": [1.0]}}, "x", figure) is figure
    figure = Figure()
    assert plots.batch_noise([measured("a", 8, 1)], figure) is figure


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
        (plots.run_curves, ({}, "x"), "`panels` is empty"),
        (plots.run_curves, ({"t": {}}, "x"), r"panels\['t'\]` has no number"),
        (plots.run_curves, ({"t": {"a": [np.nan]}}, "x"), "has no number to draw"),
        (plots.run_curves, ({"t": {"a": [np.inf]}}, "x"), "with 1 infinite"),
        (plots.run_curves, ({"t": {"a": np.ones((1, 1, 2))}}, "x"), r"\(1, 1, 2\)"),
        (plots.run_curves, ({"t": {"a": []}}, "x"), r"shape \(0,\)"),
        (plots.perturbation_curves, ({}, "x"), "`curves` is empty"),
        (plots.perturbation_curves, ({"a": ([0, 1], [5])}, "x"), r"\(2,\) and \(1,\)"),
        (plots.perturbation_curves, ({"a": ([[0]], [5])}, "x"), "levels \\[k\\]"),
        (plots.perturbation_curves, ({"a": ([0], [101])}, "x"), "in per cent"),
        (plots.perturbation_curves, ({"a": ([0], [np.nan])}, "x"), "must be finite"),
        (plots.batch_noise, ([],), "`measurements` is empty"),
        (plots.batch_noise, ([measured("a", 8, 1, 0.0)],), "positive, finite"),
        (plots.batch_noise, ([measured("a", 8, 1, np.nan)],), "positive, finite"),
        (plots.signal_to_noise, ({}, 1.0), "`ratios` is empty"),
        (plots.signal_to_noise, ({"a": [0.0]}, 1.0), "needs numbers above 0"),
        (plots.layer_noise, ({},), "`series` is empty"),
        (plots.layer_noise, ({"a": {}},), r"series\['a'\]` is empty"),
        (plots.layer_noise, ({"a": {"b": 0.0}},), "needs numbers above 0"),
    ],
)
def test_bad_input(function, args, match):
    with pytest.raises(ValueError, match=match):
        function(*args)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"images": np.zeros((2, 3, 3, 2))}, r"perhaps with 1 or 3 channels"),
        ({"truth": np.zeros((2, 3, 4), int)}, r"`truth` must be \(2, 3, 3\)"),
        ({"truth": np.full((2, 3, 3), 2)}, "integers from 0 to 1"),
        ({"truth": np.zeros((2, 3, 3))}, "got float64"),
        ({"probs": np.full((2, 3, 2), 0.5)}, r"\[n, height, width, K\]"),
        ({"probs": np.full((2, 3, 3, 2), 0.6)}, "must sum to 1"),
        ({"entropy": np.zeros((2, 3))}, r"`entropy` must be \(2, 3, 3\)"),
        ({"entropy": np.ones((2, 3, 3))}, "at most log 2 = 0.6931 nats"),
        ({"mutual_information": np.zeros(2)}, "`mutual_information` must be"),
        ({"class_names": "abc"}, "needs 2 names, got 3"),
        ({"rows": 0}, "`rows` must be an integer from 1"),
    ],
)
def test_bad_segmentation(changes, match):
    shape = (2, 3, 3)
    args = {
        "images": np.zeros(shape),
        "truth": np.zeros(shape, int),
        "probs": np.full((*shape, 2), 0.5),
        "entropy": np.zeros(shape),
    }
    with pytest.raises(ValueError, match=match):
        plots.segmentation_grid(**(args | changes))


@pytest.mark.parametrize("regression", [False, True])
def test_samples_needed(regression):
    counts = np.array([1, 10, 100])
    needed = types.SimpleNamespace(
        samples=40,
        pilot=30,
        tolerance=0.1 if regression else "class",
        error_rate=0.05,
        counts=counts,
        other_class=None if regression else np.array([0.3, 0.1, 0.02]),
        deviation=np.array([0.5, 0.2, 0.1]),
    )
    figure = plots.samples_needed(needed, unit="years" if regression else None)
    assert len(figure.axes) == 2 - regression
    np.testing.assert_allclose(
        figure.axes[-1].get_lines()[0].get_ydata(), [0.5, 0.2, 0.1]
    )
    assert figure.axes[-1].get_ylabel() == (
        "error of the mean, rms, years"
        if regression
        else "error of the entropy, rms, nats"
    )
    assert legend_of(figure.axes[0]) == ["30 pilot samples", "40 are enough"]
    if not regression:
        lines = figure.axes[0].get_lines()
        np.testing.assert_allclose(lines[0].get_ydata(), [30, 10, 2])
        assert lines[-1].get_ydata()[0] == pytest.approx(5)
    needed.samples = None
    assert legend_of(plots.samples_needed(needed).axes[0]) == ["30 pilot samples"]
