"""The page in a browser: a phrase, a file, a recording, more like this, an error; no log."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeAlias

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect, sync_playwright
from served import PICTURES, SOUNDS

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt install chromium")
Colours: TypeAlias = Literal["light", "dark"]
FAKE_SOUND = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


@pytest.fixture(scope="module")
def page(url: str) -> Iterator[Page]:
    """At phone width; what the browser logs is an error."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", *FAKE_SOUND]
        )
        page = browser.new_page(viewport={"width": 390, "height": 800})
        told: list[str] = []
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.goto(url)
        page.set_default_timeout(30_000)
        expect.set_options(timeout=30_000)
        yield page
        browser.close()
    assert [line for line in told if "400 (Bad Request)" not in line] == []


def chosen(page: Page, *datasets: str) -> None:
    expect(page.locator("[name=dataset]").first).to_be_visible()
    for box in page.locator("[name=dataset]").all():
        box.set_checked(box.get_attribute("value") in datasets)


def test_a_phrase_finds_pictures_and_a_closed_form_stands_beside(page: Page) -> None:
    chosen(page, PICTURES)
    page.fill("#phrase", "a seven")
    page.press("#phrase", "Enter")
    expect(page.locator("#state")).to_have_text("12 found for “a seven”")
    first = page.locator("li").first
    expect(first.locator(".name")).to_have_text("1. 7")
    expect(first.locator("img")).to_have_js_property("complete", True)
    page.locator("#beside").check()
    page.select_option("#connection", "digits")
    page.click("#search")
    expect(page.locator("h2")).to_have_text(["by digits", "by cca, the closed form"])
    page.locator("#beside").uncheck()
    width = page.locator("html").bounding_box()
    assert width is not None
    assert width["width"] <= 390  # nothing scrolls sideways


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_everybody_can_read_and_use_it(page: Page, width: int, colours: Colours) -> None:
    """With results on it; nothing that axe-core calls serious or critical."""
    page.emulate_media(color_scheme=colours)
    page.set_viewport_size({"width": width, "height": 800})
    refuse_serious(page)
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 390, "height": 800})


def refuse_serious(page: Page) -> None:
    """Fail for what axe-core calls serious or critical."""
    told = page.evaluate(f"() => {{ {Axe().axe_script}; return axe.run() }}")
    assert "color-contrast" in [one["id"] for one in told["passes"]]
    serious = [one for one in told["violations"] if one["impact"] in ("serious", "critical")]
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in serious] == []


def test_more_like_this_and_a_recording(page: Page) -> None:
    chosen(page, SOUNDS)
    page.locator(".more").first.click()
    expect(page.locator("#state")).to_contain_text("more like")
    expect(page.locator("#state")).to_contain_text("12 found")
    expect(page.locator("li audio").first).to_be_visible()
    page.click("#record")
    expect(page.locator("#record")).to_have_attribute("aria-pressed", "true")
    page.wait_for_timeout(800)
    page.click("#record")
    expect(page.locator("#state")).to_have_text("12 found for recording.webm")


def test_the_interface_is_described_without_the_net(page: Page, url: str) -> None:
    page.goto(f"{url}/docs")
    expect(page.locator("h2").first).to_have_text("POST /v1/embeddings")
    page.locator("summary").first.click()
    expect(page.locator("pre").first).to_contain_text("encoding_format")
    refuse_serious(page)
    page.goto(url)


def test_a_file_and_what_is_none(page: Page, tmp_path: Path) -> None:
    from PIL import Image

    picture = tmp_path / "eight.png"
    Image.new("L", (8, 8), 200).save(picture)
    chosen(page, PICTURES)
    page.set_input_files("#file", picture)
    expect(page.locator("#state")).to_have_text("12 found for eight.png")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    page.set_input_files("#file", broken)
    expect(page.locator("#error")).to_contain_text("cannot be read as a picture")
    other = tmp_path / "notes.doc"
    other.write_bytes(b"x")
    page.set_input_files("#file", other)
    expect(page.locator("#error")).to_contain_text("no picture, sound or point cloud")
    chosen(page)
    page.fill("#phrase", "a seven")
    page.click("#search")
    expect(page.locator("#error")).to_have_text("choose what to search in")
