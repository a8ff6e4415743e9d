"""A density file dropped on the page, in a real browser: read, shown, added, or refused."""

from __future__ import annotations

import base64
import gzip
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import ROOT

import chgdb
from chgdb.formats import write_density

if TYPE_CHECKING:
    from conftest import Served
    from playwright.sync_api import Page, Route

EXAMPLE = ROOT / "examples" / "mp-149.CHGCAR.gz"


def drop(page: Page, name: str, content: bytes) -> None:
    """Drops a file on the page, as the desktop does."""
    page.evaluate(
        """([name, text]) => {
          const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([bytes], name));
          for (const type of ["dragenter", "dragover", "drop"]) {
            const options = { dataTransfer, bubbles: true, cancelable: true };
            document.body.dispatchEvent(new DragEvent(type, options));
          }
        }""",
        [name, base64.b64encode(content).decode()],
    )


def listed(page: Page, address: str) -> None:
    page.goto(address)
    page.wait_for_selector("main .view")


def test_a_dropped_file_is_shown_and_added(
    browser_page: Page, served_apart: Served, tmp_path: Path
) -> None:
    database = chgdb.open(served_apart.store)
    density = database["mp-1550"].density()
    path = tmp_path / "CHGCAR"
    write_density(path, density, "chgcar")
    listed(browser_page, served_apart.page)
    drop(browser_page, "CHGCAR_AlP", path.read_bytes())
    browser_page.wait_for_selector(".material[data-complete=true]")
    assert browser_page.locator("h1").inner_text() == "AlP"
    text = browser_page.locator(".tiles").inner_text()
    assert f"{density.n_electrons:.4f}" in text
    assert "times smaller" in text
    assert browser_page.locator(".neighbours a").first.inner_text() == "mp-1550"
    assert browser_page.locator("tr[data-property=bulk_modulus] .interval-bar").count() == 1
    assert [
        figure.get_attribute("data-source") for figure in browser_page.locator(".slice").all()
    ] == ["original", "payload", "latent", "latent-payload", "payload-original", "latent-original"]

    form = browser_page.locator(".add form")
    form.get_by_label("Id", exact=True).fill("mp-149")
    form.get_by_role("button").click()
    refusal = browser_page.locator(".add [role=alert]")
    assert "id mp-149 is taken by a record of Si" in refusal.inner_text()
    form.get_by_label("Id", exact=True).fill("my-alp")
    form.get_by_role("button").click()
    browser_page.locator(".add").get_by_role("link", name="my-alp").click()
    browser_page.wait_for_function("() => document.title.startsWith('AlP (my-alp)')")
    stored = chgdb.open(served_apart.store)["my-alp"]
    assert stored.row["n_electrons"] == pytest.approx(density.n_electrons, abs=1e-6)
    error = np.abs(stored.density().values - density.values).mean() / density.values.mean()
    assert error < 1e-3


def test_a_file_of_the_store_is_known(browser_page: Page, served_apart: Served) -> None:
    assert chgdb.open(served_apart.store).add([EXAMPLE], ids=["si-1"]).added
    listed(browser_page, served_apart.url)
    browser_page.set_input_files("#file", EXAMPLE)
    browser_page.wait_for_selector("[data-state=done]")
    assert browser_page.locator("h1").inner_text() == "Si"
    assert "in the store as si-1" in browser_page.locator(".material-line").inner_text()
    # no token in this address, so the page only reads, and says how to add
    text = browser_page.locator(".add").inner_text()
    assert "The store holds this very file already, as si-1." in text
    assert "without the token" in text
    assert "chgdb add mp-149.CHGCAR.gz --id" in text
    assert browser_page.locator(".add form").count() == 0


def test_broken_files_are_refused_in_the_words_of_the_cli(
    browser_page: Page, served_apart: Served, tmp_path: Path
) -> None:
    compressed = EXAMPLE.read_bytes()
    whole = gzip.decompress(compressed)
    broken = {"CHGCAR": whole[: len(whole) // 2], "CHGCAR.gz": compressed[:5000]}
    paths = [tmp_path / name for name in broken]
    for path in paths:
        path.write_bytes(broken[path.name])
    report = chgdb.open(served_apart.store).add(paths, ids=["cut-1", "cut-2"])
    assert len(report.failed) == len(paths)
    listed(browser_page, served_apart.page)
    for path, why in report.failed:
        name = Path(path).name
        drop(browser_page, name, broken[name])
        failed = browser_page.locator(
            "[data-state=failed]", has=browser_page.get_by_role("heading", name=name, exact=True)
        )
        assert failed.get_by_role("alert").inner_text() == why.replace(str(path), name)
    with browser_page.expect_file_chooser():
        browser_page.get_by_role("button", name="Choose another file").click()


def test_a_file_beyond_the_limit_is_not_sent(browser_page: Page, served: Served) -> None:
    listed(browser_page, served.page)
    browser_page.evaluate(
        """() => {
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([new Uint8Array(51e6)], "huge"));
          const options = { dataTransfer, bubbles: true, cancelable: true };
          document.body.dispatchEvent(new DragEvent("drop", options));
        }"""
    )
    told = browser_page.locator("dialog [role=alert]").inner_text()
    assert told == "huge has 51 MB: this server takes 50 MB at most"
    browser_page.keyboard.press("Escape")
    browser_page.locator("dialog").wait_for(state="detached")


def test_an_upload_can_be_cancelled(browser_page: Page, served: Served) -> None:
    def keep_working(route: Route) -> None:
        if route.request.method != "GET":
            route.continue_()
            return
        told = route.fetch().json()
        route.fulfill(json={**told, "state": "working", "step": "reading", "report": None})

    browser_page.route("**/api/uploads/*", keep_working)
    listed(browser_page, f"{served.url}/#/?elements=Ti")
    browser_page.locator(".found", has_text=" of ").wait_for()
    drop(browser_page, "mp-149.CHGCAR.gz", EXAMPLE.read_bytes())
    cancel = browser_page.locator(".working").get_by_role("button", name="Cancel")
    with browser_page.expect_response(lambda answer: answer.request.method == "DELETE") as deleted:
        cancel.click()
    assert deleted.value.ok
    browser_page.wait_for_url("**#/?elements=Ti")
    assert browser_page.request.get(deleted.value.url).status == 404


def test_elements_that_a_header_does_not_name_are_asked_for(
    browser_page: Page, served: Served, tmp_path: Path
) -> None:
    path = tmp_path / "CHGCAR"
    write_density(path, chgdb.open(served.store)["mp-1550"].density(), "chgcar")
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines.pop(5).split() == ["Al", "P"]
    listed(browser_page, served.url)
    drop(browser_page, "CHGCAR", "\n".join(lines).encode())
    asked = browser_page.get_by_label("Elements, one per group of atoms")
    asked.fill("Al P")
    asked.press("Enter")
    browser_page.wait_for_selector(".material[data-complete=true]")
    assert browser_page.locator("h1").inner_text() == "AlP"
    shown = [f.get_attribute("data-source") for f in browser_page.locator(".slice").all()]
    assert shown[0] == "original"
