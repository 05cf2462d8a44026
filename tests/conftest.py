"""Small data sets that a network can learn in a second, and a browser to look at pages with."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from miscue.cli import app
from miscue.data import Data


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tests run side by side; one thread each is the fastest and makes repeats bitwise equal."""
    torch.set_num_threads(1)


def striped(n: int = 240, *, size: int = 12, channels: int = 1, classes: int = 3, seed: int = 0) -> Data:
    """Images whose class is the place of a bright stripe, under noise: real enough to learn and to generalise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    images = torch.randint(0, 90, (n, channels, size, size), generator=generator, dtype=torch.uint8)
    for i, label in enumerate(labels.tolist()):
        row = 1 + label * (size - 2) // classes
        images[i, :, row : row + 2] += 120
    return Data(images=images, labels=labels, classes=tuple("abcdefghij"[:classes]))


@pytest.fixture
def data() -> Data:
    """240 grey 12 x 12 images of 3 classes."""
    return striped()


def miscue(*words: str | Path, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "miscue", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def within(*words: str | Path, check: bool = True) -> Result:
    """The command in this process, which saves the seconds that a new one takes to start."""
    done = CliRunner().invoke(app, list(map(str, words)))
    if check:
        assert done.exit_code == 0, done.stderr
    return done


FLAGS = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the path")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=[*FLAGS.split(), "--no-first-run"])
        yield chromium
        chromium.close()


def look_at(browser: Any, path: Path, *, width: int, scheme: str, pictures: bool = True) -> None:
    """Open a page without a network, and see that all of it is there, fits the width and follows the colour scheme."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
    tab, trouble, requests = context.new_page(), [], []
    tab.on("console", lambda message: trouble.append(message.text))
    tab.on("pageerror", lambda error: trouble.append(str(error)))
    tab.on("requestfailed", lambda request: trouble.append(request.url[:80]))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(path.as_uri())
    tab.evaluate("document.querySelector('details').open = true")
    sizes = tab.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth, i.getBoundingClientRect().width])")
    wide = tab.evaluate("document.documentElement.scrollWidth")
    picture = Image.open(io.BytesIO(tab.screenshot()))
    context.close()
    assert trouble == []
    assert all(url.startswith(("file:", "data:")) for url in requests)
    assert bool(sizes) == pictures
    assert all(complete and natural > 0 and seen > 0 for complete, natural, seen in sizes)
    assert wide <= width
    colours = np.asarray(picture.convert("L")).astype(float)
    assert colours.std() > 10
    assert (np.median(colours) > 128) == (scheme == "light")
