"""The figures show what is in the archive."""

import matplotlib.image
import numpy as np
import pytest

from hpcvision.report.figures import COLOURS, in_rows, running_mean, samples_picture, training_graph
from hpcvision.results.writer import write_results


def pixels_of(picture):
    return matplotlib.image.imread(picture)[..., :3]


def is_near(pixels, colour):
    wanted = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return (np.abs(pixels - wanted) < 0.05).all(-1)


@pytest.fixture
def draw(make_record, tmp_path):
    """A function that draws the training graph of a record and gives its pixels."""

    def drawn(**changes):
        write_results(tmp_path / "x.h5", make_record(**changes))
        return pixels_of(training_graph(tmp_path / "x.h5", tmp_path / "new" / "x.png"))

    return drawn


def test_the_graph_shows_both_kinds_of_weights_in_two_panels(draw):
    pixels = draw()
    half = pixels.shape[1] // 2
    for panel in (pixels[:, :half], pixels[:, half:]):
        for kind in ("raw", "ema"):
            assert is_near(panel, COLOURS[kind]).sum() > 50


@pytest.mark.parametrize("name", ["loss", "accuracy"])
def test_the_graph_shows_the_training_curve_of_loss_and_of_accuracy(draw, make_record, name):
    # The text is black too, so the curve is found by what goes away with it; the axes keep their range by its ends.
    rows = make_record().train
    flat = [row | ({name: rows[0][name]} if 0 < number < 39 else {}) for number, row in enumerate(rows)]
    whole, changed = draw(), draw(train=flat)
    half = whole.shape[1] // 2
    differs = (whole != changed).any(-1)
    panel, other = (differs[:, :half], differs[:, half:])[:: 1 if name == "loss" else -1]
    assert panel.sum() > 500
    assert other.sum() == 0


def test_a_generator_has_one_panel(draw, make_record):
    def bare(rows):
        return [{key: value for key, value in row.items() if key != "accuracy"} for row in rows]

    record = make_record()
    one = draw(train=bare(record.train), evaluate=bare(record.evaluate), confusion=None, scores={"loss": 1.0})
    assert one.shape[1] == pytest.approx(draw().shape[1] / 2, rel=0.01)


def test_a_falling_loss_falls_in_the_graph(draw, make_record):
    pixels = draw(evaluate=[row for row in make_record().evaluate if row["weights"] == "raw"])
    rows, columns = np.nonzero(is_near(pixels[:, : pixels.shape[1] // 2], COLOURS["raw"]))
    # The evaluations at steps 20 and 40: the later, to the right, is the lower one. The legend is above both.
    rows, columns = rows[rows > 0.5 * pixels.shape[0]], columns[rows > 0.5 * pixels.shape[0]]
    assert rows[columns.argmax()] > rows[columns.argmin()]


def test_test_scores_are_no_points_of_the_validation_curve(draw, make_record):
    without = [row for row in make_record().evaluate if row["split"] == "validation"]
    assert np.array_equal(draw(), draw(evaluate=without))


def test_a_run_at_its_first_checkpoint_can_be_drawn(draw):
    assert draw(train=[], evaluate=[], scores={}, confusion=None).shape[0] > 100


def test_a_single_point_can_be_drawn(draw, make_record):
    record = make_record()
    assert draw(train=record.train[:1], evaluate=record.evaluate[:1]).shape[0] > 100


def test_the_picture_of_samples_holds_every_sample(archive, make_record, tmp_path):
    pixels = pixels_of(samples_picture(archive, tmp_path / "x.png"))
    record = make_record()
    for images in (record.samples["random"].images, record.interpolations["slerp"].images.reshape(-1, 6, 6, 3)):
        # The noise is uniform: the middle pixel of every image appears as a block of its own colour.
        for image in images:
            assert (np.abs(pixels - image[3, 3] / 255) < 0.02).all(-1).sum() >= 9


def test_a_classifier_has_no_picture_of_samples(make_record, tmp_path):
    write_results(tmp_path / "x.h5", make_record(samples={}, interpolations={}))
    assert samples_picture(tmp_path / "x.h5", tmp_path / "x.png") is None
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("count, rows", [(1, 1), (8, 1), (9, 2), (64, 8)])
def test_samples_stand_eight_in_a_row_and_the_rest_is_white(count, rows):
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), dtype=np.uint8)
    placed = in_rows(images)
    assert placed.shape == (rows, 8, 2, 2, 3)
    assert placed[:, :, 0, 0, 0].ravel().tolist() == [*range(count), *[255] * (8 * rows - count)]


@pytest.mark.parametrize("width", [0, 1, 3, 4, 40])
def test_the_smooth_curve_is_the_mean_of_the_points_around_each_and_at_the_ends_of_those_that_there_are(width):
    values = np.random.default_rng(0).normal(size=11)
    smooth, width = running_mean(values, width), min(max(1, width), 11)
    for place in range(11):
        first = place - width // 2
        window = values[max(0, first) : first + width]
        assert smooth[place] == pytest.approx(window.mean())
