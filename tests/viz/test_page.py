"""The page is one safe file, and in a real browser its slider shows exactly what each call had committed."""

import html.parser
import itertools
import json
import re
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paradec.types import OPEN
from paradec.viz import Trace, page
from paradec.viz.palette import CALLS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --virtual-time-budget=20000 --dump-dom"
browser_only = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on the PATH")


def embedded(source: str) -> list[dict]:
    return json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', source, re.S)[0])


@settings(deadline=None)
@given(st.lists(st.from_type(Trace), min_size=1, max_size=3), st.text(max_size=20))
def test_one_ascii_file_that_holds_its_traces(traces, title):
    source = page(traces, title)
    assert source.isascii() and source.count("</script>") == 2 and source.count("<script") == 2
    assert "<!--" not in source
    fields = set(traces[0].to_dict())
    found = [Trace.from_dict({k: v for k, v in column.items() if k in fields}) for column in embedded(source)]
    assert found == traces
    for column in embedded(source):
        assert all((hue is None) == (call is None) for hue, call in zip(column["hues"], column["settled"], strict=True))


def test_nothing_is_fetched(trace):
    source = page([trace]).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|\bsrc\s*=|\bhref\s*=|@import|url\(|fetch\(|XMLHttpRequest", source)
    assert "default-src 'none'" in source, "and the browser is told to refuse, should it be tried"
    assert all(colour in source for colour in CALLS)


def test_title_is_escaped(trace):
    assert "<title>a &lt;b&gt; &amp; {{data}} &#9731;</title>" in page([trace], "a <b> & {{data}} ☃")


def test_nothing_to_show():
    with pytest.raises(ValueError, match="at least one trace"):
        page([])


class Dom(html.parser.HTMLParser):
    """What the tests read of a dumped page: body attributes, tokens by column, names of all elements, tip, readout."""

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.body, self.columns, self.elements, self.texts, self._path = {}, [], [], {}, []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        attrs = {name: value or "" for name, value in attrs}
        self.elements.append((tag, attrs))
        self.body = attrs if tag == "body" else self.body
        if tag == "article":
            self.columns.append([])
        if "data-pos" in attrs:
            self.columns[-1].append({**attrs, "class": attrs["class"].split(), "text": ""})
        if tag not in ("meta", "input", "br"):
            self._path.append((tag, attrs))

    def handle_endtag(self, tag):
        self._path.pop()

    def handle_data(self, data):
        for _, attrs in self._path:
            if "data-pos" in attrs:
                self.columns[-1][-1]["text"] += data
            if attrs.get("id"):
                self.texts[attrs["id"]] = self.texts.get(attrs["id"], "") + data

    def shown(self, column: int) -> list[str]:
        return [t["text"] for t in self.columns[column] if "open" not in t["class"]]

    @property
    def report(self):
        return json.loads(self.body["data-report"])


@pytest.fixture
def browse(tmp_path):
    """Open a page in a real browser, run a script in it once it is ready, and read the document that results."""
    count = itertools.count()

    def open_page(traces, fragment="", script="", *flags) -> Dom:
        place = tmp_path / f"{next(count)}"
        place.mkdir()
        source = page(traces, "Test").replace("</body>", f"<script>{script}</script></body>")
        (place / "page.html").write_text(source, "ascii")
        command = [CHROMIUM, *FLAGS.split(), *flags, f"--user-data-dir={place / 'profile'}"]
        command.append((place / "page.html").as_uri() + fragment)
        done = subprocess.run(command, capture_output=True, timeout=120, check=True)
        dom = Dom(done.stdout.decode())
        assert dom.body.get("data-ready") == "true", done.stderr.decode()[-2000:]
        return dom

    return open_page


@pytest.fixture
def pair(trace) -> list[Trace]:
    """Six tokens one by one, next to the same six in an order of their own, one of them never committed."""
    order = (3, 1, 1, 2, int(OPEN), 3)
    slow = Trace("ar", trace.prompt, trace.pieces, (1, 2, 3, 4, 5, 6), calls=6, seconds=4.0, exact=True)
    return [slow, Trace("threshold", trace.prompt, trace.pieces, order, calls=3, seconds=1.0, exact=False)]


@pytest.mark.browser
@browser_only
class TestInABrowser:
    def test_a_step_shows_what_was_committed(self, browse, pair):
        dom = browse(pair, "#step=2")
        assert dom.shown(0) == ["The", " quick"]
        assert dom.shown(1) == [" quick", " brown", " fox"], "in any order"
        assert [t["data-call"] for t in dom.columns[0]] == list("123456")
        assert [t["data-pos"] for t in dom.columns[1]] == list("012345")
        assert [t["text"] for t in dom.columns[0] if "now" in t["class"]] == [" quick"]
        assert all(t.get("aria-hidden") == "true" for t in dom.columns[0][2:]), "what is open is not read aloud either"
        assert dom.body["data-step"] == "2" and dom.texts["at"] == "call 2 of 6"

    def test_it_opens_at_the_end(self, browse, pair):
        dom = browse(pair)
        assert "".join(dom.shown(0)) == pair[0].text
        assert "".join(dom.shown(1)) == pair[1].text, "an open position stays open"
        assert dom.texts["at"] == "call 6 of 6"

    def test_paces(self, browse, pair):
        assert [len(column) for column in map(browse(pair, "#step=2&pace=own").shown, (0, 1))] == [2, 2]
        timed = browse(pair, "#step=2&pace=time")  # a third of the slowest's 4 s: the other is through
        assert (len(timed.shown(0)), len(timed.shown(1))) == (2, 5)
        assert timed.texts["at"] == "1.33 of 4.00 s"

    def test_what_a_model_writes_stays_text(self, browse):
        # None of these may make an element, run, or end the data early.
        nasty = ["</script><script>document.title='pwned'</script>", "<img src=x onerror=\"document.title='pwned'\">"]
        nasty += ["<!--", "<script>", "&lt;", "\u2028", "{{data}}", "'\"`${1}", "\n\t\n", "", "🎉", "<b>"]
        calls = tuple(range(1, len(nasty) + 1))
        trace = Trace(nasty[1], nasty[0], tuple(nasty), calls, len(nasty), title=nasty[0], model=nasty[1])
        dom = browse([trace])
        assert [t["text"] for t in dom.columns[0]] == nasty
        tags = [tag for tag, _ in dom.elements]
        assert tags.count("script") == 3 and not {"img", "b"} & set(tags)  # 3: data, page and the fixture's own
        assert dom.texts["columns"].startswith(nasty[0])
        assert not any("onerror" in attrs for _, attrs in dom.elements)

    def test_keys_mouse_and_address(self, browse, pair):
        script = """
          const seen = [], key = (key) => {
            document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
            seen.push(Number(slider.value));
          };
          ["Home", "ArrowRight", "ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowLeft", "End", "ArrowRight"].forEach(key);
          const spans = columns[0].spans;
          spans[3].dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
          const tipped = tip.textContent, box = tip.getBoundingClientRect();
          spans[3].dispatchEvent(new MouseEvent("click", { bubbles: true }));
          const clicked = Number(slider.value);
          columns[0].spans[5].dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
          document.body.dataset.report = JSON.stringify({ seen, tipped, clicked, gone: tip.hidden,
            inside: box.left >= 0 && box.top >= 0 && box.right <= innerWidth && box.width > 0 });
        """
        report = browse(pair, script=script).report
        assert report["seen"] == [0, 1, 2, 1, 0, 0, 6, 6]
        assert report["tipped"] == '" fox"position 4 · call 4 of 6 · alone'
        assert report["clicked"] == 4 and report["inside"]
        assert report["gone"], "an open token tells nothing"

    def test_it_plays_from_the_start_to_the_end(self, browse, pair):
        script = """
          const steps = new Set(), button = $("play");
          button.click();
          const watch = setInterval(() => {
            steps.add(Number(slider.value));
            if (button.getAttribute("aria-pressed") === "true") return;
            clearInterval(watch);
            const label = button.getAttribute("aria-label");
            document.body.dataset.report = JSON.stringify({ steps: [...steps], label });
          }, 20);
        """
        assert browse(pair, script=script).report == {"steps": [0, 1, 2, 3, 4, 5, 6], "label": "Play"}

    def test_charts_hold_every_token_and_every_call(self, browse, pair):
        charts, marks = [], {}
        for tag, attrs in browse(pair, "#step=2").elements:
            if tag == "svg" and attrs.get("role") == "img":
                charts.append(attrs["aria-label"])
            if tag == "rect":
                marks.setdefault(charts[-1], []).append((int(attrs["data-at"]), "later" in attrs.get("class", "")))
        assert len(charts) == len(marks) == 4
        assert [call for call, _ in marks[charts[2]]] == [3, 1, 1, 2, 3], "decode order, without the open position"
        assert charts[3].endswith("threshold: 2, 1, 2")
        assert all(later == (call > 2) for drawn in marks.values() for call, later in drawn)

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_reads_in_both_schemes(self, browse, scheme):
        n = 2 * len(CALLS)
        trace = Trace("ar", "", ("word ",) * n, tuple(range(1, n + 1)), calls=n)
        script = """
          const rgb = (c) => c.match(/[\\d.]+/g).map((x) => (c.startsWith("rgb") ? x / 255 : Number(x)));
          const light = (c) => rgb(c).slice(0, 3).map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4))
            .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0.05);
          const worst = {};
          for (const mode of ["call", "order"]) {
            document.body.dataset.colour = mode;
            const ratios = columns[0].spans.map((span) => {
              const style = getComputedStyle(span), pair = [light(style.color), light(style.backgroundColor)];
              return Math.max(...pair) / Math.min(...pair);
            });
            worst[mode] = Math.min(...ratios);
          }
          worst.paper = light(getComputedStyle(document.body).backgroundColor);
          document.body.dataset.report = JSON.stringify(worst);
        """
        dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
        report = browse([trace], "", script, *dark).report
        assert (report["paper"] < 0.1) == (scheme == "dark")
        assert min(report["call"], report["order"]) >= 4.5, "WCAG AA"
