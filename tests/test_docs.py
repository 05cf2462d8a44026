"""What the documentation says: examples run, commands parse, links lead somewhere, numbers are recorded."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.main import get_command

import test_evasions
import test_poisons
from miscue.cleaners import CLEANERS
from miscue.cli import app
from miscue.cli import attack as cli_attack
from miscue.cli import poison as cli_poison
from miscue.cli.options import method_command
from miscue.data import Data, floats
from miscue.defences import LOSSES
from miscue.dice import Dice
from miscue.evasions import EVASIONS
from miscue.explainers import EXPLAINERS
from miscue.hardness import HARDNESS
from miscue.marks import MARKS
from miscue.poisons import NOTHING_TO_SET, POISONS, PRESETS
from miscue.readers import read
from miscue.tables import TABLES
from miscue.victims import victim

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(DOCS)): path for path in sorted(DOCS.rglob("*.md")) if "_build" not in path.parts}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
WRITTEN = {name: text for name, text in TEXTS.items() if name != "results.md"}
FENCE = re.compile(r"^```(.*?)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SHELLS = ("", "bash", "console", "sh")


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages."""
    return [code for language, code in FENCE.findall(text) if language in languages]


def inline(text: str) -> list[str]:
    """What stands between single backticks, outside the fences."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of each `miscue` command line in the blocks of a page, less the first."""
    for code in blocks(text, *SHELLS):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words[:1] == ["miscue"]:
                yield words[1:]


def chosen(words: list[str]) -> tuple[Any, list[str]]:
    """The command that some words begin with, and the words that are left."""
    command: Any = get_command(app)
    rest = list(words)
    while hasattr(command, "commands") and rest:
        assert rest[0] in command.commands, f"there is no miscue {' '.join(words)}"
        command = command.commands[rest.pop(0)]
    return command, rest


def options(command: Any) -> set[str]:
    """All options of a command and of those below it."""
    own = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return own.union(*map(options, getattr(command, "commands", {}).values()), {"--help", "--version"})


def run(name: str, examples: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The examples of a page as a module of their own: they share their names."""
    page = ModuleType(PAGES[name].stem.replace("-", "_"))
    monkeypatch.setitem(sys.modules, page.__name__, page)
    for number, code in enumerate(examples, start=1):
        exec(compile(code, f"{name}, example {number}", "exec"), vars(page))
    return page


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if blocks(text, "python")])
def test_the_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(name, blocks(TEXTS[name], "python"), monkeypatch)


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The methods of the page on adding one, entered in the tables as it says."""
    definitions = [code for code in blocks(TEXTS["adding.md"], "python") if "def " in code]
    page = run("adding.md", definitions, monkeypatch)
    for table, name, entry in (
        (MARKS, "patterns", page.Patterns),
        (POISONS, "class-noise", page.class_noise),
        (PRESETS, "class-noise", NOTHING_TO_SET),
        (test_poisons.QUICK, "class-noise", {"eps": 0.3}),
        (test_evasions.BATTERY, "simba", partial(page.simba, steps=40)),
    ):
        monkeypatch.setitem(table, name, entry)
    return page


def test_the_added_poison_passes_the_battery(added: Any, data: Data, tmp_path: Path) -> None:
    battery = test_poisons.TestBattery()
    given = {"name": "class-noise", "data": data, "tmp_path": tmp_path}
    checks = [getattr(battery, name) for name in dir(battery) if name.startswith("test_")]
    assert len(checks) > 5
    for check in checks:
        check(**{name: given[name] for name in inspect.signature(check).parameters})


def test_the_added_evasion_passes_the_battery(added: Any) -> None:
    digits = read("digits")
    model = victim("cnn-small", 10)(digits.train, Dice(0))
    images = floats(digits.test.images), digits.test.labels
    test_evasions.test_battery("simba", model, images)
    for parameter in model.parameters():
        parameter.grad = None
    test_evasions.test_the_model_is_as_before("simba", model, images)


def test_the_added_methods_get_their_commands(added: Any) -> None:
    common, do = cli_poison.common, cli_poison.poison_data
    made = method_command(common, added.class_noise, do, hidden=("resume",))
    assert {"data", "out", "eps", "block"} <= set(inspect.signature(made).parameters)
    made = method_command(cli_attack.common, added.simba, cli_attack.attack_data, hidden=cli_attack.HIDDEN)
    assert {"model", "data", "out", "eps", "steps"} <= set(inspect.signature(made).parameters)


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if list(command_lines(text))])
def test_the_command_lines_parse(name: str) -> None:
    for words in command_lines(TEXTS[name]):
        command, rest = chosen(words)
        command.make_context(words[0], rest)


def test_a_wrong_command_line_does_not_parse() -> None:
    for words in (["poison", "deepconfuse", "digits", "out", "--epsilon", "1"], ["train", "digits"]):
        command, rest = chosen(words)
        with pytest.raises(Exception, match=r"epsilon|Missing"):
            command.make_context(words[0], rest)


def test_commands_and_options_in_the_text_exist() -> None:
    known = options(get_command(app))
    for text in WRITTEN.values():
        for code in inline(text):
            if code.startswith("miscue "):
                words = [word for word in code.split()[1:] if word != "..." and not word.isupper()]
                command, rest = chosen(words)
                assert {word for word in rest if word.startswith("--")} <= options(command), code
            elif code.startswith("--"):
                assert code.split()[0] in known, code


def slugs(text: str) -> set[str]:
    """The anchors of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_somewhere() -> None:
    pages = {**PAGES, "../README.md": ROOT / "README.md", "../CONTRIBUTING.md": ROOT / "CONTRIBUTING.md"}
    for path in pages.values():
        text = re.sub(r"`[^`\n]+`", "", FENCE.sub("", path.read_text(encoding="utf-8")))
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if link.startswith(("https://", "http://")):
                continue
            place, _, anchor = link.partition("#")
            target = (path.parent / place).resolve() if place else path
            assert target.is_file(), f"{path.name}: {link}"
            assert not anchor or anchor in slugs(target.read_text(encoding="utf-8")), f"{path.name}: {link}"


def test_every_page_is_in_the_contents() -> None:
    listed = [line for name in ("index.md", "reference.md") for line in listing(TEXTS[name])]
    assert sorted(f"{name}.md" for name in listed) == sorted(set(TEXTS) - {"index.md"})


def listing(text: str) -> list[str]:
    """The pages that the toctrees of a page name."""
    trees = "\n".join(blocks(text, "{toctree}")).splitlines()
    return [line.rpartition("<")[2].rstrip(">") for line in trees if line and not line.startswith(":")]


def test_every_method_is_among_those_to_choose_from() -> None:
    names = {*POISONS, *EVASIONS, *EXPLAINERS, *HARDNESS, *CLEANERS, *LOSSES, *TABLES, "dpatch", "bounded"}
    said = {word for code in inline(TEXTS["choosing.md"]) for word in code.split()}
    assert names - said == set()


def test_means_and_deviations_are_recorded() -> None:
    records = [
        json.loads(line)
        for path in (ROOT / "results").glob("*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    known = [(record["mean"], record["std"]) for record in records if record["std"] is not None]
    known += [(100 - mean, std) for mean, std in known]
    said = {pair for text in WRITTEN.values() for pair in re.findall(r"(−?\d+\.\d+) ± (\d+\.\d+)", text)}
    assert len(said) > 10
    for mean, std in said:
        digits = len(mean.partition(".")[2])
        near, value = 0.51 * 10**-digits, float(mean.replace("−", "-"))
        assert any(abs(m - value) <= near and abs(s - float(std)) <= near for m, s in known), f"{mean} ± {std}"


def test_the_page_of_results_is_that_of_the_records() -> None:
    place = importlib.util.spec_from_file_location("record", ROOT / "scripts" / "record.py")
    record = importlib.util.module_from_spec(place)
    place.loader.exec_module(record)
    assert record.page() == TEXTS["results.md"]


def test_the_site_builds(tmp_path: Path) -> None:
    if not all(map(importlib.util.find_spec, ("sphinx", "myst_parser", "furo"))):
        pytest.skip("Sphinx, MyST and furo are not installed: pip install 'miscue[docs]'")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "-d", tmp_path / "trees"]
    done = subprocess.run([*command, DOCS, tmp_path / "site"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in TEXTS:
        page = (tmp_path / "site" / name).with_suffix(".html").read_text(encoding="utf-8")
        assert not re.findall(r"<(?:link|script|img)[^>]*(?:src|href)=\"https?://", page), "all is on the site itself"
