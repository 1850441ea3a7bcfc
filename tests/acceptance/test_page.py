"""The status page, in a browser, beside the service: what a person sees, reads and can reach with a keyboard."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import quote

import pytest
from asking import ask
from browser import Browser, new_browser
from conftest import needed
from files_table import TABLE
from private_site import PrivateSite, new_private_site
from services import PASSWORD, Service
from waiting import eventually

from cdc_archiver.model import Archived, FileRecord
from cdc_archiver.sandbox import MariaDb, SshServer, free_port

QUICK = "(() => { const real = window.setTimeout; window.setTimeout = (act, after, ...more) => real(act, after / 20, ...more); })()"
"""The page asks as if each second were a twentieth of one."""
HOSTILE = "<script>hacked=1<"
NASTY = "<img src=x onerror=hacked=1>\u202egnp.npy"

CONTRAST = """
(() => {
  const channel = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const colour = (words) => words.match(/[\\d.]+/g).map(Number);
  const ground = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const found = colour(getComputedStyle(each).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const weak = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || !element.checkVisibility() || ["SCRIPT", "NOSCRIPT"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const [one, other] = [light(colour(element instanceof SVGElement ? style.fill : style.color)), light(ground(element))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) weak.push(`${ratio.toFixed(2)} ${walk.currentNode.textContent.trim().slice(0, 40)}`);
  }
  return weak;
})()
"""
"""Texts that stand out less from what they stand on than WCAG's AA asks."""


CUT = """
[...document.querySelectorAll("#numbers *, table *, #banner *")]
  .filter((each) => getComputedStyle(each).overflowX !== "visible" && each.scrollWidth > each.clientWidth + 1 && !each.closest("thead"))
  .concat([...document.querySelectorAll("#numbers > div > *")].filter((each) => each.scrollWidth > each.clientWidth + 1))
  .map((each) => each.textContent.trim().slice(0, 60))
"""
"""Texts in tiles, tables and the banner of which a part cannot be seen."""


@pytest.fixture(scope="module")
def one_browser() -> Iterator[Browser]:
    with needed(), new_browser() as made:
        made.call("Page.addScriptToEvaluateOnNewDocument", source=QUICK)
        yield made


@pytest.fixture
def browser(one_browser: Browser) -> Iterator[Browser]:
    """It has nothing to complain of, and asks for nothing outside, whatever is on the page."""
    one_browser.look()
    one_browser.events.clear()
    yield one_browser
    assert [
        words for words in one_browser.complaints() if "net::ERR" not in words and "Failed to load" not in words
    ] == []
    outside = [url for url in one_browser.requests() if not url.startswith(("http://127.0.0.1:", "about:", "data:"))]
    one_browser.open("about:blank")
    assert outside == []


def show(browser: Browser, service: Service) -> None:
    browser.open(f"http://127.0.0.1:{service.port}/")
    browser.wait("document.querySelector('#rest')?.hidden === false", "the page shows what the service says")


def number(browser: Browser, name: str) -> str:
    found = f"[...document.querySelectorAll('#numbers dt')].find((each) => each.textContent === {name!r})"
    return str(browser.ask(f"{found}.parentElement.querySelector('.value').textContent"))


def test_it_shows_the_current_state_and_new_files_and_no_name_is_markup(stage: PrivateSite, browser: Browser) -> None:
    stage.sql(f"ALTER TABLE {TABLE} MODIFY path VARCHAR(260) CHARACTER SET utf8mb4 NOT NULL")
    with stage.service() as service:
        service.wait_settled()
        # Given a page that somebody looks at,
        show(browser, service)
        browser.wait_text("Streaming, 0 s behind", "#headline")
        assert browser.ask("document.querySelector('#banner').dataset.tone") == "good"
        browser.wait_text("up", "#sources .state-text")
        browser.wait_text("None since this service's start", "#newest")
        # when files are archived that are called as no file should be,
        (id_,) = stage.register(stage.file(f"{HOSTILE}/script>{NASTY}", size=4321))
        stage.wait_archived(id_)
        # then the page shows them by itself: as text, and nothing in it hidden.
        said = browser.wait_text(str(id_), "#newest")
        assert "script><img src=x onerror=hacked=1>\\u{202e}gnp.npy" in said
        assert "4.3 kB" in said
        eventually(lambda: number(browser, "Archived") == "1", "it is counted")
        browser.wait_text("1 file", "#plots figure .readout")
        browser.wait_text("4.3 kB", "#plots figure:nth-of-type(2) .readout")
        browser.wait_text("(50 %)", "#plots figure:nth-of-type(3) .readout")
        # The same where it fails, and where it is asked for.
        bad = stage.file(f"{HOSTILE}/{NASTY}")
        bad.path.unlink()
        (failing,) = stage.register(bad)
        said = browser.wait_text("1 file: missing", "#failing")
        # Nothing is green while a file fails.
        browser.wait_text("1 file tried again after a failure", "#headline")
        assert browser.ask("document.querySelector('#banner').dataset.tone") == "warning"
        browser.wait_text("Tried again, the next in ", "#failing")
        assert HOSTILE in said
        browser.ask(f"location.hash = {'#why=' + quote(NASTY)!r}")
        browser.wait_text(str(failing), "#answer")
        assert HOSTILE in browser.text("#answer")
        assert browser.ask("typeof hacked") == "undefined"
        assert browser.ask("document.querySelectorAll('main img, main script').length") == 0
        assert PASSWORD not in browser.ask("document.documentElement.outerHTML")


def test_the_api_gives_programs_the_same(stage: PrivateSite) -> None:
    missing = stage.file("missing.npy")
    missing.path.unlink()
    with stage.service() as service:
        service.wait_settled()
        (id_,) = stage.register(stage.file("file.npy", size=1234))
        stage.wait_archived(id_)
        (late,) = stage.register(missing)
        stage.wait_attempts(late, 1)
        changed = stage.file("changed.npy")
        (other,) = stage.register(changed, md5sum=b"another sum, yes")
        stage.wait_attempts(other, 1)
        eventually(lambda: len(activity(service)["failing"]) == 2, "the failures are known")
        seen = activity(service)
        (newest,) = seen["newest"]
        assert (newest["id"], newest["size"], newest["adopted"]) == (id_, 1234, False)
        assert newest["path"] == stage.row(id_).path
        assert 0 < newest["latency"] < 60
        assert sum(minute["files"] for minute in seen["minutes"]) == 1
        assert sum(minute["size"] for minute in seen["minutes"]) == 1234
        groups = {group["reason"]: group for group in seen["failing"]}
        assert (groups["missing"]["files"], groups["missing"]["newest"]["id"]) == (1, late)
        assert groups["missing"]["words"] == "it was not on its source"
        # A sum is shortened: with it, who may write rows could have that file archived, whatever it is.
        assert f"{changed.md5.hex()[:8]}…" in groups["changed"]["newest"]["detail"]
        for path in ("/api/activity", f"/api/why?q={other}", "/api/status"):
            body = service.get(path)[1]
            at = body.find(changed.md5.hex())
            assert at < 0, body[max(0, at - 200) : at + 60]
        # What a person has given up is no failure any more: the stream tells of it.
        ignored = ask(stage, "ignore", str(late), str(other), "--reason", "lost", "--yes", *stage.flags())
        assert ignored.returncode == 0, ignored.stderr
        eventually(lambda: activity(service)["failing"] == [], "it is forgotten")


def test_the_search_gives_the_answer_of_why(stage: PrivateSite, browser: Browser) -> None:
    lost = stage.file("lost.npy")
    lost.path.unlink()
    with stage.service() as service:
        service.wait_settled()
        (id_,) = stage.register(lost)
        stage.wait_attempts(id_, 1)
        show(browser, service)
        # When somebody types a part of its name, without a mouse,
        browser.wait_text("Search", "#search form")
        browser.ask("document.querySelector('#question').focus()")
        browser.call("Input.insertText", text="lost.npy")
        browser.press("Enter", 13)
        # then they read what `why` says,
        said = json.loads(ask(stage, "why", "lost.npy", "--json", *stage.flags(http_port=service.port)).stdout)
        shown = browser.wait_text(said["answer"].split(",")[0], "#answer")
        assert f"{id_} of {TABLE}" in shown
        assert "missing" in shown
        assert "this file is in flight" in shown
        answer = get(service, "/api/why?q=lost.npy")
        assert answer.keys() == said.keys()
        assert answer["facts"].keys() == said["facts"].keys()
        assert {**answer["facts"]["record"], "md5sum": lost.md5.hex()} == said["facts"]["record"]
        # but for whole md5 sums: who may write rows can have any file archived whose sum he knows.
        assert answer["facts"]["record"]["md5sum"] == f"{lost.md5.hex()[:8]}…"
        by_id = json.dumps(get(service, f"/api/why?q={id_}"))
        assert lost.md5.hex() not in by_id.lower()
        # and of several that it may be, they choose.
        others = stage.register(*stage.files(2, prefix="many"))
        stage.wait_archived(*others)
        browser.ask("document.querySelector('#question').value = 'many'")
        browser.ask("document.querySelector('#search form').requestSubmit()")
        browser.wait_text("2 files match", "#answer")
        browser.ask("document.querySelector('#answer button').click()")
        browser.wait_text("It is here: archived", "#answer")
        # A path that no row names is not looked for on the source: this page is no way to learn what is there.
        nobody = get(service, f"/api/why?q={quote(str(stage.sources / 'many0000.npy.bak'))}")
        assert nobody["at_sources"] == []
        assert "No row of" in nobody["answer"]


def test_a_source_that_is_down_is_named_with_its_reason(stage: PrivateSite, browser: Browser) -> None:
    stage.ssh.stop()
    stage.register(stage.file("file.npy"))
    with stage.service(until="no source") as service:
        show(browser, service)
        browser.wait_text("No source: ", "#headline")
        assert browser.ask("document.querySelector('#banner').dataset.tone") == "bad"
        browser.wait_text("host_unreachable: ", "#sources .state-text")
        browser.wait_text("host_unreachable", "#failing")
        assert "Tried again" in browser.text("#failing")
        assert number(browser, "Pending") == "1"


def test_a_service_on_standby_names_the_holder(stage: PrivateSite, browser: Browser) -> None:
    with stage.service(), stage.service(until="standby") as service:
        show(browser, service)
        browser.wait_text("On standby for connection ", "#headline")
        browser.wait_text("held by another archiver: connection ", "#sources")
        assert number(browser, "Pending") == "–"


def test_without_a_database_the_page_works_and_says_so(stage: PrivateSite, browser: Browser) -> None:
    with Service(stage.settings().model_copy(update={"mysql_port": free_port()}), "no database") as service:
        show(browser, service)
        browser.wait_text("No database: ", "#headline")
        # No sentence says what nobody can know.
        browser.wait_text("Not known: the database has not answered", "#sources")
        assert "Not known: the database does not answer" in browser.text("#failing")
        assert "none yet" not in browser.text("#numbers")
        browser.ask("location.hash = '#why=4711'")
        browser.wait_text("127.0.0.1", "#answer [role=alert]")


def test_a_service_that_does_not_answer_is_reported_until_it_answers_again(
    stage: PrivateSite, browser: Browser
) -> None:
    port = free_port()
    with stage.service(http_port=port) as service:
        show(browser, service)
        browser.wait_text("Streaming", "#headline")
    # The service is gone: nothing on the page is green any more.
    browser.wait_text("No answer since ", "#headline")
    assert browser.ask("document.querySelector('#banner').dataset.tone") == "unknown"
    assert browser.ask("document.title").startswith("? No answer since ")
    assert "values below are from that time" in browser.text("#subline")
    good, now = "#0b6b3a", "getComputedStyle(document.querySelector('#sources .badge')).backgroundColor"
    assert browser.ask(now) != f"rgb({', '.join(str(int(good[at : at + 2], 16)) for at in (1, 3, 5))})"
    with stage.service(http_port=port):
        browser.wait_text("Streaming", "#headline")
        assert browser.ask("document.body.className") == ""


def test_a_hidden_tab_asks_for_nothing_and_is_refreshed_when_it_is_visible(
    stage: PrivateSite, browser: Browser
) -> None:
    after = "new Promise((done) => setTimeout(() => done(performance.getEntriesByType('resource').length), {}))"
    turn = "Object.defineProperty(document, 'hidden', {{ value: {}, configurable: true }}); document.dispatchEvent(new Event('visibilitychange'))"
    with stage.service() as service:
        show(browser, service)
        before = browser.ask("performance.getEntriesByType('resource').length")
        browser.wait(f"performance.getEntriesByType('resource').length >= {before} + 4", "it asks again and again")
        # When nobody looks, and what was under way is answered,
        browser.ask(turn.format("true"))
        quiet = browser.ask(after.format(5000))
        # then it asks for nothing, for as long as it would have asked five times;
        assert browser.ask(after.format(15000)) == quiet
        # when somebody looks again, it asks.
        browser.ask(turn.format("false"))
        browser.wait(f"performance.getEntriesByType('resource').length > {quiet}", "it asks again")


@pytest.mark.parametrize(("width", "height"), [(390, 844), (768, 1024), (1200, 900), (3840, 2160)])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_can_be_read_on_every_screen(
    browsed: Service, browser: Browser, width: int, height: int, dark: bool
) -> None:
    browser.look(width=width, height=height, dark=dark, phone=width < 500)
    show(browser, browsed)
    browser.wait_text("missing", "#failing")
    browser.ask("document.querySelector('#minutes').open = true")
    browser.wait("document.querySelector('#minutes table')", "the table is there")
    browser.ask("location.hash = '#why=file'")
    browser.wait_text("files match", "#answer")
    # Nothing sticks out to the side or is cut, everything stands out from its ground, and drawings fill their places.
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask(CONTRAST) == []
    assert browser.ask(CUT) == []
    assert browser.ask("getComputedStyle(document.documentElement).colorScheme") == ("dark" if dark else "light")
    assert browser.ask(
        "[...document.querySelectorAll('figure')].every((each) => each.getBoundingClientRect().width > 200)"
    )


def test_the_button_chooses_light_or_dark_and_the_choice_is_kept(browsed: Service, browser: Browser) -> None:
    scheme = "getComputedStyle(document.documentElement).colorScheme"
    show(browser, browsed)
    try:
        for theme, seen in (("light", "light"), ("dark", "dark")):
            browser.ask("document.querySelector('#theme').click()")
            assert browser.text("#theme") == f"Theme: {theme}"
            assert browser.ask(scheme) == seen
        show(browser, browsed)
        assert browser.ask(scheme) == "dark"
    finally:
        browser.ask("localStorage.clear()")


def test_plots_show_their_values_by_pointer_and_keyboard(browsed: Service, browser: Browser) -> None:
    show(browser, browsed)
    plot = "document.querySelector('#plots svg')"
    browser.wait(f"{plot}.getAttribute('aria-valuetext')?.includes('so far: ')", "it tells of the minute that runs")
    # By keyboard: a minute back, in all three plots, and told to a screen reader.
    browser.ask(f"{plot}.focus()")
    browser.press("ArrowLeft", 37)
    assert browser.ask(f"{plot}.getAttribute('aria-valuenow')") == "58"
    assert "so far" not in browser.ask(f"{plot}.getAttribute('aria-valuetext')")
    assert browser.ask("[...document.querySelectorAll('svg')].every((each) => each.querySelector('.cross'))")
    browser.press("Escape", 27)
    assert browser.ask("document.querySelectorAll('svg .cross').length") == 0
    # By pointer: what is under it; the leftmost minute is before the service's start.
    box = browser.ask(f"{plot}.scrollIntoView(), {plot}.getBoundingClientRect().toJSON()")
    browser.point(box["left"] + 62, box["top"] + 40)
    browser.wait_text("before the service's start", "#plots .readout")
    assert browser.ask(f"{plot}.getAttribute('aria-valuenow')") == "0"
    browser.point(box["right"] - 15, box["top"] + 40)
    browser.wait_text("so far", "#plots .readout")


def test_typed_text_and_focus_survive_an_update(browsed: Service, browser: Browser) -> None:
    show(browser, browsed)
    browser.ask("document.querySelector('#question').value = 'half a na'")
    key = browser.ask(
        "(() => { const found = document.querySelector('#newest button'); found.focus(); return found.dataset.key; })()"
    )
    # When the list is drawn anew around it,
    browser.ask("window.was = document.activeElement, 0")
    browsed.archiver.metrics.activity.record_outcome("elsewhere", _archived(), 0.1)
    browser.wait("!window.was.isConnected", "the list is new")
    # then the keyboard is where it was.
    assert browser.ask("document.activeElement.dataset.key") == key
    assert browser.ask("document.querySelector('#question').value") == "half a na"


def test_a_foreign_host_name_is_refused(browsed: Service) -> None:
    for name, status in (("evil.example", 421), (f"localhost:{browsed.port}", 200)):
        with closing(http.client.HTTPConnection("127.0.0.1", browsed.port, timeout=10)) as connection:
            connection.request("GET", "/api/status", headers={"Host": name})
            assert connection.getresponse().status == status


@pytest.fixture(scope="module")
def browsed(mariadb: MariaDb, ssh_server: SshServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with something to show, for tests that change nothing of it."""
    with new_private_site(mariadb, ssh_server, tmp_path_factory.mktemp("browsed")) as stage:
        missing = stage.file("a_file_that_is_missing.npy")
        missing.path.unlink()
        with stage.service() as service:
            service.wait_settled()
            stage.wait_archived(*stage.register(*stage.files(5, prefix="file")))
            stage.wait_attempts(stage.register(missing)[0], 1)
            eventually(lambda: activity(service)["failing"], "the failure is known")
            yield service


def _archived() -> Archived:
    return Archived(FileRecord(999, "/x", b"m" * 16, None, None, None, False, None, "t", 0), "/archive/x.npy", 10)


def get(service: Service, path: str) -> dict[str, Any]:
    status, body = service.get(path)
    assert status == 200, body
    found: dict[str, Any] = json.loads(body)
    return found


def activity(service: Service) -> dict[str, Any]:
    return get(service, "/api/activity")
