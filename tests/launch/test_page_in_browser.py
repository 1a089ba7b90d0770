"""The page of results in a real browser: it opens from a file, sorts, filters, shows curves and pictures."""

import shutil

import pytest

from launch import results

from .work_directories import write_run

pytestmark = pytest.mark.browser

HOSTILE = "javascript:alert(1)<!--"
NAME = "<script>window.broken = 1</script>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
  selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install -e '.[parity]'")
  chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
  if not chromium or not driver:
    pytest.skip("no browser: apt-get install chromium chromium-driver")
  options = selenium.ChromeOptions()
  options.binary_location = chromium
  for flag in (
    "headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync", "window-size=1280,900",
    f"user-data-dir={tmp_path_factory.mktemp('profile')}",
  ):  # fmt: skip
    options.add_argument(f"--{flag}")
  options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
  session = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
  yield session
  session.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
  directory = tmp_path_factory.mktemp("page")
  for i, rate in enumerate((0.001, 0.01, 0.1, 1.0)):
    for seed in range(2):
      final = (3.0, 9.0, 7.0, 1.0)[i] + seed
      write_run(
        directory / f"lr{rate}-{seed}", config={"seed": seed, "learning_rate": rate}, picture=True,
        curve=[(step, final * step / 20) for step in range(1, 21)],
      )  # fmt: skip
  write_run(directory / HOSTILE, experiment=NAME, config={"note": NAME}, metric="loss", best=("loss", "min"))
  results.write_results([str(directory)], results.Config(out=str(directory / "out")))
  return directory / "out" / "index.html"


@pytest.fixture
def opened(browser, page):
  browser.get(page.as_uri())
  yield browser
  assert browser.get_log("browser") == []
  assert browser.execute_script("return window.broken") is None


def texts(browser, selector):
  return [element.text for element in browser.find_elements("css selector", selector)]


def rates(browser):
  """The learning rates in the order of the rows, from the column of that name."""
  index = next(i for i, head in enumerate(texts(browser, "thead th"), 1) if head.startswith("learning_rate"))
  return texts(browser, f"tbody tr td:nth-child({index})")


def click(browser, selector):
  browser.find_element("css selector", selector).click()


def choose(browser, name, value):
  browser.execute_script(
    "const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event('change'))",
    name, value,
  )  # fmt: skip


def filter_by(browser, text, rows):
  from selenium.webdriver.support.ui import WebDriverWait

  box = browser.find_element("id", "filter")
  box.clear()
  box.send_keys(text)
  WebDriverWait(browser, 5).until(lambda b: len(b.find_elements("css selector", "tbody tr")) == rows)


def test_the_best_run_stands_out_at_once(opened):
  assert "episode_return 9.5 ± 0.71" in opened.find_element("id", "best").text
  assert "learning_rate=0.01" in opened.find_element("id", "best").text
  assert "★" in opened.find_element("css selector", "tr.best").text
  assert rates(opened)[:4] == ["0.01", "0.1", "0.001", "1"]
  (thick,) = opened.find_elements("css selector", "path.line.top")
  assert thick.get_attribute("data-index") == "0"
  assert len(opened.find_elements("css selector", "path.line")) == 4
  assert "episode_return, evaluation;" in opened.find_element("id", "legend").text
  assert "9 runs in 5 rows" in opened.find_element("id", "count").text


def test_headings_sort_both_ways(opened):
  heads = opened.find_elements("css selector", "thead button")
  next(head for head in heads if head.text.startswith("learning_rate")).click()
  assert rates(opened) == ["0.001", "0.01", "0.1", "0.1", "1"]  # one of them all runs of an experiment share
  assert opened.find_element("css selector", "th[aria-sort=ascending]").text.startswith("learning_rate")
  click(opened, "th[aria-sort=ascending] button")
  assert rates(opened) == ["1", "0.1", "0.1", "0.01", "0.001"]
  for _ in range(2):  # what has none stays last
    next(h for h in opened.find_elements("css selector", "thead button") if h.text.startswith("loss")).click()
    assert opened.find_element("css selector", "tbody tr").get_attribute("data-index") == "4"


def test_the_filter_narrows_table_chart_and_best(opened):
  filter_by(opened, "ppo learning_rate=0.1", 1)
  assert rates(opened) == ["0.1"]
  assert "7.5" in opened.find_element("id", "best").text
  assert len(opened.find_elements("css selector", "path.line")) == 1
  filter_by(opened, "no such run", 0)
  assert not opened.find_element("id", "best").is_displayed()


def test_a_click_shows_curve_and_picture(opened):
  click(opened, "tbody tr:nth-child(2) td:nth-child(3)")
  (thick,) = opened.find_elements("css selector", "path.line.top")
  row = opened.find_element("css selector", "tr.picked")
  assert row.get_attribute("data-index") == thick.get_attribute("data-index") == "1"
  assert "learning_rate=0.1" in opened.find_element("css selector", "#details h2").text
  size = "const i = document.querySelector('#details img'); return [i.complete, i.naturalWidth, i.naturalHeight]"
  opened.execute_async_script("document.querySelector('#details img').decode().then(arguments[0])")
  assert opened.execute_script(size) == [True, 40, 30]


def test_keys_alone_suffice(opened):
  from selenium.webdriver.common.keys import Keys

  opened.execute_script("document.querySelector('tbody tr').focus()")
  opened.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
  assert opened.find_element("css selector", "tr.picked").get_attribute("data-index") == "1"
  before = len(opened.find_elements("css selector", "path.line"))
  opened.switch_to.active_element.send_keys(Keys.ARROW_DOWN, Keys.SPACE, Keys.ARROW_UP)
  assert len(opened.find_elements("css selector", "path.line")) == before - 1


def test_all_curves_or_none(opened):
  click(opened, "thead th button")
  assert len(opened.find_elements("css selector", "path.line")) == 1  # the chosen row's
  click(opened, "thead th button")
  assert len(opened.find_elements("css selector", "path.line")) == 4


def test_hovering_tells_the_value(opened):
  from selenium.webdriver.common.action_chains import ActionChains

  corner = opened.execute_script(
    "const p = document.querySelector('path.line.top'), b = p.getBoundingClientRect(), "
    "c = document.getElementById('chart').getBoundingClientRect(); "
    "return [b.right - c.left - c.width / 2, b.top - c.top - c.height / 2]"
  )
  ActionChains(opened).move_to_element_with_offset(opened.find_element("id", "chart"), *map(round, corner)).perform()
  tip = opened.find_element("id", "tip")
  assert tip.is_displayed() and "learning_rate=0.01" in tip.text and "update 20: 9.5 ± 0.71" in tip.text


def test_metric_experiment_and_logarithm(opened):
  ticks = texts(opened, "#chart text")
  click(opened, "#logy")
  assert texts(opened, "#chart text") != ticks
  choose(opened, "metric", "train/loss")
  assert "Lowest train/loss" in opened.find_element("id", "best").text
  choose(opened, "experiment", NAME)
  assert len(opened.find_elements("css selector", "tbody tr")) == 1
  assert NAME in opened.find_element("css selector", "#details h2").text


def test_a_link_leads_to_the_directory_whatever_that_is_called(opened):
  choose(opened, "experiment", NAME)
  (link,) = opened.find_elements("css selector", "#details a")
  assert link.get_property("protocol") == "file:"
  assert link.get_property("href").endswith("/javascript%3Aalert%281%29%3C%21--/")


def test_a_picture_is_enlarged(opened):
  click(opened, "#details img")
  assert opened.find_element("css selector", "#large img").is_displayed()
  click(opened, "#large img")
  assert not opened.find_element("id", "large").is_displayed()
