#!/usr/bin/env python3
"""Opens every page of the built site in a real browser, at 1280 and 390 pixels, light and dark.

    mkdocs build --strict && python .ci/look.py                       # measures; fails where something is cut off
    python .ci/look.py --pictures build/look ace api/strategies       # pictures, too, of these pages

Needs Chromium ($CHROMIUM, or one on the path) and nothing beyond Python. Counts on each page what sticks out of it, the
formulas that are not drawn and the pictures that are missing; and says, without failing, what scrolls within the page
and which pictures are shown much smaller than they are.
"""

import argparse
import functools
import html
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

WIDTHS = (1280, 390)
MODES = {"light": 1, "dark": 0}  # Chromium's numbers of a preferred colour scheme
TALLEST = 12_000  # pixels of one picture

# Opens the pages one after the other in a frame of the width that is asked, and writes what it found as JSON.
MEASURE = """<!doctype html><body><script>
const wait = ms => new Promise(done => setTimeout(done, ms))
const name = e => (e.tagName + "." + e.className + " " + (e.textContent || e.src || "").trim().slice(0, 60)).trim()
async function measure(page, width) {
  const frame = document.createElement("iframe")
  frame.style.cssText = `width:${width}px;height:900px;border:0`
  frame.src = "/" + page
  document.body.append(frame)
  await new Promise(done => (frame.onload = done))
  await wait(300)
  const doc = frame.contentDocument, all = [...doc.querySelectorAll("article *")]
  const scrolls = e => ["auto", "scroll"].includes(frame.contentWindow.getComputedStyle(e).overflowX)
  const within = e => e.tagName != "ARTICLE" && (scrolls(e) || within(e.parentElement))
  // On a telephone code reaches from edge to edge of the screen.
  const edge = width < 600 ? width : doc.querySelector("article").getBoundingClientRect().right
  const right = e => e.closest(".katex-mathml, svg") ? 0 : e.getBoundingClientRect().right
  const out = all.filter(e => right(e) > edge + 1 && !within(e))
  const wide = e => e.scrollWidth > e.clientWidth + 1
  const images = [...doc.querySelectorAll("article img")]
  const formulas = [...doc.querySelectorAll(".arithmatex")]
  const found = {
    page, width, height: doc.documentElement.scrollHeight,
    sticks_out: out.slice(0, 5).map(name),
    formulas: formulas.length,
    not_drawn: formulas.filter(e => !e.querySelector(".katex") || e.querySelector(".katex-error")).map(name),
    missing: images.filter(e => e.complete && !e.naturalWidth).map(e => e.src),
    scrolling_formulas: formulas.filter(e => wide(e) && scrolls(e)).map(name),
    scrolling_code: [...doc.querySelectorAll("pre > code")].filter(wide).length,
    scrolling_tables: [...doc.querySelectorAll(".md-typeset__scrollwrap")].filter(wide).length,
    small_pictures: images.filter(e => e.naturalWidth > 2.2 * e.clientWidth)
      .map(e => `${e.getAttribute("src")} ${e.naturalWidth} -> ${e.clientWidth}`),
  }
  frame.remove()
  return found
}
(async () => {
  const all = []
  for (const [page, width] of JOBS) all.push(await measure(page, width))
  document.body.innerHTML = ""
  const pre = document.createElement("pre")
  pre.id = "found"
  pre.textContent = JSON.stringify(all)
  document.body.append(pre)
})()
</script>"""


class Handler(http.server.SimpleHTTPRequestHandler):
    """The site, and the page that measures it."""

    def do_GET(self) -> None:
        """The measuring page from memory, all else from the folder."""
        if self.path != "/__measure.html":
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(self.server.measure.encode())

    def log_message(self, *_: object) -> None:
        """Nothing is written."""


def chromium(*options: str) -> str:
    """What a headless Chromium prints, with a profile that is thrown away."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if not found:
        raise SystemExit("no Chromium was found. On Debian: apt install chromium; or name one in CHROMIUM")
    with tempfile.TemporaryDirectory() as profile:
        start = [
            found,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
        ]
        return subprocess.run([*start, *options], capture_output=True, text=True, timeout=300, check=True).stdout


def main() -> int:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", help="such as ace or api/strategies; all, if none is named; . is the first")
    parser.add_argument("--site", default="site", type=Path)
    parser.add_argument("--pictures", type=Path, help="a folder for them")
    args = parser.parse_args()
    names = args.pages or sorted(str(path.parent.relative_to(args.site)) for path in args.site.glob("**/index.html"))
    pages = ["" if name == "." else f"{name.strip('/')}/" for name in names]

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(args.site)))
    jobs = json.dumps([[page, width] for page in pages for width in WIDTHS])
    server.measure = MEASURE.replace("JOBS", jobs)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"

    budget = 3000 * len(WIDTHS) * len(pages) + 5000
    dom = chromium(
        f"--virtual-time-budget={budget}", "--window-size=1300,1000", "--dump-dom", f"{address}/__measure.html"
    )
    match = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    if not match:
        raise SystemExit("the browser did not come to the last page")
    bad = 0
    for found in json.loads(html.unescape(match[1])):
        faults = {key: found[key] for key in ("sticks_out", "not_drawn", "missing") if found[key]}
        notes = {key: value for key, value in found.items() if key.startswith(("scrolling", "small")) and value}
        notes.pop("scrolling_code", None) if found["width"] < WIDTHS[0] else None  # code scrolls on a telephone
        print(f"{found['page'] or '.':32} {found['width']:5} {found['formulas']:4} formulas", faults or "", notes or "")
        bad += bool(faults)
        if not args.pictures:
            continue
        args.pictures.mkdir(parents=True, exist_ok=True)
        for mode, number in MODES.items():
            stem = found["page"].strip("/").replace("/", "-") or "index"
            picture = (args.pictures / f"{stem}-{found['width']}-{mode}.png").resolve()
            size = f"--window-size={found['width']},{min(found['height'], TALLEST)}"
            scheme = f"--blink-settings=preferredColorScheme={number}"
            chromium(
                scheme, size, "--virtual-time-budget=3000", f"--screenshot={picture}", f"{address}/{found['page']}"
            )
    print(f"{bad} of {len(WIDTHS) * len(pages)} views with something cut off, undrawn or missing")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
