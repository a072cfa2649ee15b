"""The report's page: every section, escaped, offline, whatever is missing."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sensorium.judge.score import Picture
from sensorium.report.page import write_report
from sensorium.report.pictures import Sheet
from sensorium.report.table import results_table
from sensorium.runs.results import Chosen, Data, Results, RunResult

EVIL = '<script>alert("x")</script>'


class Page(HTMLParser):
    """Every element with its attributes, and the text outside of style and script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open[-1:] == [tag], f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def sections(self) -> list[str]:
        return [a["id"] or "" for tag, a in self.elements if tag == "section" and a.get("id")]

    def count(self, tag: str, cls: str) -> int:
        return sum(t == tag and cls in (a.get("class") or "").split() for t, a in self.elements)


def test_every_section_is_there_in_order_and_the_markup_is_balanced(made):
    page = Page(made[2])
    assert page.open == []
    assert page.sections == [
        "verdict",
        "labels",
        "quality",
        "loss",
        "table",
        "pictures",
        "neighbors",
        "map",
        "data",
        "settings",
        "notes",
        "take",
        "words",
        "versions",
    ]
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    links = {a["href"] for tag, a in page.elements if tag == "a"}
    assert links == {f"#{name}" for name in page.sections}
    for said in (
        "photos/garden",
        "budget 10m a method",
        "44.2 %",
        "10,000 test images",
        "cup/0193.jpg",
        "batch size 256 x 1.5e-4 / 256",
        "2.15.0",
    ):
        assert said in page.text
    for title in (
        "Fine-tuned",
        "Linear probe",
        "by time",
        "by images seen",
        "RankMe by time",
        "raw pixels",
        "most frequent class",
        "vit-micro from scratch",
    ):
        assert title in page.text


def test_the_page_is_offline_and_small(made):
    page = made[2]
    assert len(page.encode()) < 3_000_000
    assert not re.search(
        r"https?:|(?<!:)//[a-z]|@import|<link|<iframe",
        re.sub(r"base64,[A-Za-z0-9+/=]+|^\s*//.*$", "", page, flags=re.M),
    )
    for tag, attributes in Page(page).elements:
        for name in ("src", "href", "srcset", "action", "poster", "data"):
            value = attributes.get(name) or ""
            assert value.startswith(("data:image/", "#")) or not value, f"<{tag} {name}={value[:60]}>"
    assert all(found.startswith("url(data:image/jpeg") for found in re.findall(r"url\([^)]{0,40}", page))


def test_the_policy_admits_exactly_the_pages_own_script(made):
    script = re.search(r"<script>(.*?)</script>", made[2], re.S)
    policy = next(a["content"] for tag, a in Page(made[2]).elements if a.get("http-equiv") == "Content-Security-Policy")
    assert script
    assert policy
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy


def test_pictures_neighbours_and_map_show_the_right_things(made, pixels):
    results, _, text = made
    page = Page(text)
    assert sum(tag == "img" and (a.get("src") or "").startswith("data:image/png") for tag, a in page.elements) == 8
    yes, no = page.count("span", "yes"), page.count("span", "no")
    entries = [entry for run in results.runs for entry in run.neighbors]
    same = sum(
        int(pixels["train"].labels[i] == pixels["test"].labels[entry.query]) for entry in entries for i in entry.found
    )
    assert (yes, no) == (same, 4 * 8 * 8 - same)
    assert page.count("i", "s-map") == 4 * 300
    assert page.count("span", "query") == 4 * 8


def test_a_thumbnail_shows_its_own_image(pixels):
    sheet = Sheet("t", pixels, size=32, limit=25)
    for i in range(7):
        sheet.thumbnail("test", i)
    sixth = sheet.thumbnail("test", 5)
    assert sixth is not None
    x, y = (int(v) for v in re.findall(r"--[xy]:(\d+)", sixth))
    uri = re.search(r"base64,([^)]+)", sheet.css())
    assert uri
    with Image.open(io.BytesIO(base64.b64decode(uri[1]))) as image:
        shown = np.asarray(image.crop((32 * x, 32 * y, 32 * x + 32, 32 * y + 32)), np.float32)
    assert np.abs(shown - np.moveaxis(pixels["test"].images[5], 0, -1)).mean() < 4
    assert sheet.thumbnail("test", 10_000) is None
    assert sheet.thumbnail("val", 0) is None


def test_what_a_kind_of_data_says_of_itself_is_shown(tmp_path, make, pixels):
    results = make(tmp_path, pixels)
    found = {
        "notes": ["3 of 40 training pictures have no box."],
        "boxes_by_class": {"cell": 60, "platelet": 7},
        "skipped": ["torn.png: cut short"],
    }
    results = replace(results, data=replace(results.data, diagnosis=None, findings=found, tokens=4096))
    said = Page(write_report(results, tmp_path, pixels=pixels).read_text(encoding="utf-8")).text
    for line in (
        "3 of 40 training pictures have no box.",
        "boxes by class",
        "platelet",
        "torn.png: cut short",
        "4,096",
    ):
        assert line in said, line


def test_doubtful_pictures_are_counted_and_named(tmp_path, make, pixels):
    said = Page(write_report(make(tmp_path, pixels), tmp_path, pixels=pixels).read_text(encoding="utf-8")).text
    for line in ("blurred images", "cup/0007.jpg", "dark image", "drum/0042.jpg", "no images of an odd size"):
        assert line in said, line
    assert "nearly white" not in said, "what was not looked for is not said"


def test_everything_from_the_data_is_escaped(tmp_path, make, pixels, again):
    results = make(tmp_path, pixels)
    diagnosis = {EVIL: EVIL, "advice": [EVIL], "counts": {EVIL: 3, "b": 1}, "files": [{EVIL: EVIL}]}
    classes = (EVIL, "</style>", "<b>", "'\"&", "x", "y")
    data = replace(results.data, path=EVIL, classes=classes, diagnosis=diagnosis, unit=EVIL, findings={EVIL: EVIL})
    first, second, _, last = results.runs
    scores = tuple(replace(score, baselines={EVIL: 0.2}, name=f"{EVIL} {score.name}") for score in first.scores)
    first = replace(
        first, notes=(EVIL,), backbone=EVIL, precision=EVIL, settings={EVIL: Chosen(EVIL, EVIL)}, checkpoint=EVIL,
        pictures=(Picture(first.pictures[0].file, EVIL, EVIL),), title=EVIL, caveat=EVIL, scores=scores,
    )  # fmt: skip
    lost = RunResult("dino", "dino", "failed", error=EVIL)
    runs = (first, replace(second, name=EVIL), lost, last)
    results = replace(results, data=data, runs=runs, warnings=(EVIL,), versions={EVIL: EVIL}, created=EVIL)
    results = again(results)
    page = write_report(results, tmp_path, pixels=pixels).read_text(encoding="utf-8")
    assert page.count("<script") == 1
    assert page.count("</style>") == 1
    parsed = Page(page)
    assert parsed.open == []
    assert not any(name.startswith("on") for _, a in parsed.elements for name in a)
    assert parsed.text.count(EVIL) > 20


def test_files_outside_of_the_folder_are_not_inlined(tmp_path, make, pixels):
    out = tmp_path / "out"
    out.mkdir()
    results = make(out, pixels)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "secret.png")
    (out / "mae" / "text.png").write_text("no picture")
    files = ("../secret.png", str(tmp_path / "secret.png"), "mae/text.png", "mae/none.png")
    first = replace(results.runs[0], pictures=tuple(Picture(file, "t") for file in files))
    results = replace(results, runs=(first, *results.runs[1:]))
    page = Page(write_report(results, out).read_text(encoding="utf-8"))
    assert page.text.count("no such picture") == 4
    assert sum(tag == "img" for tag, _ in page.elements) == 6


def test_large_pictures_are_recoded(tmp_path, make, pixels):
    results = make(tmp_path, pixels)
    noise = np.random.default_rng(0).integers(0, 255, (900, 1600, 3), np.uint8)
    for shown in results.runs[0].pictures:
        Image.fromarray(noise).save(tmp_path / shown.file, compress_level=1)
    assert write_report(results, tmp_path, pixels=pixels).stat().st_size < 2_000_000
    assert "data:image/jpeg" in (tmp_path / "report.html").read_text()


def test_best_of_each_column_is_bold_and_the_reference_does_not_compete_with_few_labels(made):
    body = re.search(r"<tbody>(.*?)</tbody>", made[2], re.S)
    assert body
    rows = re.findall(r"<tr class=\"(?:winner )?run\">(.*?)</tr>", body[1])
    bold = [re.findall(r"<td[^>]*><b>([^<]+)</b>", row) for row in rows]
    assert bold[0] == ["1.18 GB"]  # not the time: it was the budget of all
    assert bold[1][:5] == ["56.1", "43.1", "53.2", "44.2", "56.1"]
    assert bold[2] == ["698 k", "74 M"]
    assert bold[3][:2] == ["73.1", "74.2"]
    assert "n 10,000" in made[2]
    assert "4,310 of 10,000 test images right, learned from 500 labels, mean of 3 subsets" in made[2]


def test_a_failed_run_is_in_plain_sight(tmp_path, make, pixels, again):
    results = make(tmp_path, pixels)
    lost = RunResult("simclr", "simclr", "failed", title="SimCLR", error="the loss became NaN at step 412")
    results = again(replace(results, runs=(results.runs[0], lost, *results.runs[2:])))
    page = Page(write_report(results, tmp_path, pixels=pixels).read_text(encoding="utf-8"))
    assert page.text.count("the loss became NaN at step 412") == 3
    assert results.winner.name == "dino"
    assert "SimCLR did not finish" in results.verdict


def strip(results: Results, what: str) -> Results:
    """Cripple results in one way."""
    runs = results.runs
    if what == "no labels":
        results = replace(results, data=replace(results.data, classes=()))
        runs = tuple(
            replace(
                run, scores=run.scores[-1:], curve=tuple({**point, "knn_top1": None} for point in run.curve),
                map=replace(run.map, label=None) if run.map else None,
            )
            for run in runs
        )  # fmt: skip
    elif what == "one run":
        runs = runs[:1]
    elif what == "one fraction":
        runs = tuple(replace(run, scores=tuple(s for s in run.scores if s.at in (None, 0.01))) for run in runs)
    elif what == "only names":
        return Results(2, Data("x"), (RunResult("mae", "mae"),))
    elif what == "no runs":
        return Results(2, Data("x"), ())
    elif what == "all failed":
        runs = tuple(RunResult(name, name, "failed") for name in ("mae", "dino"))
    elif what == "unknown values":
        runs = tuple(
            replace(
                run, seconds=None, scores=tuple(replace(s, value=None, n=None, error=None) for s in run.scores),
                map=replace(run.map, x=(None, *run.map.x[1:])) if run.map else None,
                curve=tuple({**point, "knn_top1": None} for point in run.curve),
            )
            for run in runs
        )  # fmt: skip
    elif what == "no baselines":
        runs = tuple(replace(run, scores=tuple(replace(s, baselines={}) for s in run.scores)) for run in runs)
    return replace(results, runs=runs)


KINDS = (
    "no labels",
    "one run",
    "one fraction",
    "only names",
    "no runs",
    "all failed",
    "unknown values",
    "no baselines",
)


@pytest.mark.parametrize("what", KINDS)
@pytest.mark.parametrize("drawn", [True, False])
def test_missing_parts_leave_the_rest(made, tmp_path, pixels, again, what, drawn):
    results = again(strip(made[0], what))
    if what == "no labels":
        pixels = {name: SimpleNamespace(images=part.images, labels=None, classes=()) for name, part in pixels.items()}
    page = Page(write_report(results, tmp_path, pixels=pixels if drawn else None).read_text(encoding="utf-8"))
    assert page.open == []
    assert {"verdict", "data", "words"} <= set(page.sections)
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", page.text)
    assert results_table(results).columns
    if what == "no labels":
        assert {"quality", "neighbors", "map", "table"} <= set(page.sections)
        assert "labels" not in page.sections
        assert "RankMe 121" in page.text
        assert page.count("span", "yes") + page.count("span", "no") == 0
    if what == "one fraction":
        assert page.count("ul", "bars") >= 2
        assert "most frequent class" in page.text
        assert "55.6" not in page.text, "a baseline with other labels stands beside the methods"


def test_one_object_of_pixels_is_the_test_set(made, tmp_path, pixels):
    page = Page(write_report(made[0], tmp_path, pixels=pixels["test"]).read_text(encoding="utf-8"))
    assert page.count("i", "s-map") == 4 * 300
    assert page.count("i", "nothing") == 4 * 8 * 8
