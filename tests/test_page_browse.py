"""The list of `chgdb ui` in a real browser: search, table, distributions, addresses, keyboard."""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from conftest import Run, Served

from chgdb.database import Database
from chgdb.errors import QueryError

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

MOST_ROWS = 60
"""Of a table that stand in the page, however many there are."""


@pytest.fixture(scope="module")
def database(served: Served) -> Database:
    return Database(served.store)


@pytest.fixture
def page(browser_page: Page, served: Served) -> Page:
    """The whole list, shown."""
    return opened(browser_page, served)


def opened(page: Page, served: Served, hash_: str = "#/") -> Page:
    page.goto(f"{served.url}/{hash_}")
    page.wait_for_selector("tbody a")
    page.wait_for_selector("figure[data-column]")
    return page


def expect_count(page: Page, count: int, total: int | None) -> None:
    """Waits until the list has found so many materials."""
    text = f"{count:,} materials" if total is None else f"{count:,} of {total:,} materials"
    page.locator(".found", has_text=re.compile(f"^{text}$")).wait_for()


def ids(page: Page) -> list[str]:
    return [row.split("\t")[0].strip() for row in page.locator("tbody tr").all_inner_texts()]


def selected_id(page: Page) -> str:
    return page.locator("tr[aria-selected=true] a").inner_text()


def command(page: Page) -> list[str]:
    return shlex.split(page.locator(".command code").first.inner_text())


def hash_query(page: Page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).fragment.partition("?")[2])


def test_list_begins_with_every_material(page: Page, database: Database) -> None:
    expect_count(page, len(database), None)
    assert ids(page)[:5] == [row["id"] for row in database.select(columns="id", limit=5)]
    assert page.title() == "Materials · chgdb"
    assert page.locator("#store-name").inner_text() == f"store {len(database):,} materials"
    assert page.locator("tbody tr").count() <= MOST_ROWS
    assert page.locator("tbody tr", has_text="P6").first.locator("sub").count() == 1


def test_token_leaves_the_address(browser_page: Page, served: Served) -> None:
    browser_page.goto(served.page)
    browser_page.wait_for_selector("tbody a")
    assert served.token not in browser_page.url
    assert browser_page.evaluate("sessionStorage.getItem('chgdb-token')") == served.token


def test_address_of_a_server_begun_again(page: Page) -> None:
    """It is pasted into the open tab, which then only hears that its hash is another."""
    page.goto(f"{page.url}?where=bulk_modulus+>+3")
    page.locator(".found", has_text=" of ").wait_for()
    listed = page.url
    page.evaluate("location.hash = '#token=another'")
    page.wait_for_url("**/#/")
    page.locator(".found", has_text=re.compile(r"\d materials$")).wait_for()
    assert page.get_by_role("alert").count() == 0
    assert page.evaluate("sessionStorage.getItem('chgdb-token')") == "another"
    page.go_back()
    page.wait_for_url(listed)


def test_search_while_typing(page: Page, database: Database) -> None:
    where = 'bulk_modulus > 300 AND elements HAS "B"'
    page.locator("#where").press_sequentially(where, delay=1)
    expect_count(page, database.count(where=where), len(database))
    assert hash_query(page) == {"where": [where]}
    found = [row["id"] for row in database.select(columns="id", where=where)]
    assert ids(page) == found[: len(ids(page))]
    page.locator("figure[data-column=bulk_modulus] .magnified:not(:empty)").wait_for()


def test_command_line_finds_the_same(page: Page, database: Database, run: Run) -> None:
    page.get_by_role("button", name="Filters").click()
    page.locator("#where").fill("""formula STARTS WITH 'Al' OR formula = "it's" """)
    page.get_by_label("none of these").fill("Pb, O")
    page.get_by_label("formation energy (eV/atom), from").fill("-2")
    page.get_by_label("formation energy (eV/atom), to").fill("-0.1")
    header = page.locator("th").get_by_role("button", name="Debye temperature")
    header.click()
    page.locator("th[aria-sort=ascending]").wait_for()
    header.click()
    page.locator("th[aria-sort=descending]").wait_for()
    program, *words = command(page)
    assert program == "chgdb"
    outcome = run(*words, "--format", "ids")
    assert outcome.code == 0, outcome.err
    found = outcome.out.split()
    assert 20 < len(found) < 1000
    expect_count(page, len(found), len(database))
    assert ids(page) == found[: len(ids(page))]


def test_wrong_search_is_told_in_the_words_of_the_command_line(
    page: Page, database: Database
) -> None:
    where = "bulk_moduls > 3"
    with pytest.raises(QueryError) as told:
        database.count(where=where)
    before = ids(page)
    page.locator("#where").fill(where)
    page.locator("#where-error", has_text=str(told.value)).wait_for()
    assert page.locator("#where").get_attribute("aria-invalid") == "true"
    assert ids(page) == before
    page.locator(".scroller").evaluate("(box) => { box.scrollTop = box.scrollHeight; }")
    last = database.select(columns="id", offset=len(database) - 1).values[0][0]
    page.get_by_role("link", name=last, exact=True).wait_for()  # the list as it was, to its end
    page.locator("#where").fill("bulk_modulus > 3")
    page.locator("#where-error:empty").wait_for(state="attached")
    expect_count(page, database.count(where="bulk_modulus > 3"), len(database))


def test_wrong_search_in_the_address(browser_page: Page, served: Served) -> None:
    page = browser_page
    page.goto(f"{served.url}/#/?where=bulk_moduls+>+3&range=bulk_modulus=soft:")
    page.locator("#where-error", has_text="soft").wait_for()
    page.get_by_role("button", name="Remove the filter bulk modulus").click()
    page.locator("#where-error", has_text="did you mean bulk_modulus").wait_for()
    page.get_by_role("button", name="clear all").click()
    page.wait_for_selector("tbody a")


def test_names_of_columns_are_offered(page: Page, database: Database) -> None:
    box = page.get_by_role("combobox", name="Search: a condition")
    box.press_sequentially("shear", delay=1)
    page.get_by_role("option", name="shear_modulus", exact=False).first.wait_for()
    assert box.get_attribute("aria-expanded") == "true"
    page.keyboard.press("Tab")
    assert box.input_value() == "shear_modulus "
    page.keyboard.type("> 200 AND poiss")
    page.get_by_role("option", name="poisson_ratio").wait_for()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.keyboard.type("< 0.2 AND NOT formula = 'elem")
    assert page.get_by_role("listbox").is_hidden()
    page.keyboard.type("ent'")
    where = "shear_modulus > 200 AND poisson_ratio < 0.2 AND NOT formula = 'element'"
    assert box.input_value() == where
    expect_count(page, database.count(where=where), len(database))


def test_bare_formula_is_offered_as_a_filter(page: Page, database: Database) -> None:
    page.locator("#where").fill("TiO2")
    page.get_by_role("button", name="use the formula TiO2").click()
    expect_count(page, database.count(formula="TiO2"), len(database))


def test_nothing_found(page: Page, database: Database) -> None:
    page.locator("#where").fill("bulk_modulus > 30000")
    expect_count(page, 0, len(database))
    assert page.get_by_text("No material fits all of this.").is_visible()
    page.get_by_role("button", name="clear all").click()
    expect_count(page, len(database), None)


def test_sort(page: Page, database: Database) -> None:
    header = page.locator("th", has_text="bulk")
    for order, descending in (("ascending", False), ("descending", True)):
        header.get_by_role("button").click()
        page.locator(f"th[aria-sort={order}]", has_text="bulk").wait_for()
        rows = database.select(columns="id", sort="bulk_modulus", descending=descending, limit=9)
        assert ids(page)[:9] == [row["id"] for row in rows]
    header.get_by_role("button").click()
    page.locator("th[aria-sort=none]", has_text="bulk").wait_for()


def test_scroll_to_the_end(page: Page, database: Database) -> None:
    last = database.select(columns="id", offset=len(database) - 1).values[0][0]
    page.locator(".scroller").evaluate("(box) => { box.scrollTop = box.scrollHeight; }")
    page.get_by_role("link", name=last, exact=True).wait_for()
    assert ids(page)[-1] == last
    assert page.locator("tbody tr").count() <= MOST_ROWS


def test_a_million_rows(browser_page: Page, served: Served) -> None:
    total = 1_000_000

    def answer(route: Route) -> None:
        query = parse_qs(urlsplit(route.request.url).query)
        columns, offset = query["columns"][0].split(","), int(query["offset"][0])
        rows: list[list[Any]] = [
            [f"n-{i}" if name == "id" else None for name in columns]
            for i in range(offset, min(total, offset + int(query["limit"][0])))
        ]
        told = {"total": total, "offset": offset, "columns": columns, "rows": rows}
        route.fulfill(body=json.dumps(told), content_type="application/json")

    browser_page.route("**/api/materials?*", answer)
    page = opened(browser_page, served)
    page.locator(".scroller").evaluate("(box) => { box.scrollTop = box.scrollHeight; }")
    page.get_by_role("link", name="n-999999").wait_for()
    page.locator("tbody tr.waiting").first.wait_for(state="detached")
    shown = [int(name.removeprefix("n-")) for name in ids(page)]
    assert shown == list(range(total - len(shown), total))
    assert len(shown) <= MOST_ROWS


def test_histogram_filters(page: Page, database: Database) -> None:
    chart = page.locator("figure[data-column=debye_temperature]")
    box = chart.locator("svg").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 20)
    assert re.search(r"^\d.* to \d.*: \d.* / \d", chart.locator(".told").inner_text())
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 20, steps=3)
    page.mouse.up()
    page.mouse.move(700, 500)
    page.locator(".found", has_text=" of ").wait_for()
    chip = chart.locator(".chip")
    column, bounds = hash_query(page)["range"][0].split("=")
    assert column == "debye_temperature"
    count = database.count(ranges={column: bounds})
    expect_count(page, count, len(database))
    low, high = (float(bound) for bound in bounds.split(":"))
    assert 100 < low < high < 800
    assert float(chart.locator(".band").get_attribute("width") or 0) > 20
    chip.click()
    expect_count(page, len(database), None)


def test_histogram_range_by_keyboard(page: Page, database: Database) -> None:
    title = page.get_by_role("button", name="Type a range of shear modulus")
    title.press("Enter")
    page.keyboard.type("40")
    page.keyboard.press("Tab")
    page.keyboard.type("60")
    expect_count(page, database.count(ranges={"shear_modulus": "40:60"}), len(database))


def test_crystal_systems_filter(page: Page, database: Database) -> None:
    page.locator("[data-system=cubic]").click()
    expect_count(page, database.count(crystal_system="cubic"), len(database))
    page.locator("[data-system=cubic][aria-pressed=true]").wait_for()
    assert command(page)[:4] == ["chgdb", "search", "--crystal-system", "cubic"]
    page.locator("[data-system=cubic]").click()
    expect_count(page, len(database), None)


def test_columns(page: Page, database: Database) -> None:
    page.get_by_role("button", name="Columns").click()
    page.get_by_role("searchbox", name="Find a column").fill("predicted_bulk")
    page.get_by_label("Show predicted_bulk_modulus", exact=True).check()
    page.locator("th", has_text="predicted bulk modulus").wait_for()
    assert hash_query(page)["columns"][0].endswith("band_gap,predicted_bulk_modulus")
    page.get_by_role("button", name="predicted_bulk_modulus_low").click()
    page.keyboard.type("> 200")
    expect_count(page, database.count(where="predicted_bulk_modulus_low > 200"), len(database))


def test_address_survives_reload_and_back(browser_page: Page, served: Served) -> None:
    page = opened(
        browser_page, served, "#/?where=band_gap+IS+KNOWN&range=bulk_modulus=50:&sort=-volume"
    )
    page.locator(".scroller").evaluate("(box) => { box.scrollTop = 20000; }")
    page.locator("#row-720 a").wait_for()
    page.locator("#row-720 td").nth(3).click()
    page.wait_for_url("**#/material/*")
    page.go_back()
    page.locator("#row-720[aria-selected=true] a").wait_for()
    before = ids(page)
    count = page.locator(".found").inner_text()
    page.reload()
    page.locator("#row-720[aria-selected=true] a").wait_for()
    assert ids(page) == before
    assert page.locator(".found").inner_text() == count
    assert page.locator("#where").input_value() == "band_gap IS KNOWN"
    assert hash_query(page)["sort"] == ["-volume"]
    page.goto(f"{served.url}/#/?crystal_system=cubic")
    page.locator("[data-system=cubic][aria-pressed=true]").wait_for()
    assert page.locator("#where").input_value() == ""


def test_keyboard(page: Page, database: Database) -> None:
    names = [row["id"] for row in database.select(columns="id")]
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    assert page.url.endswith("#/")
    page.get_by_role("grid", name="Materials").focus()
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    assert selected_id(page) == names[2]
    page.keyboard.press("End")
    page.get_by_role("link", name=names[-1], exact=True).wait_for()
    assert selected_id(page) == names[-1]
    page.keyboard.press("PageUp")
    page.keyboard.press("Home")
    page.get_by_role("link", name=names[0], exact=True).wait_for()
    page.keyboard.press("PageDown")
    page.keyboard.press("ArrowUp")
    chosen = selected_id(page)
    assert names.index(chosen) > 5
    page.keyboard.press("Enter")
    page.wait_for_url(f"**#/material/{chosen}")


def test_values_are_never_markup(browser_page: Page, served: Served) -> None:
    bad = "<img src=x onerror=alert(1)>"

    def answer(route: Route) -> None:
        columns = parse_qs(urlsplit(route.request.url).query)["columns"][0].split(",")
        told = {"total": 1, "offset": 0, "columns": columns, "rows": [[bad] * len(columns)]}
        route.fulfill(body=json.dumps(told), content_type="application/json")

    browser_page.route("**/api/materials?*", answer)
    page = opened(browser_page, served, "#/?columns=id,formula,spacegroup_symbol,crystal_system")
    assert page.locator("tbody img").count() == 0
    assert page.locator("tbody a").inner_text() == bad


def test_server_that_is_gone(page: Page) -> None:
    page.route("**/api/**", lambda route: route.abort())
    page.locator("#where").fill("bulk_modulus > 3")
    page.locator("#where-error", has_text="the server does not answer").wait_for()


def test_address_of_nothing(browser_page: Page, served: Served) -> None:
    browser_page.goto(f"{served.url}/#/nowhere")
    browser_page.get_by_role("alert").filter(has_text="there is nothing at this address").wait_for()
    browser_page.get_by_role("link", name="To the list of materials").click()
    browser_page.wait_for_selector("tbody a")


def test_file_over_the_page(page: Page) -> None:
    tell = """(kind) => {
        const data = new DataTransfer();
        data.items.add(new File(["x"], "CHGCAR"));
        window.dispatchEvent(new DragEvent(kind, {dataTransfer: data, bubbles: true}));
    }"""
    page.evaluate(tell, "dragenter")
    assert page.locator("#drop").is_visible()
    page.evaluate(tell, "dragleave")
    assert page.locator("#drop").is_hidden()


def test_fits_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    for name in ("Filters", "Columns"):
        page.get_by_role("button", name=name).click()
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_numbers_and_bins(page: Page) -> None:
    told = page.evaluate("""async () => {
        const { formula, number, spacegroup } = await import("/page/http.js");
        const { binRange, bounds, magnification } = await import("/page/histograms.js");
        const { ticks } = await import("/page/colours.js");
        const real = (value, unit) => number(value, { type: "real", unit });
        const text = (parts) => parts.map((part) => part.textContent ?? part);
        return {
            numbers: [real(123.456, "GPa"), real(-0.0421, "eV/atom"), real(2e-9, "e"),
                real(0, "eV"), real(null, "eV"), number(-7, { type: "integer", unit: "1" })],
            formula: text(formula("Al2O3")),
            symbol: text(spacegroup("P6_3/mmc")).concat(text(spacegroup("Fd-3m"))),
            ticks: ticks({ low: -4.5, high: 0.3 }),
            range: [binRange([0, 8.287, 16.574], 0, 1), binRange([-0.11, -0.05, 0.01], 0, 0)],
            bounds: [bounds("3"), bounds("1:2"), bounds("soft:2").map(String)],
            magnification: [400, 12, 1, 0].map((selected) => magnification(900, selected)),
        };
    }""")
    assert told == {
        "numbers": ["123.5", "\u22120.042", "2.0e\u22129", "0.00", "\u2013", "\u22127"],
        "formula": ["Al", "2", "O", "3"],
        "symbol": ["P6", "3", "/mmc", "Fd", "3", "m"],
        "ticks": [-4, -3, -2, -1, 0],
        "range": ["0:16.6", "-0.11:-0.05"],
        "bounds": [[3, 3], [1, 2], ["-Infinity", "2"]],
        "magnification": [1, 50, 500, 500],
    }
