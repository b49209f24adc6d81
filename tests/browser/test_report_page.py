"""The report's page in a real browser: from a disk, alone, by mouse and by keyboard, and it runs nobody's code."""

import itertools
import json
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcvision.report.page import LARGEST, write_page
from hpcvision.results.record import Samples
from hpcvision.results.run import copy_run, load_sweep
from hpcvision.results.writer import write_results

pytestmark = pytest.mark.browser
STORED = Path(__file__).parents[1] / "data"
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>\"'&"


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, with all that it asks the network for in its log."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1100,900",
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, tmp_path):
    """A function that opens a page about archives; afterwards nothing was fetched and nothing complained."""

    def open_page(*archives):
        page = write_page(list(archives), tmp_path / "report.html")
        browser.get_log("performance")
        browser.get(page.as_uri())
        return browser

    yield open_page
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(("file://", "data:"))] == []
    assert len([url for url in asked if url.startswith("file://")]) <= 1


@pytest.fixture(scope="session")
def many(tmp_path_factory, make_sweep):
    """A sweep of 500 trials, two of them with their runs."""
    folder = tmp_path_factory.mktemp("many")
    stored = load_sweep(STORED / "format1_sweep.h5")
    archives = [folder / f"{number}.h5" for number in range(500)]
    for run, archive in zip(stored.runs(), archives, strict=False):
        copy_run(run, archive)
    random = np.random.default_rng(0)
    pairs = [
        (
            {
                "optim.learning_rate": float(10 ** random.uniform(-5, -1)),
                "optim.schedule": str(random.choice(["cosine", "linear", "constant"])),
            },
            float(random.uniform()),
        )
        for _ in range(500)
    ]
    return make_sweep(
        folder / "sweep.h5",
        pairs,
        archives=archives,
        facts={"winner": stored.fingerprints[0]},
        fingerprint=[*stored.fingerprints, *(f"{number:012x}" for number in range(2, 500))],
        status=["finished"] * 2 + ["stopped"] * 498,
        parameters=random.integers(10_000, 100_000, 500).tolist(),
    )


def column(browser, heading):
    """The visible cells below a heading of the table of trials."""
    code = """
        const table = document.querySelector("table.sortable");
        const at = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === arguments[0]);
        return [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[at].textContent);
    """
    return browser.execute_script(code, heading)


def button(browser, heading):
    """The button that sorts by a column."""
    return browser.find_element("xpath", f"//th/button[text()='{heading}']")


def numbers(words):
    return [float(word.replace(",", "")) for word in words]


def test_a_page_about_one_run_shows_its_claim_certificate_curves_images_and_ledger(opened):
    browser = opened(STORED / "format1_run.h5")
    text = browser.find_element("tag name", "body").text
    assert re.search(r"accuracy 72\.37 % \(71\.19 to 73\.52, 95 % Wilson interval\) on the test split", text)
    for words in ("Certificate", "Curves", "Images", "Confusion matrix", "Ledger of steps", "Make it again"):
        assert words in text
    assert text.count("PASS") == 7
    assert "hpcvision results verify" in text
    assert len(browser.find_elements("css selector", ".chart svg polyline")) == 6


def test_every_picture_has_words_and_every_field_a_label(opened, many):
    browser = opened(STORED / "format1_run.h5", many)
    images = browser.find_elements("tag name", "img")
    charts = browser.find_elements("css selector", ".chart svg")
    assert len(images) >= 4
    assert len(charts) >= 5
    assert all(len(image.get_attribute("alt")) > 10 for image in images)
    assert all("points" in chart.get_attribute("aria-label") for chart in charts)
    for field in browser.find_elements("tag name", "input"):
        assert field.find_element("xpath", "ancestor::label").text.startswith("Only rows with")
    levels = [int(head.tag_name[1]) for head in browser.find_elements("css selector", "h1, h2, h3")]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_a_column_is_sorted_by_a_click_and_by_the_keyboard(opened, many):
    from selenium.webdriver.common.keys import Keys

    browser = opened(many)
    button(browser, "objective").click()
    values = numbers(column(browser, "objective"))
    assert len(values) == 500
    assert values == sorted(values)
    button(browser, "objective").send_keys(Keys.ENTER)
    assert numbers(column(browser, "objective")) == sorted(values, reverse=True)
    head = browser.find_element("xpath", "//th[button[text()='objective']]")
    assert head.get_attribute("aria-sort") == "descending"
    button(browser, "label").click()
    assert column(browser, "label")[:3] == ["trial 0", "trial 1", "trial 2"]
    assert head.get_attribute("aria-sort") is None


def test_rows_are_filtered_by_their_words(opened, many):
    browser = opened(many)
    field = browser.find_element("css selector", "input[type=search]")
    field.send_keys("cosine stopped")
    shown = column(browser, "optim.schedule")
    assert set(shown) == {"cosine"}
    assert 100 < len(shown) < 250
    status = browser.find_element("css selector", "[role=status]")
    assert status.text == f"{len(shown)} of 500"
    field.clear()
    field.send_keys("nothing like it")
    assert status.text == "0 of 500"


def test_a_chart_tells_the_point_under_the_mouse_and_zooms(opened):
    from selenium.webdriver.common.action_chains import ActionChains

    browser = opened(STORED / "format1_run.h5")
    figure = browser.find_element("css selector", ".chart")
    svg, told = figure.find_element("tag name", "svg"), figure.find_element("tag name", "output")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", svg)
    known = json.loads(figure.find_element("tag name", "script").get_attribute("textContent"))["series"][0]
    width = svg.size["width"]
    ActionChains(browser).move_to_element_with_offset(svg, round(-0.2 * width), 0).perform()
    step = int(re.search(r"step (\d+)", told.text)[1])
    assert 8 < step < 16
    value = float(re.search(r"training loss ([\d.]+)", told.text)[1])
    assert value == pytest.approx(known["y"][known["x"].index(step)], rel=1e-3)

    def axis():
        """The numbers below the chart."""
        texts = svg.find_elements("css selector", "text[text-anchor=middle]")
        return [float(text.text) for text in texts if re.fullmatch(r"[\d.]+", text.text)]

    whole = axis()
    ActionChains(browser).move_to_element_with_offset(svg, round(-0.1 * width), 0).click_and_hold().move_by_offset(
        round(0.2 * width), 0
    ).release().perform()
    zoomed = axis()
    assert min(whole) < min(zoomed)
    assert max(zoomed) < max(whole)
    ActionChains(browser).double_click(svg).perform()
    assert axis() == whole


def test_a_chart_is_read_and_zoomed_by_the_keyboard(opened):
    from selenium.webdriver.common.keys import Keys

    browser = opened(STORED / "format1_run.h5")
    figure = browser.find_element("css selector", ".chart")
    svg, told = figure.find_element("tag name", "svg"), figure.find_element("tag name", "output")
    before = told.text
    svg.send_keys(Keys.ARROW_LEFT)
    svg.send_keys(Keys.ARROW_LEFT)
    svg.send_keys(Keys.ARROW_LEFT)
    assert told.text != before
    ticks = len(svg.find_elements("css selector", "polyline"))
    lines = svg.get_attribute("innerHTML")
    svg.send_keys("+")
    assert svg.get_attribute("innerHTML") != lines
    svg.send_keys("-")
    assert svg.get_attribute("innerHTML") == lines
    assert len(svg.find_elements("css selector", "polyline")) == ticks


def test_text_of_a_file_is_shown_and_never_run(opened, make_record, tmp_path):
    record = make_record(
        name=HOSTILE,
        class_names=[f"{HOSTILE} {number}" for number in range(20)],
        data={"name": HOSTILE, "source": HOSTILE},
        provenance={HOSTILE: HOSTILE, "git_commit": HOSTILE, "user": HOSTILE},
    )
    record.ledger[0]["host"] = HOSTILE
    write_results(tmp_path / "a.h5", record)
    browser = opened(tmp_path / "a.h5")
    assert browser.execute_script("return window.hacked") is None
    assert HOSTILE in browser.find_element("tag name", "h2").text
    assert browser.title == HOSTILE
    assert browser.find_elements("css selector", "img[src=x]") == []


def test_a_sweep_with_a_hostile_trial_is_shown_and_never_run(opened, many, tmp_path):
    copy = Path(shutil.copy(many, tmp_path / "sweep.h5"))
    with h5py.File(copy, "r+") as file:
        file["trials/label"][3] = HOSTILE
        file["trials/optim.schedule"][4] = json.dumps(HOSTILE)
        file.attrs["name"] = HOSTILE
    browser = opened(copy)
    assert browser.execute_script("return window.hacked") is None
    assert HOSTILE in column(browser, "label")


def test_the_page_has_a_light_and_a_dark_face(opened):
    browser = opened(STORED / "format1_run.h5")

    def brightness(scheme):
        feature = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": feature})
        style = "return getComputedStyle(document.body)."
        colours = [browser.execute_script(f"{style}{name}") for name in ("backgroundColor", "color")]
        return [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours]

    light, dark = brightness("light"), brightness("dark")
    assert light[0] - light[1] > 500
    assert dark[1] - dark[0] > 500


def test_a_sweep_of_500_trials_can_be_used_within_two_seconds(opened, many):
    browser = opened(many)
    ready = browser.execute_script(
        "const t = performance.getEntriesByType('navigation')[0]; return t.loadEventEnd || performance.now()"
    )
    sorting = browser.execute_script(
        "const from = performance.now(); document.querySelector('table.sortable button').click();"
        "document.body.offsetHeight; return performance.now() - from"
    )
    assert ready < 2000
    assert sorting < 1000


def test_a_page_about_10000_samples_stays_below_5_megabytes_and_says_what_it_shows(opened, make_record, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (10_000, 32, 32, 3), dtype=np.uint8)
    samples = {
        f"set {number}": Samples(
            pixels, np.zeros(10_000, int), np.arange(10_000), {"sampler": "ddim", "steps": 5, "weights": "raw"}
        )
        for number in range(2)
    }
    write_results(tmp_path / "a.h5", make_record(samples=samples))
    browser = opened(tmp_path / "a.h5")
    assert (tmp_path / "report.html").stat().st_size < LARGEST
    assert "64 of 10000; not chosen: consecutive seeds; ddim, 5 steps, raw weights" in browser.page_source


def every_word_of(browser, figure):
    """What a chart tells while the mouse goes all over it."""
    code = """
        const [figure] = arguments, svg = figure.querySelector("svg"), told = new Set();
        const box = svg.getBoundingClientRect();
        for (let x = 0; x < box.width; x += 6) for (let y = 0; y < box.height; y += 6) {
            svg.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + x, clientY: box.top + y }));
            told.add(figure.querySelector("output").textContent);
        }
        return [...told];
    """
    return browser.execute_script(code, figure)


def test_the_mouse_reaches_every_trial_also_those_of_one_column(opened, make_sweep, tmp_path):
    overrides = [{"model.width": 0.5 if number < 4 else 1.0} for number in range(8)]
    browser = opened(make_sweep(tmp_path / "sweep.h5", [(turned, 0.1 * n) for n, turned in enumerate(overrides)]))
    told = every_word_of(browser, browser.find_element("css selector", ".chart"))
    assert {words.partition(":")[0] for words in told} == {f"trial {number}" for number in range(8)}
    assert "trial 7: model.width 1, stopped 0.7" in told


def test_counts_are_told_to_the_last_digit(opened, make_sweep, tmp_path):
    browser = opened(make_sweep(tmp_path / "sweep.h5", [({"model.width": 1.0}, 0.1 * n) for n in range(3)]))
    (figure,) = browser.find_elements("xpath", "//figure[figcaption[contains(., 'against parameters')]]")
    assert any("parameters 958,419," in words for words in every_word_of(browser, figure))


def test_values_that_differ_by_rounding_alone_do_not_stop_the_page(opened, make_sweep, tmp_path):
    pairs = [({"ema.beta": 0.1 * 3}, 0.1), ({"ema.beta": 0.3}, 0.2), ({"ema.beta": 0.3}, 0.2)]
    browser = opened(make_sweep(tmp_path / "sweep.h5", pairs))
    assert len(browser.find_elements("css selector", ".chart circle")) >= 6


def test_a_single_evaluation_is_a_visible_point(opened, make_record, tmp_path):
    point = {"step": 40, "split": "validation", "weights": "raw", "loss": 0.5, "accuracy": 0.5}
    write_results(tmp_path / "a.h5", make_record(evaluate=[point]))
    figure = opened(tmp_path / "a.h5").find_element("css selector", ".chart")
    assert len(figure.find_elements("css selector", "circle.c1")) >= 1


def test_the_filter_does_not_join_the_words_of_two_cells(opened, make_sweep, tmp_path):
    browser = opened(make_sweep(tmp_path / "sweep.h5", [({"model.width": 1.0}, 0.1 * n) for n in range(3)]))
    browser.find_element("css selector", "input[type=search]").send_keys("stopped958")
    assert column(browser, "label") == []


def test_names_of_settings_below_a_chart_do_not_run_into_each_other(opened, make_sweep, tmp_path):
    pairs = [({"optim.schedule": f"a rather long name number {number}"}, 0.1) for number in range(12)]
    browser = opened(make_sweep(tmp_path / "sweep.h5", pairs))
    code = """
        const ticks = [...arguments[0].querySelectorAll(".tick")].map((text) => text.getBoundingClientRect());
        return ticks.map((box) => [box.left, box.right]);
    """
    figure = browser.find_element("css selector", ".chart")
    places = browser.execute_script(code, figure)
    assert len(places) >= 3
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(places))
    svg = figure.find_element("tag name", "svg").rect
    assert places[-1][1] <= svg["x"] + svg["width"] + 1


def test_the_page_is_as_narrow_as_a_telephone(opened, make_record, tmp_path):
    write_results(tmp_path / "a.h5", make_record(name="a_name_that_is_" + "very_" * 20 + "long"))
    browser = opened(tmp_path / "a.h5")
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 400
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_arrow_keys_take_the_view_with_them(opened):
    from selenium.webdriver.common.keys import Keys

    figure = opened(STORED / "format1_run.h5").find_element("css selector", ".chart")
    svg = figure.find_element("tag name", "svg")
    svg.send_keys(Keys.END, "+", "+", "+")
    for _ in range(60):
        svg.send_keys(Keys.ARROW_LEFT)
    assert len(svg.find_elements("css selector", ".cursor")) == 1
    svg.send_keys(Keys.HOME)
    assert figure.find_element("tag name", "output").text.startswith("step 1, training loss 3")
    assert len(svg.find_elements("css selector", ".cursor")) == 1
