"""The three views in a browser, one after the other as a user sees them; the README's pictures.

`CHGDB_SCREENSHOTS=docs pytest tests/test_page_views.py` makes the pictures anew.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import ROOT, Served
from matplotlib.image import imread

if TYPE_CHECKING:
    from playwright.sync_api import Page

MGO = ROOT / "examples" / "MgO.CHGCAR.xz"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where pictures go: a folder of the test, unless CHGDB_SCREENSHOTS names one."""
    return Path(os.environ.get("CHGDB_SCREENSHOTS", tmp_path))


def take(page: Page, path: Path) -> None:
    """A picture of what the window shows, in which more than the background is drawn."""
    page.screenshot(path=path)
    pixels = imread(path)[:, :, :3]
    assert pixels.shape == (800, 1280, 3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200


def test_the_three_views(browser_page: Page, served: Served, pictures: Path) -> None:
    page = browser_page
    page.emulate_media(reduced_motion="reduce")  # bars that grow would be caught half grown
    page.goto(served.page)
    page.fill("#where", "bulk_modulus > 150 AND NOT is_metal")
    page.locator(".found", has_text=" of ").wait_for()
    page.locator(".results:not([aria-busy])").wait_for()
    page.locator("details:has-text('command line')").evaluate("node => { node.open = false; }")
    take(page, pictures / "ui-list.png")

    page.goto(f"{served.url}/#/material/mp-149")
    page.wait_for_selector("[data-complete=true]")
    take(page, pictures / "ui-material.png")

    page.set_input_files("input[type=file]", MGO)
    page.wait_for_selector("[data-state=done][data-complete=true]", timeout=120_000)
    take(page, pictures / "ui-upload.png")
