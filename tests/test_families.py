"""The light tables of names: every row leads to what the networks use, and whole systems are what they say."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from mmfusion import families
from mmfusion.networks import build, conditioning, decision, encoders, heads, losses, m3t, operators, strategies, tokens
from mmfusion.options import GROUPS, OPTIONS, settle
from mmfusion.systems import SYSTEMS

BUNDLES = Path(__file__).parents[1] / "bundles"
USED = {
    "strategies": strategies.STRATEGIES,
    "encoders": {name: kind.make for name, kind in encoders.ENCODERS.items()},
    "fusion operators": operators.FEATURE_OPERATORS,
    "token operators": tokens.TOKEN_OPERATORS,
    "decision rules": decision.DECISION_RULES,
    "losses": {name: loss.term for name, loss in losses.LOSSES.items()},
    "heads": heads.HEADS,
    "conditionings": conditioning.CONDITIONINGS,
}


@pytest.mark.parametrize("family", families.FAMILIES)
def test_each_name_leads_to_the_part_that_networks_use(family):
    loaded = {name: part.load() for name, part in families.FAMILIES[family].items()}
    used = {name: made.func if isinstance(made, partial) else made for name, made in USED[family].items()}
    assert list(loaded.items()) == list(used.items())
    assert all(part.help[0].isupper() and part.help[-1] != "." for part in families.FAMILIES[family].values())


def test_the_tables_import_nothing_heavy():
    code = "import sys, mmfusion.options; print([n for n in ('torch', 'monai', 'numpy', 'yaml') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def network_of(system, modalities=("ct", "pet")):
    """The network that a system's row builds, without memory for its weights."""
    used = settle(("network", "bundle new"), ("call", {"system": system})).used
    with torch.device("meta"):
        return build(modalities=modalities, **{name: used[name] for name in GROUPS["network"]})


@pytest.mark.parametrize("name", SYSTEMS)
def test_each_system_can_be_built_and_says_where_it_is_from(name):
    row = SYSTEMS[name]
    assert set(row.options) <= set(OPTIONS) and row.provenance and row.help[0].isupper()
    assert bool(row.paper) == (row.year is not None) and (row.reconstructed or not row.paper)
    network_of(name)


@pytest.mark.parametrize(("system", "form"), [("m3t", "separate"), ("m3t_shared", "shared"), ("m3t_joint", "joint")])
def test_the_rows_of_m3t_build_what_the_function_builds(system, form):
    ours = network_of(system)
    with torch.device("meta"):
        expected = m3t(("ct", "pet"), form=form)
    assert str(ours) == str(expected)
    assert [(n, p.shape) for n, p in ours.named_parameters()] == [(n, p.shape) for n, p in expected.named_parameters()]


@pytest.mark.parametrize("name", ["input_fusion", "feature_fusion", "decision_fusion", "m3t_fusion"])
def test_the_rows_of_the_bundles_are_their_networks(name):
    text = (BUNDLES / f"{name}_classification" / "configs" / "train.yaml").read_text()
    given = yaml.safe_load(text[: text.index("# Pieces")])
    bundle = settle("network", ("file", {option: given.get(option) for option in GROUPS["network"]})).used
    assert {option: settle("bundle new", ("call", {"system": name})).used[option] for option in bundle} == bundle
