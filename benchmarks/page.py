"""How fast `chgdb ui` is in a real browser: first paint, rows, a material, the slider, scrolling.

    python benchmarks/page.py [--runs 5] [--store DIR]

A fresh Chromium profile for every run; times are those of the page's own clock (`performance.now`),
which begins with the navigation. WebGL is drawn by the CPU where there is no graphics card.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = [
    *("--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    "--disable-sync",
]

# notes when something that a selector names is painted for the first time
NOTE = """
window.paintedAt = {};
const wanted = %s;
const look = () => {
    for (const [name, selector] of Object.entries(wanted)) {
        if (!(name in window.paintedAt) && document.querySelector(selector)) {
            window.paintedAt[name] = null;
            requestAnimationFrame(() => requestAnimationFrame(() => {
                window.paintedAt[name] = performance.now();
            }));
        }
    }
};
new MutationObserver(look).observe(document, {childList: true, subtree: true, attributes: true});
"""

SCROLL = """async () => {
    const box = document.querySelector(".scroller");
    const end = box.scrollHeight - box.clientHeight;
    const times = [];
    let last = performance.now();
    for (let i = 0; i <= 600; i++) {
        box.scrollTop = end * i / 600;
        await new Promise(requestAnimationFrame);
        times.push(performance.now() - last);
        last = performance.now();
    }
    return times;
}"""

SLIDE = """async () => {
    const view = document.querySelector("[data-level]");
    const slider = view.querySelector("input[type=range]");
    const times = [];
    for (let i = 1; i <= 20; i++) {
        const before = view.dataset.level;
        const start = performance.now();
        slider.value = Number(slider.min) + (Number(slider.max) - Number(slider.min)) * i / 25;
        slider.dispatchEvent(new Event("input", {bubbles: true}));
        while (view.dataset.level === before && performance.now() - start < 2000) {
            await new Promise(requestAnimationFrame);
        }
        await new Promise(requestAnimationFrame);
        times.push(performance.now() - start);
    }
    return times;
}"""


@contextmanager
def serving(store: Path) -> Iterator[str]:
    """The address of a `chgdb ui` over a store."""
    command = [
        *(sys.executable, "-c", "from chgdb.cli import main; main()", "ui", "--no-browser"),
        *("--port", "0", "--store", str(store)),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip().split("#")[0]
        process.send_signal(signal.SIGINT)


def visit(browser: Browser, url: str, wanted: dict[str, str], then: str | None = None) -> Any:
    """Milliseconds after which things were painted, and what a script on the page returned."""
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.add_init_script(NOTE % repr(wanted))
    page.goto(url)
    for name in wanted:
        page.wait_for_function("name => window.paintedAt[name]", arg=name, timeout=60_000)
    found = page.evaluate("window.paintedAt")
    found["first paint"] = page.evaluate(
        "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    )
    result = page.evaluate(then) if then else None
    page.context.close()
    return found, result


def line(what: str, times: list[float]) -> str:
    """A row of the table."""
    return f"| {what} | {statistics.median(times):.0f} | {max(times):.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--store", type=Path, default=ROOT / "store")
    parser.add_argument("--ids", default="mp-149,mp-9023")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    print("| in the browser, ms | median | largest |\n| --- | --- | --- |")
    with serving(options.store) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=OPTIONS)
        visit(browser, url, {"rows": "tbody td a"})  # the server's first answers load DuckDB
        rows = {"rows": "tbody td a", "histograms": "figure[data-column] rect"}
        found = [visit(browser, url, rows)[0] for _ in range(options.runs)]
        for name in ("first paint", "rows", "histograms"):
            print(line(f"list: {name}", [times[name] for times in found]))
        _, frames = visit(browser, url, rows, SCROLL)
        print(line("list: a frame while all rows scroll by in 600 steps", frames))
        parts = {"formula": "main h1", "isosurface": "[data-triangles][data-ready]",
                 "slice": "[data-miller][data-at] canvas"}  # fmt: skip
        for material_id in options.ids.split(","):
            at = f"{url}#/material/{material_id}"
            found = [visit(browser, at, parts)[0] for _ in range(options.runs)]
            for name in ("first paint", *parts):
                print(line(f"{material_id}: {name}", [times[name] for times in found]))
            _, moves = visit(browser, at, parts, SLIDE)
            print(line(f"{material_id}: a move of the level slider until drawn", moves))
        browser.close()


if __name__ == "__main__":
    main()
