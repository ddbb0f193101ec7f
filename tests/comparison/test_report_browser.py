"""The page in a real browser, headless: nothing fetched, nothing harmed, everything works."""

from __future__ import annotations

import json
import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic", "--disable-dev-shm-usage",
    "--window-size=1400,1000",
)  # fmt: skip

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="needs Chromium and its driver (Debian's chromium and chromium-driver)"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # The driver's own path, so that selenium never looks for one on the network.
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    yield driver
    driver.quit()


@pytest.fixture(params=["plain", "hostile"])
def opened(request, browser):
    """A freshly opened page."""
    browser.get("about:blank")
    browser.get_log("performance"), browser.get_log("browser")
    browser.get(request.getfixturevalue(request.param).page.as_uri())
    return browser


@pytest.fixture
def page(browser, plain):
    browser.get(plain.page.as_uri())
    return browser


def rows(browser, key):
    """Return one column of the rows that are shown, in the order shown."""
    return browser.execute_script(
        "return Array.from(document.querySelectorAll('#variants > tbody')).filter(b => !b.hidden)"
        f".map(b => b.querySelector('td[data-key={key}]').dataset.sort)"
    )


def head(browser, key):
    return browser.find_element("css selector", f"#variants th[data-key={key}] button")


def test_a_page_opens_without_errors_and_asks_the_network_for_nothing(opened):
    assert opened.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [opened.current_url]


def test_a_hostile_name_does_nothing(browser, hostile):
    from selenium.common.exceptions import NoAlertPresentException

    browser.get(hostile.page.as_uri())
    with pytest.raises(NoAlertPresentException):
        _ = browser.switch_to.alert
    assert browser.execute_script("return window.harmed") is None
    assert browser.execute_script("return document.scripts.length + document.images.length") == 1
    assert "<script>window.harmed=1;alert(1)</script>" in browser.find_element("tag name", "h1").text


def test_a_click_on_a_head_sorts_and_another_turns_the_order(page):
    numbers = [float(value) for value in rows(page, "trainable")]
    assert numbers != sorted(numbers)
    head(page, "trainable").click()
    assert [float(value) for value in rows(page, "trainable")] == sorted(numbers)
    head(page, "trainable").click()
    assert [float(value) for value in rows(page, "trainable")] == sorted(numbers, reverse=True)
    column = page.find_element("css selector", "th[data-key=trainable]")
    assert column.get_attribute("aria-sort") == "descending"
    head(page, "variant").click()
    assert rows(page, "variant") == sorted(rows(page, "variant"))


def test_a_row_without_a_value_sorts_last_either_way(browser, hostile):
    browser.get(hostile.page.as_uri())
    for _ in range(2):
        head(browser, "quality").click()
        assert rows(browser, "quality")[-1] == "" and rows(browser, "variant")[-1] == "qlora"


def test_words_and_a_budget_filter_the_rows(page):
    field = page.find_element("id", "words")
    field.send_keys("bitfit")
    assert rows(page, "variant") == ["bitfit", "bitfit"]
    assert page.find_element("id", "count").text == "2 of 12"
    field.send_keys(" memory")
    assert rows(page, "budget") == ["memory=64MiB"]
    field.clear()
    page.execute_script(
        "const b = document.getElementById('budget'); b.value = 'trainable=200k'; b.dispatchEvent(new Event('change'))"
    )
    assert set(rows(page, "budget")) == {"trainable=200k"} and len(rows(page, "budget")) == 6


def test_a_row_opens_its_recipe_and_environment(page):
    details = page.find_element("css selector", "#variants details")
    recipe = details.find_element("css selector", "pre.recipe")
    assert not recipe.is_displayed()
    details.find_element("tag name", "summary").click()
    assert recipe.is_displayed() and "learning_rate: 0.001" in recipe.text
    assert "versions.torch" in details.text


@pytest.mark.parametrize("width", [360, 800, 1400])
def test_no_width_scrolls_sideways_and_no_picture_is_clipped(opened, width):
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    clipped = opened.execute_script(
        "return Array.from(document.querySelectorAll('svg')).flatMap(svg => {"
        "const outer = svg.getBoundingClientRect();"
        "return Array.from(svg.querySelectorAll('text')).filter(text => { const box = text.getBoundingClientRect();"
        "return box.left < outer.left - 2 || box.right > outer.right + 2 || box.bottom > outer.bottom + 2; })"
        ".map(text => svg.getAttribute('aria-label') + ': ' + text.textContent); })"
    )
    assert clipped == []


@pytest.mark.parametrize("width", [360, 800, 1400])
def test_the_answers_of_several_budgets_have_room_for_their_words(page, width):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    widths = page.execute_script("return Array.from(document.querySelectorAll('.answer dd')).map(d => d.offsetWidth)")
    assert len(widths) > 2 and min(widths) >= 200


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_pictures_stand_out_from_the_page_in_light_and_in_dark(page, scheme):
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    paper, *inks = page.execute_script(
        "const colour = (e, p) => getComputedStyle(e)[p].match(/\\d+/g).slice(0, 3).map(Number);"
        "return [colour(document.body, 'backgroundColor'), colour(document.body, 'color'),"
        "...Array.from(document.querySelectorAll('svg text')).slice(0, 40).map(t => colour(t, 'fill'))]"
    )
    assert (sum(paper) < 150) == (scheme == "dark")
    assert all(contrast(ink, paper) >= 7 for ink in inks)


def contrast(first, second):
    """Return the contrast of two colours as WCAG 2 defines it."""
    lights = sorted(sum(w * (c / 255) ** 2.2 for w, c in zip((0.2126, 0.7152, 0.0722), colour, strict=True))
                    for colour in (first, second))  # fmt: skip
    return (lights[1] + 0.05) / (lights[0] + 0.05)
