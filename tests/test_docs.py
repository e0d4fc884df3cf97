"""The pages say what is there: links resolve, options exist with these defaults, errors and layers are complete."""

import configparser
import re
from pathlib import Path

import pytest
import yaml

from mmfusion import errors
from mmfusion.networks import combinations
from mmfusion.networks.conditioning import CONDITIONINGS
from mmfusion.networks.encoders import ENCODERS
from mmfusion.networks.heads import HEADS
from mmfusion.networks.losses import LOSSES
from mmfusion.networks.strategies import STRATEGIES
from mmfusion.options import GROUPS, OPTIONS

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not {"runs", "build", "dist", "node_modules"} & set(path.relative_to(ROOT).parts)
    and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)
BUNDLE = ROOT / "bundles" / "feature_fusion_classification"


def option_rows(page):
    """(name, default) of every row of the tables with the columns option, default, what."""
    rows, inside = [], False
    for line in (ROOT / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[:2] == ["option", "default"]:
            inside = True
        elif inside and line.startswith("| `"):
            rows.append((cells[0].strip("`"), cells[1]))
        elif not line.startswith("|"):
            inside = False
    return rows


def shown(value):
    """A default as the tables write it."""
    if value is None:
        return "–"
    if isinstance(value, list):
        return " ".join(map(shown, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, (int, float)) else value


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), flags=re.MULTILINE)
            slugs = {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_wraps(page):
    fenced = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fenced ^= line.startswith("```")
        free = fenced or line.startswith(("```", "|", "![")) or "](http" in line
        assert free or len(line) <= 120, f"{page.name} line {number} has {len(line)} characters"


@pytest.mark.parametrize(
    "page", ["docs/manifest.md", "docs/preparing.md", "docs/training.md", "docs/bundles.md", "docs/demo.md"]
)
def test_the_options_in_the_tables_exist_and_have_these_defaults(page):
    rows = option_rows(page)
    assert rows
    for name, default in rows:
        assert name in OPTIONS, f"{page} has an option {name}"
        assert default == shown(OPTIONS[name].default), f"{page}: {name}"


def test_every_option_is_in_a_table():
    pages = tuple(f"docs/{name}.md" for name in ("manifest", "preparing", "training", "bundles", "demo"))
    assert {name for page in pages for name, _ in option_rows(page)} == set(OPTIONS)
    assert {name for name, _ in option_rows("docs/preparing.md")} >= set(GROUPS["prepare"])


def test_training_md_has_every_option_of_the_configurations():
    text = (ROOT / "docs" / "training.md").read_text()
    for name in ("train", "evaluate", "inference"):
        config = (BUNDLE / "configs" / f"{name}.yaml").read_text()
        plain = yaml.safe_load(config[: config.index("# Pieces")])
        missing = [option for option in plain if f"`{option}`" not in text and option not in GROUPS["case"]]
        assert not missing, f"{name}.yaml has options that training.md does not name"


def test_every_error_is_explained():
    text = (ROOT / "docs" / "errors.md").read_text()
    rows = re.findall(r"^\| `(\w+Error)` \|", text, flags=re.MULTILINE)
    assert rows == errors.__all__
    tree = re.search(r"```\n(MmfusionError.*?)```", text, flags=re.DOTALL)
    assert tree and re.findall(r"\w+Error", tree[1]) == errors.__all__


def test_the_layers_are_those_of_the_contract():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    contract = config["importlinter:contract:layers"]["layers"].split("\n")
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text[text.index("### Layers") :]
    block = section.split("```")[1].strip().splitlines()
    written = [" | ".join(room for room in line.split(" | ") if not room.startswith("[")) for line in block]
    assert written == [line.strip() for line in contract if line.strip()]
    rooms = {path.stem for path in (ROOT / "mmfusion").iterdir() if path.is_dir() or path.suffix == ".py"}
    unbuilt = [room.strip("[]") for line in block for room in line.split(" | ") if room.startswith("[")]
    assert not rooms & set(unbuilt), "a room in brackets has been built"


def test_the_table_of_networks_is_complete():
    text = (ROOT / "docs" / "networks.md").read_text()
    for strategy, parts in combinations().items():
        operators = ", ".join(f"`{name}`" for name in parts["fusion"])
        assert f"| `{strategy}` | {_VIEW_WORDS[STRATEGIES[strategy].view]} | {operators} |" in text
        assert all(f"| `{name}` |" in text for name in parts["fusion"])
    for encoder, kind in ENCODERS.items():
        gives = ", ".join(view for view in ("vector", "tokens", "pyramid") if view in kind.views)
        assert re.search(rf"^\| `{encoder}` \|.*\| {gives} \|", text, flags=re.MULTILINE), f"{encoder}: {gives}"
    for table in (LOSSES, CONDITIONINGS, HEADS):
        assert all(f"`{name}`" in text for name in table)


_VIEW_WORDS = {"vector": "a vector", "tokens": "tokens", "pyramid": "a pyramid"}


def test_pictures_are_small():
    pictures = list((ROOT / "docs" / "pictures").iterdir())
    assert pictures and all(path.stat().st_size < 300_000 for path in pictures)
