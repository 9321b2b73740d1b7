"""The page in Chromium, driven by Playwright."""

from __future__ import annotations

import io
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.serving import Server, serving
from tests.until import until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARTIFACTS = Path(os.environ.get("LONGTAKE_TEST_ARTIFACTS", "test-artifacts"))
KEY = "a-key-of-some-length"

CONTRAST = """
(element) => {
  const channels = (color) => color.match(/[\\d.]+/g).slice(0, 3).map((each) => {
    const part = each / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  const luminance = (color) => {
    const [red, green, blue] = channels(color);
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const style = getComputedStyle(element);
  const [one, other] = [luminance(style.color), luminance(style.backgroundColor)];
  return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
}
"""
"""Contrast ratio of an element's text and background, as WCAG 2 defines it."""

PASTE_OR_DROP = """
([kind, content]) => {
  const data = new DataTransfer();
  const bytes = Uint8Array.from(content);
  data.items.add(new File([bytes], "a.png", { type: "image/png" }));
  const options = { bubbles: true, cancelable: true };
  const event = kind === "paste"
    ? new ClipboardEvent("paste", { ...options, clipboardData: data })
    : new DragEvent("drop", { ...options, dataTransfer: data });
  document.querySelector("#prompt textarea").dispatchEvent(event);
}
"""
"""Paste or drop a picture on the prompt."""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module", autouse=True)
def timed_video(server: Server) -> None:
    """Render a video: estimates are known once one was timed."""
    server.wait(server.create(num_frames=1, num_inference_steps=2)["id"])


@pytest.fixture
def tab(browser: Any, server: Server) -> Iterator[Any]:
    """The page, ready for input."""
    with Tab(browser, server) as page:
        wait_ready(page)
        yield page


def wait_ready(page: Any) -> None:
    """Wait for the estimate: the page handles events from then on."""
    page.get_by_text(re.compile("About .* for|Time not known")).first.wait_for()


class Tab:
    """A tab that must send no request to other hosts, get no status 5xx and raise no error."""

    def __init__(self, browser: Any, server: Server, width: int = 1280, path: str = "/") -> None:
        self._url, self._server = server.url + path, server
        self._context = browser.new_context(viewport={"width": width, "height": 900})
        self.errors: list[str] = []

    def __enter__(self) -> Any:
        page = self._context.new_page()
        own = (self._server.url, "data:", "blob:")
        page.on("request", lambda r: self._note(r.url, r.url.startswith(own)))
        page.on("response", lambda r: self._note(f"{r.status} {r.url}", r.status < 500))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(self._url)
        return page

    def _note(self, event: str, ok: bool) -> None:
        if not ok:
            self.errors.append(event)

    def __exit__(self, *error: object) -> None:
        self._context.close()
        if error[0] is None:
            assert self.errors == []


def take_screenshots(page: Any, name: str) -> None:
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    for width, device in ((1280, "desktop"), (390, "phone")):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(300)
        page.screenshot(path=ARTIFACTS / f"{name}-{device}.png", full_page=True)
        content_width = page.evaluate("document.documentElement.scrollWidth")
        assert content_width <= width + 1, f"{name} is wider than a {device}"
    page.set_viewport_size({"width": 1280, "height": 900})


def current_video(page: Any) -> str:
    page.wait_for_url(re.compile(r"\?video=video_\w+$"))
    return str(page.url.rpartition("=")[2])


def generate(page: Any, prompt: str, steps: int | None = None) -> str:
    page.get_by_label("Prompt").fill(prompt)
    if steps is not None:
        page.get_by_text("More settings").click()
        page.get_by_label("Steps").fill(str(steps))
    page.get_by_role("button", name="Generate").click()
    return current_video(page)


def test_generates_a_video_from_a_prompt(tab: Any, server: Server) -> None:
    tab.get_by_text("About").wait_for()
    take_screenshots(tab, "empty")
    tab.get_by_role("button", name="Draw").click()
    until(lambda: tab.get_by_label("Seed").input_value().isdigit())
    seed = tab.get_by_label("Seed").input_value()
    name = generate(tab, "a red circle moving right on a navy background")
    tab.locator("video").wait_for(timeout=60_000)
    tab.wait_for_function("document.querySelector('video').videoWidth === 64")
    assert server.video(name)["seed"] == int(seed)
    tab.get_by_text("Settings", exact=True).click()
    assert tab.get_by_role("row", name="seed").inner_text().split() == ["seed", seed]
    tab.get_by_text("Engine", exact=True).click()
    tab.get_by_role("row", name="1 cpu running").wait_for()
    take_screenshots(tab, "done")
    with tab.expect_download() as download:
        tab.get_by_role("link", name="Download").click()
    assert download.value.path().read_bytes()[4:8] == b"ftyp"


def test_chooses_a_lora(tab: Any, server: Server) -> None:
    tab.get_by_label("Prompt").fill("a red circle moving left")
    tab.get_by_text("More settings").click()
    tab.get_by_label("LoRA", exact=True).first.click()
    tab.get_by_role("option", name="style.safetensors").click()
    tab.get_by_label("Scale of the LoRA").first.fill("0.5")
    tab.get_by_role("button", name="Generate").click()
    name = current_video(tab)
    assert server.video(name)["lora"] == ["style.safetensors:0.5"]
    assert server.wait(name)["status"] == "completed"
    assert "longtake_lora_exchange_seconds_count 1.0" in server.client.get("/metrics").text
    tab.get_by_text("Settings", exact=True).click()
    cells = tab.get_by_role("row", name="LoRA").inner_text().split()
    assert cells == ["LoRA", "style.safetensors:0.5"]
    take_screenshots(tab, "lora")
    tab.get_by_label("Scale of the LoRA").first.fill("much")
    tab.get_by_label("Scale of the LoRA").first.blur()
    tab.get_by_role("alert").get_by_text("last colon").wait_for()
    tab.get_by_label("Scale of the LoRA").first.fill("")
    tab.get_by_role("button", name="Use these settings").click()
    until(lambda: tab.get_by_label("Scale of the LoRA").first.input_value() == "0.5")
    assert tab.get_by_label("LoRA", exact=True).first.input_value() == "style.safetensors"


def test_progress_and_cancel(tab: Any, server: Server) -> None:
    name = generate(tab, "a blue square moving down", steps=2000)
    bar = tab.get_by_role("progressbar")
    bar.wait_for()
    until(lambda: int(bar.get_attribute("aria-valuenow")) > 0)
    tab.get_by_text(re.compile(r"Step \d+ of 2000")).wait_for()
    tab.get_by_text(re.compile("about .* left")).wait_for()
    take_screenshots(tab, "running")
    tab.get_by_role("button", name="Cancel").click()
    tab.get_by_text("Cancelled", exact=True).wait_for()
    assert server.video(name)["error"]["code"] == "cancelled"


def test_reload_and_second_tab_show_a_running_video(tab: Any, browser: Any, server: Server) -> None:
    """Decoded frames are shown while the others are decoded."""
    prompt = "a <b>green</b> circle"
    name = server.create(prompt=prompt, num_frames=257, num_inference_steps=2)["id"]
    tab.goto(f"{server.url}/?video={name}")
    second = tab.context.new_page()
    second.goto(f"{server.url}/?video={name}")
    tab.get_by_role("img", name="frames decoded so far").wait_for(timeout=60_000)
    assert server.video(name)["status"] == "in_progress"
    tab.reload()
    assert tab.get_by_label("Prompt").input_value() in ("", prompt)
    tab.get_by_role("img", name="frames decoded so far").wait_for()
    take_screenshots(tab, "decoding")
    for page in (tab, second):
        page.locator("video").wait_for(timeout=60_000)
    assert tab.get_by_label("Prompt").input_value() == prompt
    assert tab.locator(".gallery b, .lt p b").count() == 0  # prompts are escaped
    second.close()


def test_errors_are_shown_at_their_fields(tab: Any) -> None:
    tab.get_by_role("button", name="Generate").click()
    tab.get_by_role("alert").get_by_text("must not be blank").wait_for()
    tab.get_by_label("Prompt").fill("a")
    tab.get_by_label("Size").fill("65x64")
    tab.get_by_label("Size").press("Enter")
    tab.get_by_text(re.compile("size|width=65 must be a multiple of")).first.wait_for()
    tab.get_by_role("button", name="Generate").click()
    tab.locator("[role=alert]").get_by_text("must be a multiple of").last.wait_for()
    take_screenshots(tab, "error")
    assert "video=" not in tab.url


def test_all_controls_are_reached_by_keyboard(tab: Any) -> None:
    tab.get_by_label("Prompt").focus()
    reached = []
    for _ in range(14):
        tab.keyboard.press("Tab")
        reached.append(
            tab.evaluate("(document.activeElement.ariaLabel || document.activeElement.innerText)")
        )
    for name in ("Size", "Length", "Draw", "More settings", "Generate"):
        assert any(name in str(each) for each in reached), (name, reached)


def test_draft_survives_a_reload_and_a_lost_connection(tab: Any) -> None:
    tab.get_by_label("Prompt").fill("a prompt of many words")
    tab.reload()
    draft_is_back = "document.querySelector('#prompt textarea')?.value.startsWith('a prompt')"
    tab.wait_for_function(draft_is_back)
    tab.route("**/run/predict", lambda route: route.abort())
    tab.get_by_text("Connection to the server was lost").wait_for()
    with tab.expect_navigation():  # the page reloads itself once the server answers
        tab.unroute("**/run/predict")
    tab.wait_for_function(draft_is_back)


def test_settings_of_a_video_are_reused(tab: Any, server: Server) -> None:
    name = server.create(prompt="a red square", seed=77, num_inference_steps=3, num_frames=5)["id"]
    server.wait(name)
    tab.locator(f".gallery a[href='/?video={name}']").click()
    tab.locator("video").wait_for()
    tab.get_by_label("Prompt").fill("another")
    tab.get_by_role("button", name="Use these settings").click()
    until(lambda: tab.get_by_label("Prompt").input_value() == "a red square")
    assert tab.get_by_label("Seed").input_value() == "77"


def test_contrast_and_layout(browser: Any, server: Server) -> None:
    server.wait(server.create(num_frames=1, num_inference_steps=1, size="64x128")["id"])
    with Tab(browser, server) as page:
        page.get_by_role("note").get_by_text("draws colored shapes; start with --model").wait_for()
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.reload()
            button = page.get_by_role("button", name="Generate")
            button.wait_for()
            page.mouse.move(0, 0)
            assert button.evaluate(CONTRAST) >= 4.5
            button.hover()
            page.wait_for_timeout(300)
            assert button.evaluate(CONTRAST) >= 4.5
        shown = page.locator(".gallery img").first
        shown.wait_for()
        assert shown.evaluate("(image) => getComputedStyle(image).objectFit") == "contain"
        width = "document.querySelector('.gradio-container').getBoundingClientRect().width"
        assert page.evaluate(width) == 1180
        page.locator(".gallery a").first.click()
        page.locator("video").wait_for()
        assert page.evaluate(width) == 1180
        assert page.title() == "Done – longtake"
        page.set_viewport_size({"width": 390, "height": 900})
        columns = "getComputedStyle(document.querySelector('.gallery')).gridTemplateColumns"
        assert len(page.evaluate(columns).split()) == 2
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_more_settings(tab: Any, server: Server) -> None:
    """They stay open; errors are shown below their field; Ctrl+Enter submits."""
    tab.get_by_text("More settings").click()
    tab.get_by_label("Frame rate (fps)").fill("no")
    tab.get_by_label("Seed").focus()
    alert = tab.locator("#fps").get_by_role("alert")
    alert.get_by_text("must be a number").wait_for()
    assert "\n" not in alert.inner_text()
    tab.reload()
    wait_ready(tab)
    tab.get_by_label("Frame rate (fps)").fill("4")
    tab.get_by_label("Steps").fill("2")
    tab.get_by_label("Negative prompt").fill("a ring")
    tab.get_by_label("True CFG").fill("2")
    tab.get_by_label("Number of videos").fill("2")
    tab.get_by_role("button", name="a green triangle moving up on a navy background").click()
    tab.get_by_label("Prompt", exact=True).press("Control+Enter")
    name = current_video(tab)
    tab.get_by_text("Settings", exact=True).click()
    tab.locator("video").nth(1).wait_for(timeout=60_000)
    tab.get_by_role("row", name="id").get_by_text(name).wait_for()  # still open
    video = server.video(name)
    assert video["prompt"] == "a green triangle moving up on a navy background"
    names = ("fps", "num_inference_steps", "negative_prompt", "true_cfg_scale", "num_videos")
    assert [video[each] for each in names] == [4, 2, "a ring", 2, 2]


def test_retry_and_delete(tab: Any, server: Server) -> None:
    name = server.create(prompt="a ring", num_inference_steps=2000, seed=5)["id"]
    tab.goto(f"{server.url}/?video={name}")
    tab.get_by_role("button", name="Cancel").click()
    tab.get_by_role("button", name="Retry").click()
    tab.wait_for_url(lambda url: name not in url)
    again = current_video(tab)
    assert (server.video(again)["seed"], server.video(again)["num_inference_steps"]) == (5, 2000)
    delete = tab.get_by_role("button", name="Delete")
    delete.click()
    tab.get_by_role("button", name="Undo").click()
    tab.get_by_role("button", name="Remove: a ring").last.click()
    tab.get_by_text("The video is deleted.").wait_for()
    assert server.client.get(f"/v1/videos/{again}").status_code == 200  # undone
    delete.click()
    tab.get_by_text("2 videos are deleted.").wait_for()
    tab.get_by_text("What you generate appears here.").wait_for()
    for each in (name, again):
        assert server.client.get(f"/v1/videos/{each}").status_code == 404


@pytest.fixture(scope="module")
def image_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("image-server")
    with serving(folder, "--model", "demo-i2v", LONGTAKE_API_KEY=KEY) as running:
        yield running


def test_login_and_picture_on_a_phone(browser: Any, image_server: Server) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), (20, 20, 90)).save(picture, "PNG")
    with Tab(browser, image_server, 390) as page:
        page.wait_for_url("**/login")
        page.get_by_label("API key").fill("nonsense")
        page.get_by_role("button", name="Open").click()
        page.get_by_role("alert").wait_for()
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Open").click()
        wait_ready(page)
        page.get_by_label("Prompt").fill("a red circle moving right")
        page.get_by_role("button", name="Generate").click()
        page.get_by_text("animates a picture").wait_for()
        chooser = page.get_by_label("Picture to animate")
        chooser.set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"none"})
        page.get_by_role("button", name="Generate").click()
        page.get_by_text("is no picture in PNG, JPEG or WebP").wait_for()
        content = picture.getvalue()
        for kind in ("paste", "drop"):
            page.evaluate(PASTE_OR_DROP, [kind, list(content)])
            page.get_by_role("img", name="Chosen picture").wait_for()
            page.get_by_role("button", name="Remove the picture").click()
            assert chooser.input_value() == ""
        page.evaluate(PASTE_OR_DROP, ["paste", list(content)])
        page.get_by_role("button", name="Generate").click()
        name = current_video(page)
        page.locator("video").wait_for(timeout=60_000)
        take_screenshots(page, "picture")
        pictures = list((image_server.folder / "pictures").glob(f"{name}-*"))
        assert [each.read_bytes() for each in pictures] == [content]
        page.reload()  # render again with the picture that the server has
        page.locator("video").wait_for()
        until(lambda: page.get_by_label("Prompt").input_value() != "")
        start = time.monotonic()
        page.get_by_role("button", name="Generate").click()
        page.wait_for_url(lambda url: name not in url)
        again = current_video(page)
        page.locator("video").wait_for(timeout=60_000)
        assert again != name
        assert time.monotonic() - start < 60
