"""The page in a real browser, on a tiny model: the whole walk, by mouse and by keyboard."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raggd.backbone.load import Backbone
from raggd.serving.app import PAGE, PAGE_FILES
from serving_fixtures import Running, demonstrations, questions, running, tiny_parts

CHROMIUM = Path(os.environ.get("RAGGD_CHROMIUM", "/usr/bin/chromium"))
SIZES = {"desktop": (1360, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.is_file():
        pytest.skip(f"no browser at {CHROMIUM}: install chromium or set RAGGD_CHROMIUM")
    with sync_api.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    yield from opened(browser, server, "desktop")


@pytest.fixture
def phone(browser: Any, server: Running) -> Iterator[Any]:
    yield from opened(browser, server, "phone")


def opened(browser: Any, server: Running, size: str) -> Iterator[Any]:
    """A page of one size; it may reach nothing but the server, and must not fail."""
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height})
    made = context.new_page()
    problems: list[str] = []
    made.on("pageerror", lambda error: problems.append(str(error)))
    made.on("request", lambda asked: _check_address(asked.url, server.url, problems))
    made.goto(server.url)
    made.locator("#about", has_text="raggd").wait_for()
    yield made
    context.close()
    server.wait_idle()
    with server.client() as client:
        for stored in client.get("/v1/supports").json()["data"]:
            client.delete(f"/v1/supports/{stored['id']}")
    assert problems == []


def _check_address(url: str, own: str, problems: list[str]) -> None:
    if not url.startswith((own, "data:")):
        problems.append(f"asked for {url}")


def card(page: Any, method: str) -> Any:
    return page.locator(f'.answer[data-method="{method}"]')


def wait_for_answer(page: Any, method: str) -> str:
    card(page, method).locator(".cost:not([hidden])").wait_for()
    return str(card(page, method).locator(".said").inner_text())


def fill_examples(page: Any, number: int = 0) -> None:
    shown = demonstrations(number)
    for at, example in enumerate(shown):
        page.locator("#rows .q").nth(at).fill(example["question"])
        page.locator("#rows .a").nth(at).fill(example["answer"])


def test_the_whole_walk(page: Any, server: Running) -> None:
    question = questions(1)[0]
    page.fill("#question", question)
    page.click("#ask button")
    base = wait_for_answer(page, "base")
    wait_for_answer(page, "vanilla-rag")
    with server.client() as client:
        said = client.post("/v1/completions", json={"model": "base", "prompt": question}).json()
    assert base == (said["choices"][0]["text"] or "(no answer)")
    assert card(page, "adapted").locator(".said").inner_text() == "Show it some examples first."
    assert page.locator("#evidence li").count() == 2

    fill_examples(page)
    page.click("#adapt [type=submit]")
    wait_for_answer(page, "adapted")  # the question on the page is asked again
    with server.client() as client:
        (stored,) = client.get("/v1/supports").json()["data"]
    assert stored["model"] in page.locator("#adapted").inner_text()
    assert card(page, "adapted").locator("dd").first.inner_text().endswith(("ms", "s"))
    assert card(page, "base").locator("dd").first.inner_text() == "none"
    cells = page.locator("#map td")
    assert cells.count() == 9  # q, k, v in three layers
    values = [float(text) for text in cells.all_text_contents()]
    expected = [v for norms in stored["norms"].values() for v in norms]
    assert values == pytest.approx(expected, rel=0.06)
    colours = {cell.evaluate("c => getComputedStyle(c).backgroundColor") for cell in cells.all()}
    assert len(colours) > 3


def test_a_ready_set_brings_its_passages(page: Any, server: Running) -> None:
    names = page.locator("#ready option").all_text_contents()[1:]
    assert names == ["cite the passage", "refuse what is not there", "JSON", "German", "yes or no"]
    for name in names:
        page.select_option("#ready", name)
        assert page.locator("#rows .q").count() == 3
    page.select_option("#ready", "JSON")
    page.locator("#rows .q").nth(2).fill(demonstrations(0)[0]["question"])  # an own question
    page.click("#adapt [type=submit]")
    page.locator("#adapted", has_text="adapted/").wait_for()
    with server.client() as client:
        (stored,) = client.get("/v1/supports").json()["data"]
    answers = [json.loads(shown["answer"])["answer"] for shown in stored["demonstrations"]]
    assert answers == ["the workshop in Turin", "from nine to five", "type B"]
    titles = [{p["title"] for p in shown["passages"]} for shown in stored["demonstrations"]]
    assert titles[:2] == [{"Office", "Workshops"}, {"Office", "Parts"}]
    assert not titles[2] & {"Office", "Parts", "Workshops"}, "its passages are retrieved"


def test_the_words_of_an_answer_are_marked(page: Any) -> None:
    found = page.evaluate(
        """async () => {
          const { marker } = await import("/static/marks.js");
          const marks = (texts, answer) => texts.map((text) =>
            marker(texts, answer)(text).filter((p) => p.marked).map((p) => p.text));
          return [
            marks(["By Rembrandt van Rijn. The Rembrandt", "van Gogh"], "rembrandt  VAN RIJN."),
            marks(["The king of the north.", "A King of North!"], "king of north"),
            marks(["Rembrandt painted.", "van Gogh, the painter"], "Rembrandt van Rijn"),
            marks(["Zürich und Über"], "über"), marks(["a b"], ""), marks(["a b"], "the"),
          ];
        }"""
    )
    assert found == [
        [["Rembrandt van Rijn"], []],
        [["king of the north"], ["King of North"]],
        [["Rembrandt"], ["van"]],
        [["Über"]],
        [[]],
        [[]],
    ]


def test_marks_follow_the_chosen_answer(page: Any) -> None:
    page.fill("#question", questions(3)[2])
    page.keyboard.press("Enter")
    wait_for_answer(page, "base")
    for method in ("vanilla-rag", "base"):
        page.check(f'#marking input[value="{method}"]')
        answer = card(page, method).locator(".said").inner_text().lower()
        for text in page.locator("#evidence mark").all_text_contents():
            assert text.lower() in answer
    assert page.locator('#marking input[value="adapted"]').is_disabled()


def test_it_works_by_keyboard_alone(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.type(questions(1)[0])
    page.keyboard.press("Enter")
    wait_for_answer(page, "base")
    page.locator("#rows .q").first.focus()
    for example in demonstrations(1):
        page.keyboard.type(example["question"])
        page.keyboard.press("Tab")
        page.keyboard.type(example["answer"])
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")  # over the button that removes the row
    page.keyboard.press("Enter")
    wait_for_answer(page, "adapted")
    outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_stored_examples_can_be_chosen_and_deleted(page: Any, server: Running) -> None:
    with server.client() as client:
        body = {"demonstrations": demonstrations(2)}
        stored = client.post("/v1/supports", json=body).json()
    page.reload()
    page.select_option("#saved", stored["id"])
    page.locator("#map-part:not([hidden])").wait_for()
    assert page.locator("#rows .q").first.input_value() == demonstrations(2)[0]["question"]
    page.click("#forget")
    page.locator("#saved-part[hidden]").wait_for(state="attached")
    with server.client() as client:
        assert client.get("/v1/supports").json()["data"] == []


def test_a_set_is_scored_on_the_page(page: Any) -> None:
    assert page.locator("#help-part").is_hidden()
    fill_examples(page)
    page.click("#adapt [type=submit]")
    page.click("#evaluate")
    page.locator("#evaluating", has_text="too few to tell").wait_for()
    assert page.locator(".scores").first.locator("tbody tr").count() == 3
    assert "Base adapter" in page.locator(".scores").first.inner_text()
    assert page.locator("#stop").is_hidden()


def test_mistakes_are_explained_where_they_are_made(page: Any) -> None:
    page.click("#adapt [type=submit]")
    assert "at least one question" in page.locator("#adapt-problem").inner_text()
    page.locator("#rows .q").first.fill("who is the king ?")
    page.click("#adapt [type=submit]")
    page.locator("#adapt-problem", has_text="answer").wait_for()
    page.fill("#question", "red bird " * 400)
    page.click("#ask button")
    page.locator("#ask-problem", has_text="does not fit the context").wait_for()


def test_text_is_never_markup(page: Any) -> None:
    page.fill("#question", f"<img src=x onerror=alert(1)> {questions(1)[0]}")
    page.click("#ask button")
    wait_for_answer(page, "base")
    row = page.locator("#rows li").first
    row.locator(".q").fill(f"<b>bold</b> {questions(1)[0]}")
    row.locator(".a").fill("<i>Lima</i>")
    page.click("#adapt [type=submit]")
    wait_for_answer(page, "adapted")
    assert page.locator("main img, main b").count() == 0


def test_rows_are_added_and_removed(page: Any) -> None:
    page.click("#more")
    assert page.locator("#rows li").count() == 4
    assert page.evaluate("() => document.activeElement.className") == "q"
    page.locator("#rows .remove").first.click()
    assert page.locator("#rows li").count() == 3


def test_a_phone_shows_everything_without_scrolling_sideways(phone: Any) -> None:
    phone.fill("#question", questions(1)[0])
    phone.click("#ask button")
    wait_for_answer(phone, "base")
    fill_examples(phone)
    phone.click("#adapt [type=submit]")
    wait_for_answer(phone, "adapted")
    assert phone.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    tops = [card(phone, m).bounding_box()["y"] for m in ("vanilla-rag", "base", "adapted")]
    assert tops == sorted(set(tops)), "the cards stand below each other"
    for control in phone.locator("button:visible, input:visible, select:visible").all():
        if control.get_attribute("type") != "radio":
            assert control.bounding_box()["height"] >= 40, "too small for a thumb"


def test_the_page_is_useful_before_the_server_has_said_anything(
    browser: Any, server: Running
) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.route("**/v1/**", lambda route: route.abort())
    page.route("**/health", lambda route: route.abort())
    page.goto(server.url)
    assert page.locator("#question").is_enabled()
    assert page.locator("#rows .q").count() == 3
    page.locator("#ask-problem", has_text="does not answer").wait_for()
    context.close()


def test_a_server_with_a_key_asks_for_it(
    browser: Any, frozen_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    with running(tiny_parts(tmp_path, frozen_backbone), keys={"page": "right"}) as server:
        context = browser.new_context()
        page = context.new_page()
        page.goto(server.url)
        page.locator("#key-form").wait_for()
        page.fill("#key", "right")
        page.click("#key-form button")
        page.fill("#question", questions(1)[0])
        page.click("#ask button")
        wait_for_answer(page, "base")
        context.close()


def test_the_page_names_no_outside_address() -> None:
    for name in ("index.html", *PAGE_FILES):
        text = (PAGE / name).read_text(encoding="utf-8")
        assert "http:" not in text
        assert "https:" not in text
        assert "@import" not in text
