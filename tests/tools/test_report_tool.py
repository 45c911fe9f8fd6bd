"""The HTML report of a run: made by the tool, and opened in a browser."""

from __future__ import annotations

import http.server
import json
import queue
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from tests.helpers import Run, settings

SCORED = ("worst", "scores", "confusion", "range")
ALWAYS = ("frames", "labels", "stages", "left-out", "configuration")
WATCH = """<head><script>
window.problems = [];
window.onerror = (message) => { problems.push(String(message)); };
window.onunhandledrejection = (event) => { problems.push(String(event.reason)); };
console.error = (...texts) => { problems.push(texts.join(" ")); };
console.warn = console.error;
</script>"""
PROBE = """<script>
async function probe() {
  const charts = [...document.querySelectorAll(".js-plotly-plot")];
  const found = {
    sections: [...document.querySelectorAll("section")].map((section) => section.id),
    charts: charts.length,
    colours: 0,
  };
  await new Promise((done) => setTimeout(done, 1000));
  const cloud = charts.find((chart) => chart.data.some((trace) => trace.type === "scatter3d"));
  if (cloud) {
    const image = new Image();
    image.src = await Plotly.toImage(cloud, { format: "png", width: 600, height: 400 });
    await image.decode();
    const canvas = Object.assign(document.createElement("canvas"), { width: 600, height: 400 });
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const pixels = new Uint32Array(context.getImageData(100, 100, 400, 200).data.buffer);
    found.colours = new Set(pixels).size;
  }
  const ends = charts.map((chart) => chart.querySelector("svg").getBoundingClientRect().right);
  found.beyond = ends.filter((end) => end > document.documentElement.clientWidth).length;
  return found;
}
window.addEventListener("load", async () => {
  const found = await probe().catch((error) => ({ failed: String(error) }));
  await fetch("/seen", { method: "POST", body: JSON.stringify({ ...found, problems }) });
});
</script></body>"""
FRAME = """<iframe src="page.html" style="width:{width}px;height:800px"></iframe>"""


@pytest.fixture(scope="session")
def chromium() -> str:
    """Chromium or Chrome, without a display."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), "")
    if not found:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    return found


def opened(browser: str, page: Path, width_px: int = 1280) -> dict:
    """What a browser makes of a page: errors, sections, charts, colours of the 3D view."""
    text = page.read_text().replace("<head>", WATCH, 1).replace("</body>", PROBE)
    files = {"/frame.html": FRAME.format(width=width_px), "/page.html": text}
    seen: queue.Queue[dict] = queue.Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path in files else 404)
            self.end_headers()
            self.wfile.write(files.get(self.path, "").encode())

        def do_POST(self) -> None:
            seen.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Requests are not printed."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
            *("--disable-background-networking", f"--user-data-dir={page.parent / 'profile'}"),
            *("--window-size=1400,900", f"http://127.0.0.1:{server.server_port}/frame.html"),
        ]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, **quiet) as child:
            try:
                return seen.get(timeout=180)
            finally:
                child.kill()
                server.shutdown()


@pytest.fixture
def run(small_world: Path, small_store: Path) -> tuple[list[str], Path]:
    """Settings of a run on the small world, and its student."""
    return settings(small_world, small_store), next(small_store.glob("student-*"))


@pytest.mark.slow
def test_a_report_opens_in_a_browser(
    run: tuple[list[str], Path], tmp_path: Path, tool: Run, chromium: str
) -> None:
    given, student = run
    page = tool("report", *given, f"student={student}").path
    assert page.parent == tmp_path / "store"
    assert page.stat().st_size < 15_000_000
    seen = opened(chromium, page)
    assert seen["problems"] == []
    assert seen["sections"] == [*SCORED, "frames", "labels", "training", *ALWAYS[2:]]
    assert seen["charts"] >= 8
    assert seen["colours"] > 20
    assert seen["beyond"] == 0
    assert opened(chromium, page, width_px=420)["beyond"] == 0


@pytest.mark.slow
def test_the_browser_would_tell_of_an_error(tmp_path: Path, chromium: str) -> None:
    page = tmp_path / "page.html"
    page.write_text("<html><head></head><body><script>nothing.there()</script></body></html>")
    seen = opened(chromium, page)
    assert "nothing is not defined" in seen["problems"][0]
    assert (seen["charts"], seen["colours"]) == (0, 0)


def test_a_report_names_the_worst_class_and_links_a_frame_of_it(
    run: tuple[list[str], Path], tool: Run
) -> None:
    given, student = run
    text = tool("report", *given, f"student={student}").path.read_text()
    scores = tool("evaluate", *given, f"student={student}").path / "scores.json"
    iou = json.loads(scores.read_text())["iou"]
    worst = min((name for name in iou if iou[name] is not None), key=iou.__getitem__)
    section = text.split('<section id="worst">')[1].split("</section>")[0]
    assert worst in section
    anchors = re.findall(r'href="#(frame-[^"]+)"', section)
    assert anchors
    assert all(f'id="{anchor}"' in text for anchor in anchors)
    assert f"{100 * json.loads(scores.read_text())['miou']:.1f} %" in text
    assert student.name in text
    assert "http://" not in section  # opens without network


def test_two_runs_are_compared(run: tuple[list[str], Path], tool: Run) -> None:
    given, student = run
    points = next(student.parent.glob("points-*"))
    page = tool("report", *given, f"student={student}", f"against={points}").path
    text = page.read_text()
    assert "against-points-" in page.name
    assert "What got better" in text
    assert f"gain over {points.name}" in text
    same = tool("report", *given, f"student={student}", f"against={student}").path.read_text()
    assert "+0.0" in same


def test_pseudo_labels_and_data_without_truth_have_a_report(
    world: Path, tmp_path: Path, tool: Run
) -> None:
    given = settings(world, tmp_path / "store")
    shutil.rmtree(world / "lidarseg")
    (world / "v1.0-mini/lidarseg.json").unlink()
    points = tool("label", *given).path
    text = tool("report", *given, f"pseudo_labels={points}").path.read_text()
    found = re.findall(r'<section id="([^"]+)">', text)
    assert found == list(ALWAYS)
    assert "nothing is scored" in text


def test_a_damaged_log_is_named_and_does_not_stop_the_report(
    run: tuple[list[str], Path], tool: Run
) -> None:
    given, student = run
    with (student / "metrics.jsonl").open("a") as log:
        log.write('{"step": 9, "lo')
    text = tool("report", *given, f"student={student}").path.read_text()
    assert "metrics.jsonl of the student cannot be read" in text


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("out={store}", "is no name of a page"),
        ("out=page.pdf", "is no name of a page"),
        ("against=nowhere/student-0123", "nowhere"),
        ("pseudo_labels=points-1", "give one of them"),
    ],
)
def test_what_cannot_be_reported_is_refused(
    run: tuple[list[str], Path], tool: Run, arguments: str, problem: str
) -> None:
    given, student = run
    refused = tool("report", *given, f"student={student}", arguments.format(store=student.parent))
    assert refused.status == 1
    assert problem in refused.err
    assert len(refused.err.strip().splitlines()) == 1
