"""What takes a bundle elsewhere: its card on the Hugging Face Hub, MONAI Label, MONAI Deploy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from local_hub import local_hub

from mmfusion.bundle import write_model_card
from mmfusion.errors import CohortError

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "bundles" / "pet_ct_mr_fusion_classification"


# Hugging Face


@pytest.fixture
def bundle(tmp_path):
    """A bundle with weights, in a folder of its own."""
    folder = shutil.copytree(PUBLISHED, tmp_path / "fusion", ignore=shutil.ignore_patterns("models"))
    (folder / "models").mkdir()
    (folder / "models" / "model.pt").write_bytes(b"weights")
    return folder


@pytest.fixture
def hub(monkeypatch):
    """What a hub on this machine was sent, and nothing that could reach another one."""
    library = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    with local_hub() as (url, files):
        monkeypatch.setattr(library.constants, "ENDPOINT", url)
        yield files


def metadata_of(bundle, **changed):
    """Change entries of a bundle's metadata; None takes one out."""
    path = bundle / "configs" / "metadata.json"
    facts = json.loads(path.read_text()) | changed
    path.write_text(json.dumps({name: value for name, value in facts.items() if value is not None}))


def test_the_card_is_the_front_matter_the_page_and_the_facts(bundle):
    metadata_of(bundle, version="3.2.1")
    text = write_model_card(bundle).read_text()
    front, rest = text.split("---\n\n", 1)
    assert front.startswith("---\nlicense: apache-2.0\nlibrary_name: monai\npipeline_tag: image-classification\n")
    assert rest.startswith((bundle / "docs" / "README.md").read_text().strip() + "\n\n## Facts\n")
    assert "| version | 3.2.1 |" in text and "| modalities | ct, pet, mr |" in text
    assert "| classes | negative, positive |" in text and "not a medical device |" in text


def test_the_hubs_own_parser_reads_the_card(bundle, hub):
    from huggingface_hub import ModelCard

    card = ModelCard.load(write_model_card(bundle))
    card.validate()
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "monai")
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.tags == ["monai", "medical", "mmfusion", "multimodal", "3d", "ct", "pet", "mr"]


def test_an_unknown_license_is_pointed_to_and_not_guessed(bundle, hub):
    from huggingface_hub import ModelCard

    (bundle / "LICENSE").write_text("All rights reserved.")
    data = ModelCard.load(write_model_card(bundle)).data.to_dict()
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "see-license", "LICENSE")


def test_the_layout_is_that_of_push_to_hf_hub(bundle, hub):
    from huggingface_hub import HfApi
    from monai.bundle import push_to_hf_hub

    push_to_hf_hub("someone/fusion", "fusion", str(bundle.parent), token="none", version="0.1.0")
    by_monai = dict(hub)
    hub.clear()
    write_model_card(bundle)
    HfApi(token="none").upload_folder(repo_id="someone/fusion", folder_path=bundle)
    assert set(hub) >= {"README.md", "LICENSE", "docs/README.md", "configs/metadata.json", "models/model.pt"}
    assert hub["README.md"] == (bundle / "README.md").read_bytes()
    assert hub | {"README.md": b""} == by_monai | {"README.md": b""}
    assert b"pipeline_tag" in hub["README.md"] and b"pipeline_tag" not in by_monai["README.md"]


def test_a_card_needs_the_files_and_entries_that_it_shows(bundle):
    metadata_of(bundle, intended_use=None)
    with pytest.raises(CohortError, match=r"metadata.json has no entry 'intended_use': a model card needs it. Add it"):
        write_model_card(bundle)
    (bundle / "LICENSE").unlink()
    with pytest.raises(CohortError, match=r"fusion has no LICENSE: a model card needs it. Add it, or check the path"):
        write_model_card(bundle)
