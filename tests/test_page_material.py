"""The page of a material in a real browser: crystal, isosurfaces, slices, properties, downloads."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import ROOT

import chgdb
from chgdb.formats import read_density

if TYPE_CHECKING:
    from conftest import Served
    from playwright.sync_api import Page, Route

SILICON = "mp-149"
HEXAGONAL = "mp-9023"
STRUCTURE_ONLY = "mp-1989"
PROPERTIES_ONLY = "mp-7572"


def opened(page: Page, served: Served, material_id: str) -> None:
    page.goto(f"{served.url}/#/material/{material_id}")
    page.wait_for_selector(".material[data-complete=true]")


def data(page: Page, selector: str) -> dict[str, str]:
    found: dict[str, str] = page.evaluate(
        "selector => ({...document.querySelector(selector).dataset})", selector
    )
    return found


def test_what_is_known_of_a_material(browser_page: Page, served: Served) -> None:
    opened(browser_page, served, SILICON)
    record = chgdb.open(served.store)[SILICON]
    assert browser_page.locator("h1").inner_text() == "Si"
    assert browser_page.title() == "Si (mp-149) · chgdb"
    row = browser_page.locator("tr[data-property=bulk_modulus]").inner_text()
    assert f"{record.properties['bulk_modulus']:.1f}" in row
    for name in ("bulk_modulus", "bulk_modulus_low", "bulk_modulus_high"):
        assert f"{record.predicted[name]:.1f}" in row
    assert "GPa" in row
    assert "In the training set" in browser_page.locator(".material").inner_text()
    near = browser_page.locator(".neighbours a").all_inner_texts()
    assert near == list(chgdb.open(served.store).similar(SILICON, 8)["id"])
    captions = browser_page.locator(".slice figcaption").all_inner_texts()
    assert f"NMAE {record.row['payload_nmae']:.3g} %" in captions[0]


def test_the_isosurface_follows_the_slider(browser_page: Page, served: Served) -> None:
    opened(browser_page, served, SILICON)
    crystal = browser_page.locator(".crystal")
    slider = browser_page.get_by_role("slider", name="Level 1, logarithmic")
    before, seen = data(browser_page, ".crystal-view"), crystal.screenshot()
    assert int(before["triangles"]) > 0
    slider.focus()
    for _ in range(3):
        browser_page.keyboard.press("PageDown")
    browser_page.wait_for_function(
        "level => document.querySelector('.crystal-view').dataset.level != level",
        arg=before["level"],
    )
    after = data(browser_page, ".crystal-view")
    first, second = (list(map(float, told["level"].split())) for told in (before, after))
    assert second[0] < first[0]
    assert second[1:] == first[1:]
    assert crystal.screenshot() != seen
    browser_page.get_by_label("Level 1 in e/Å³").fill("0.2")
    browser_page.wait_for_selector(".crystal-view[data-level^='0.200000']")


def test_a_grid_coarser_than_the_stored_one_is_told(browser_page: Page, served: Served) -> None:
    def refine(route: Route) -> None:
        told = route.fetch().json()
        told["record"].update(grid_a=200, grid_b=200, grid_c=200)
        route.fulfill(json=told)

    opened(browser_page, served, SILICON)
    assert "coarser" not in browser_page.locator(".crystal-controls").inner_text()
    browser_page.route(f"**/api/materials/{SILICON}", refine)
    browser_page.reload()
    browser_page.wait_for_selector(".material[data-complete=true]")
    assert (
        "coarser than the grid of the density, 200"
        in browser_page.locator(".crystal-controls").inner_text()
    )


def test_levels_cells_and_differences(browser_page: Page, served: Served) -> None:
    opened(browser_page, served, SILICON)
    browser_page.get_by_role("button", name="Add a level").click()
    browser_page.wait_for_function(
        "() => document.querySelector('.crystal-view').dataset.level.split(' ').length == 3"
    )
    for _ in range(2):
        browser_page.get_by_role("button", name="Remove level 1").click()
    browser_page.wait_for_function(
        "() => document.querySelector('.crystal-view').dataset.level.split(' ').length == 1"
    )
    seen = browser_page.locator(".crystal").screenshot()
    browser_page.get_by_role("group", name="Cells shown").get_by_role("button").nth(1).click()
    browser_page.get_by_label("Density shown").select_option("latent-payload")
    browser_page.wait_for_selector(".crystal-view[data-source=latent-payload]")
    assert int(data(browser_page, ".crystal-view")["triangles"]) > 0
    assert browser_page.locator(".crystal").screenshot() != seen


def test_an_isosurface_lies_where_the_field_has_its_level(
    browser_page: Page, served: Served
) -> None:
    """Of cos x + cos y + cos z on an uneven grid, which is periodic; it ends at the faces."""
    browser_page.goto(served.url)
    grid = (20, 24, 30)
    x, y, z = (2 * np.pi * np.arange(n) / n for n in grid)
    field = np.cos(x)[:, None, None] + np.cos(y)[None, :, None] + np.cos(z)
    found: dict[str, Any] = browser_page.evaluate(
        """async ([values, grid, level]) => {
          const { isosurface } = await import("/page/isosurface.js");
          return isosurface(Float32Array.from(values), grid, level);
        }""",
        [field.ravel().tolist(), grid, 0.7],
    )
    places, gradients = np.array(found["places"]), np.array(found["normals"])
    faces = np.array(found["faces"]).reshape(-1, 3)
    used = np.unique(faces)
    assert places[used].min(axis=0).tolist() == [0, 0, 0]
    assert places[used].max(axis=0).tolist() == [1, 1, 1]
    angles = 2 * np.pi * places[used]
    np.testing.assert_allclose(np.cos(angles).sum(axis=1), 0.7, atol=0.03)
    slopes = -2 * np.pi * np.sin(angles)
    np.testing.assert_allclose(gradients[used], slopes, atol=1.0)
    # every front looks to where the field is smaller
    a, b, c = (places[faces[:, i]] for i in range(3))
    fronts = np.cross(b - a, c - a)
    outward = -sum(gradients[faces[:, i]] for i in range(3))
    solid = np.linalg.norm(fronts, axis=1) > 1e-5
    assert ((fronts * outward).sum(axis=1)[solid] > 0).all()


def test_slices_of_other_planes_and_scales(browser_page: Page, served: Served) -> None:
    opened(browser_page, served, HEXAGONAL)
    view = ".slice-view"
    assert data(browser_page, view)["sources"] == "payload latent latent-payload"
    canvas = browser_page.locator(".slice canvas").first
    browser_page.get_by_label("plane 0 0 1").click()
    browser_page.wait_for_selector(f"{view}[data-miller='0,0,1']")
    browser_page.get_by_role("button", name="Linear").click()
    browser_page.wait_for_selector(f"{view}[data-scale=linear]")
    seen = canvas.screenshot()
    browser_page.get_by_role("button", name="Log", exact=True).click()
    browser_page.wait_for_selector(f"{view}[data-scale=log]")
    assert canvas.screenshot() != seen
    browser_page.get_by_label("Miller index h").fill("2")
    browser_page.wait_for_selector(f"{view}[data-miller='2,0,1']")
    browser_page.get_by_label("Plane through an atom").select_option("1")
    place = chgdb.open(served.store)[HEXAGONAL].structure.frac_coords[1]
    at = round(float(place @ [2, 0, 1]) % 1, 6) % 1
    browser_page.wait_for_function(
        "([selector, at]) => Math.abs(document.querySelector(selector).dataset.at - at) < 1e-5",
        arg=[view, at],
    )
    browser_page.get_by_label("Miller index h").fill("0")
    browser_page.get_by_label("Miller index l").fill("2")  # the planes of (0 0 1), and its heights
    height = chgdb.open(served.store)[HEXAGONAL].structure.frac_coords[1, 2]
    browser_page.wait_for_selector(f"{view}[data-miller='0,0,1'][data-at='{height:.6f}']")
    browser_page.get_by_label("Miller index l").fill("0")
    problem = browser_page.locator(f"{view} [role=alert]")
    assert "not all zero" in problem.inner_text()


def test_a_difference_tells_what_its_colours_leave_out(browser_page: Page, served: Served) -> None:
    with browser_page.expect_response("**/plane?*latent*") as answer:
        opened(browser_page, served, HEXAGONAL)
    payload, latent = (
        np.frombuffer(base64.b64decode(field["values"]), "<f4")
        for field in answer.value.json()["fields"]
    )
    text = browser_page.locator(".slice[data-source=latent-payload] .colour-bar").inner_text()
    told = re.search(r"full colour beyond ±(\S+) \(extremes (\S+) and (\S+)\)", text)
    assert told is not None
    full, least, most = (float(number.replace("\u2212", "-")) for number in told.groups())
    difference = latent - payload
    assert [least, most] == pytest.approx([difference.min(), difference.max()], rel=0.01)
    assert 0.99 < (np.abs(difference) <= full).mean() < 1


def test_a_slice_shows_the_density_where_its_atoms_are(browser_page: Page, served: Served) -> None:
    """In a skewed plane through a Sc, the largest value that the pointer reads is the store's."""
    opened(browser_page, served, HEXAGONAL)
    database = chgdb.open(served.store)
    density = database[HEXAGONAL].density()
    site = density.structure.species.index("Sc")
    browser_page.get_by_label("plane 0 0 1").click()
    browser_page.wait_for_selector(".slice-view[data-miller='0,0,1']")
    browser_page.get_by_label("Plane through an atom").select_option(str(site))
    place = density.structure.frac_coords[site] % 1
    browser_page.wait_for_function(
        "at => Math.abs(document.querySelector('.slice-view').dataset.at - at) < 1e-5",
        arg=float(place[2]),
    )
    assert np.allclose(place * density.grid % 1, 0, atol=1e-6)  # it is on a grid point
    expected = density.values[tuple(np.rint(place * density.grid).astype(int) % density.grid)]
    read = browser_page.evaluate(
        """() => {
          const [canvas, value] = ["canvas", ".slice-value"].map((name) =>
            document.querySelector(`.slice[data-source=payload] ${name}`));
          const box = canvas.getBoundingClientRect();
          let most = 0;
          for (let x = box.left; x < box.right; x += 2) {
            for (let y = box.top; y < box.bottom; y += 2) {
              const place = { clientX: x, clientY: y };
              canvas.dispatchEvent(new PointerEvent("pointermove", place));
              most = Math.max(most, parseFloat(value.textContent));
            }
          }
          return most;
        }"""
    )
    assert read == pytest.approx(expected, rel=0.1)


def test_the_original_is_shown_where_its_file_is(browser_page: Page, served_apart: Served) -> None:
    file = ROOT / "examples" / "MgO.CHGCAR.xz"
    assert chgdb.open(served_apart.store).add([file], ids=["mgo"]).added
    opened(browser_page, served_apart, "mgo")
    shown = data(browser_page, ".slice-view")["sources"]
    assert shown == "original payload latent latent-payload payload-original latent-original"
    browser_page.get_by_label("Density shown").select_option("payload-original")
    browser_page.wait_for_selector(".crystal-view[data-source=payload-original]")
    assert int(data(browser_page, ".crystal-view")["triangles"]) > 0


def test_the_density_can_be_downloaded(browser_page: Page, served: Served, tmp_path: Path) -> None:
    opened(browser_page, served, SILICON)
    stored = chgdb.open(served.store)[SILICON].density()
    paths = []
    for name in ("CHGCAR", "cube", "CIF", "JSON"):
        with browser_page.expect_download() as expected:
            browser_page.get_by_role("link", name=name).click()
        paths.append(tmp_path / expected.value.suggested_filename)
        expected.value.save_as(paths[-1])
    density, _ = read_density(paths[0])
    np.testing.assert_allclose(density.values, stored.values, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(density.structure.lattice, stored.structure.lattice, atol=1e-6)
    assert density.structure.species == stored.structure.species
    assert [path.suffix for path in paths[1:]] == [".cube", ".cif", ".json"]
    assert paths[1].read_text().startswith(f"{SILICON} from chgdb")
    assert "_cell_length_a" in paths[2].read_text()


def crystal_moves(page: Page) -> None:
    """The crystal turns and zooms by keys, and spins."""
    crystal = page.locator(".crystal")
    crystal.focus()
    pictures = [crystal.screenshot()]
    for key in ("ArrowLeft", "ArrowUp", "+"):
        page.keyboard.press(key)
        pictures.append(crystal.screenshot())
    assert len(set(pictures)) == len(pictures)
    page.get_by_role("button", name="Rotate").click()
    before = crystal.screenshot()
    page.wait_for_timeout(200)
    assert crystal.screenshot() != before


def test_a_material_without_a_density_shows_its_crystal(browser_page: Page, served: Served) -> None:
    opened(browser_page, served, STRUCTURE_ONLY)
    assert "no charge density" in browser_page.locator(".alert").inner_text()
    assert browser_page.get_by_role("button", name="CHGCAR", exact=True).is_disabled()
    assert browser_page.get_by_role("link", name="CIF").is_visible()
    assert browser_page.locator(".crystal canvas").count() == 1
    assert browser_page.locator(".slice-view").count() == 0
    crystal_moves(browser_page)


def test_a_material_without_a_structure(browser_page: Page, served: Served) -> None:
    opened(browser_page, served, PROPERTIES_ONLY)
    assert re.search(r"chgdb add CHGCAR --id mp-7572", browser_page.locator(".alert").inner_text())
    assert browser_page.locator(".crystal").count() == 0
    assert browser_page.locator("tr[data-property=bulk_modulus]").count() == 1


def test_leaving_and_coming_back_keeps_one_webgl_context(
    browser_page: Page, served: Served
) -> None:
    opened(browser_page, served, SILICON)
    for material_id in (PROPERTIES_ONLY, HEXAGONAL):
        browser_page.evaluate("id => { location.hash = `#/material/${id}`; }", material_id)
        browser_page.wait_for_function("id => document.title.includes(id)", arg=material_id)
        browser_page.wait_for_selector(".material[data-complete=true]")
    assert browser_page.locator("canvas").count() == 1 + 3
    assert int(data(browser_page, ".crystal-view")["triangles"]) > 0


def test_a_latent_that_cannot_be_decoded_leaves_the_rest(
    browser_page: Page, served: Served
) -> None:
    refusal = '{"error": "latents need torch"}'
    for path in ("**/plane?*latent*", "**/field?source=latent*"):
        browser_page.route(path, lambda route: route.fulfill(status=400, body=refusal))
    opened(browser_page, served, SILICON)
    alerts = browser_page.locator(".material [role=alert]")
    assert alerts.all_inner_texts() == ["latents need torch"]
    browser_page.get_by_label("plane 1 1 1").click()
    browser_page.wait_for_selector(".slice-view[data-miller='1,1,1'][data-sources=payload]")
    browser_page.get_by_label("Density shown").select_option("latent")
    browser_page.locator(".crystal-box [role=alert]").wait_for()
    assert data(browser_page, ".crystal-view")["source"] == "payload"


def test_an_unknown_material(browser_page: Page, served: Served) -> None:
    browser_page.goto(f"{served.url}/#/?elements=Ti")
    browser_page.locator(".found", has_text=" of ").wait_for()
    browser_page.evaluate("location.hash = '#/material/mp-0'")
    assert "mp-0" in browser_page.locator("[role=alert]").inner_text()
    browser_page.get_by_role("link", name="To the list of materials").click()
    browser_page.wait_for_url("**#/?elements=Ti")
