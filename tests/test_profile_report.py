"""The report of mote-profile in a real browser: it is drawn, quiet, and asks the network for nothing, whatever a profile holds."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_onnx_export
from PIL import Image

from mote_runtime.cli.profile import main
from mote_runtime.profile import units
from mote_runtime.profile.report import charts, render

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HOSTILE = "</style><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    export = tiny_onnx_export.write_export(folder / "tiny")
    output = folder / "profile"
    arguments = ["--max-new-tokens", "8", "--repetitions", "3", "--loads", "1", "--quiet"]
    assert main([str(export), "-o", str(output), *arguments]) == 0
    return output


@pytest.fixture
def document(profile: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((profile / "profile.json").read_text())
    return result


def browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page in a browser without a window; its console goes to stderr."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium is installed")
    command = [
        browser,
        *(
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
        ),
        *("--hide-scrollbars", "--enable-logging=stderr", "--log-level=0", "--virtual-time-budget=2000"),
        f"--user-data-dir={page.parent / 'browser'}",
        *options,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def console_messages(result: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in result.stderr.splitlines() if ":CONSOLE" in line]


def test_the_page_is_drawn_without_a_word_on_the_console(profile: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    shutil.copy(profile / "report.html", page)
    picture = tmp_path / "page.png"
    result = browse(page, "--dump-dom", f"--screenshot={picture}", "--window-size=1240,1800")
    assert console_messages(result) == []
    titles = re.findall(r"<h2>(.*?)</h2>", result.stdout)
    assert titles == [
        "Latency between tokens",
        "Where the time goes",
        "Share of the memory limit",
        "Inside the layers of experts",
        "Memory over time",
        "Load of the experts",
        "All figures",
        "Device, versions, settings",
    ]
    cells = re.findall(r'class="cell" rx="3"', result.stdout)
    assert len(cells) == tiny_onnx_export.LAYERS * tiny_onnx_export.EXPERTS
    assert result.stdout.count("<svg") >= 8
    assert "TernaryMoE" in result.stdout


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_are_drawn(profile: Path, tmp_path: Path, scheme: str) -> None:
    page, picture = tmp_path / "report.html", tmp_path / "page.png"
    shutil.copy(profile / "report.html", page)
    preference = {"light": "1", "dark": "0"}[scheme]
    browse(
        page,
        f"--screenshot={picture}",
        "--window-size=1240,1800",
        f"--blink-settings=preferredColorScheme={preference}",
    )
    image = Image.open(picture).convert("RGB")
    pixels = np.asarray(image, np.int16)
    assert pixels.shape == (1800, 1240, 3)
    corner = pixels[:8, :8].mean()
    assert corner > 230 if scheme == "light" else corner < 40
    saturation = pixels.max(axis=2) - pixels.min(axis=2)
    assert (saturation > 80).mean() > 0.004  # the bars


def test_a_refused_request_would_be_seen(profile: Path, tmp_path: Path) -> None:
    """The check on the console can fail: a picture from elsewhere is refused by the page's policy, and said."""
    text = (profile / "report.html").read_text()
    page = tmp_path / "report.html"
    page.write_text(text.replace("<main>", '<main><img src="http://127.0.0.1:9/x.png">'))
    (message,) = console_messages(browse(page, "--dump-dom"))
    assert "Content Security Policy" in message


def test_the_page_names_no_address_and_runs_nothing(profile: Path) -> None:
    text = (profile / "report.html").read_text()
    assert "default-src 'none'" in html.unescape(text)
    assert not re.search(r"<script|<link|<iframe|<object|<img|@import|url\(|https?://|\bon\w+=", text)


def test_what_comes_from_outside_is_text(document: dict[str, Any], tmp_path: Path) -> None:
    """Names of a device, a model and operators may hold anything."""
    run = document["runs"][0]
    run["label"] = run["model"]["name"] = run["record"]["runtime_version"] = run["record"]["isa"] = HOSTILE
    run["settings"]["prompt"] = document["device"]["processor"] = document["device"][HOSTILE] = HOSTILE
    document["versions"][HOSTILE] = document["created"] = HOSTILE
    document["command"] = [HOSTILE]
    document["energy"]["reason"] = HOSTILE
    for stage in run["breakdown"].values():
        for each in (*stage["operators"], *stage["phases"]):
            each["name"] = HOSTILE
    text = render(document)
    assert "<script" not in text
    assert "<img" not in text
    assert text.count("</style>") == 1
    page = tmp_path / "report.html"
    page.write_text(text)
    result = browse(page, "--dump-dom")
    assert console_messages(result) == []
    assert "<script" not in result.stdout.replace("&lt;script", "")


def test_a_profile_without_trace_or_steps_has_a_page(document: dict[str, Any]) -> None:
    run = document["runs"][0]
    run |= {"breakdown": None, "experts": None, "trace": None}
    document["memory_limit"] = None
    for each in run["record"]["repetitions"]:
        each |= {"token_ids": each["token_ids"][:1], "token_ms": each["token_ms"][:1], "generated_tokens": 1}
    run["record"]["memory"]["samples"] = []
    text = render(document)
    assert "All figures" in text
    assert "Latency between tokens" not in text
    assert "Memory over time" not in text


def test_figures_of_nothing_have_a_page(document: dict[str, Any]) -> None:
    """A clock that stands still, a system that tells no memory, phases shorter than a clock's step."""
    run = document["runs"][0]
    for each in run["record"]["repetitions"]:
        each["token_ms"] = [each["first_token_ms"]] * len(each["token_ms"])
    run["record"]["memory"]["samples"] = [[0.0, 0, 0], [0.0, 0, 0]]
    for stage in run["breakdown"].values():
        for phase in stage["phases"]:
            phase |= {"ms": 0.0, "bytes_per_sec": None}
    text = render(document)
    assert "Inside the layers" in text
    assert "Memory over time" in text


def test_a_model_without_our_operators_is_not_counted_among_the_experts(document: dict[str, Any]) -> None:
    without = json.loads(json.dumps(document["runs"][0]))
    choices = without["experts"]["choices_per_layer"]
    without["experts"] |= {"choices_per_layer": 0, "tokens": [[0] * 4] * len(without["experts"]["layers"])}
    document["runs"].insert(0, without)
    assert f"{choices} choices a layer" in render(document)


def test_axes_have_round_values_within_their_range() -> None:
    for low, high in ((0, 1), (0.3, 0.9), (0, 7321.5), (1e-4, 3e-4)):
        ticks = charts.axis_ticks(low, high)
        assert 2 <= len(ticks) <= 12
        assert ticks[0] >= low - 1e-12
        assert ticks[-1] <= high * (1 + 1e-9)
    assert charts.axis_ticks(1, 1) == [1]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "ms", "–"),
        (0.0, "ms", "0.00 ms"),
        (0.0123, "ms", "12.3 µs"),
        (1.234, "ms", "1.23 ms"),
        (123456.0, "ms", "123 s"),
        (1536, "bytes", "1.50 KiB"),
        (3 << 30, "bytes", "3.00 GiB"),
        (1234.5, "tokens/s", "1,234 tokens/s"),
    ],
)
def test_figures_are_read_as_people_do(value: float | None, unit: str, text: str) -> None:
    assert units.figure(value, unit) == text
