"""Charts: means over runs, bands, and dots stand where the numbers are."""

import io

import numpy as np
import pytest
from PIL import Image

from orchestrator.results.charts import ScoredRow, bands_figure, draw_curves, draw_scores, mean_curve, scores_figure


def test_curves_become_a_png_in_their_colours() -> None:
    curves = Image.open(io.BytesIO(draw_curves({"a": ([0, 1], [0.0, 1.0])}, "Collapse", "step", "collapse")))
    assert (0, 114, 178) in {colour for _, colour in curves.convert("RGB").getcolors(1 << 20)}


def test_a_mean_curve_has_only_the_places_that_all_runs_have() -> None:
    mean = mean_curve([([10, 20, 30], [0.2, 0.4, 0.9]), ([10, 20], [0.4, 0.8])])
    np.testing.assert_allclose(mean.x, [10, 20])
    np.testing.assert_allclose(mean.y, [0.3, 0.6])
    np.testing.assert_allclose(mean.deviation, [0.2 / 2**0.5, 0.4 / 2**0.5])


def test_a_band_is_one_deviation_around_the_mean_and_single_runs_are_faint() -> None:
    figure = bands_figure({"a": [([1, 2], [0.0, 1.0]), ([1, 2], [1.0, 2.0])]}, "t", "step", "score")
    mean, *runs = figure.axes[0].lines
    np.testing.assert_allclose(mean.get_ydata(), [0.5, 1.5])
    assert [line.get_alpha() for line in runs] == [0.25, 0.25]
    low, high = (figure.axes[0].collections[0].get_paths()[0].vertices[:, 1].min(),
                 figure.axes[0].collections[0].get_paths()[0].vertices[:, 1].max())  # fmt: skip
    assert (low, high) == pytest.approx((0.5 - 0.5**0.5, 1.5 + 0.5**0.5))


@pytest.mark.slow
def test_a_row_s_dots_are_its_runs_and_its_line_is_the_interval() -> None:
    rows = [ScoredRow("a", (0.5, 0.7), 0.6, (0.4, 0.8)), ScoredRow("[0.3, 0.6]", (0.9,), 0.9, None)]
    axis = scores_figure(rows, "t", "dice_mean").axes[0]
    interval, mean, dots, *other = axis.collections
    np.testing.assert_allclose(interval.get_segments(), [[[0.4, 0], [0.8, 0]]])
    np.testing.assert_allclose(np.array(mean.get_segments())[0, :, 0], [0.6, 0.6])
    np.testing.assert_allclose(dots.get_offsets(), [[0.5, 0], [0.7, 0]])
    assert len(other) == 2
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "[0.3, 0.6]"]
    assert axis.get_ylim() == (1.6, -0.6)
    assert Image.open(io.BytesIO(draw_scores(rows, "t", "dice_mean"))).format == "PNG"


def test_intervals_much_wider_than_the_scores_do_not_press_these_together() -> None:
    axis = scores_figure([ScoredRow("a", (0.5, 0.6), 0.55, (-0.1, 1.2))], "t", "dice_mean").axes[0]
    assert axis.get_xlim() == pytest.approx((0.4, 0.7))


def test_a_long_curve_is_smoothed_to_means_of_its_pieces() -> None:
    mean = mean_curve([(range(1, 401), [float(value % 2) for value in range(400)])])
    assert (len(mean.x), mean.x[0], mean.x[-1]) == (200, 1.5, 399.5)
    assert set(mean.y) == {0.5}


def test_runs_without_a_place_in_common_have_no_mean() -> None:
    assert mean_curve([([1], [0.5]), ([2], [0.5])]).y.tolist() == []
