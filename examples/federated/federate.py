"""Train one model at several sites without moving a case, in NVIDIA FLARE's simulator.

    python examples/federated/federate.py --agreement examples/federated/agreement.yaml --run RUN \\
        --site north=COHORT --site south=COHORT --site west=COHORT

RUN becomes a run folder with ``model.pt`` and ``model.json``, as ``train.yaml`` writes them. Below it, ``sites/NAME``
is what each site keeps for itself, with ``sent.jsonl``, all that left it; ``nvflare`` is the simulator's workspace.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from agreement import Agreement, read_agreement, write_agreement
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.client.config import ExchangeFormat
from nvflare.recipe import SimEnv, set_per_site_config
from server import Federation, OnlyNumbers

from mmfusion.errors import MmfusionError, OptionError
from mmfusion.files import RunFolder
from mmfusion.predict import load_model, save_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping


def federation(agreement: Agreement, cohorts: Mapping[str, Path], run: Path) -> FedAvgRecipe:
    """NVFLARE's job: its FedAvg with the average of ``averaging.py``, ``client.py`` at each site.

    Args:
        agreement: what the sites agreed on.
        cohorts: the prepared cohort folder of each site, by the site's name.
        run: the folder to write.

    Raises:
        OptionError: a path with a space in it, at which NVFLARE would cut it in two.
    """
    run = run.resolve()
    cohorts = {site: Path(folder).resolve() for site, folder in cohorts.items()}
    if odd := [str(path) for path in (run, *cohorts.values()) if len(str(path).split()) > 1]:
        raise OptionError(f"NVFLARE cannot take paths with spaces, found '{odd[0]}'; choose another folder")
    agreement.overrides()  # an option that does not exist is refused before anything starts
    RunFolder(run).claim()  # refuses a folder that is not ours
    (run / "sites").mkdir(exist_ok=True)
    agreed = write_agreement(agreement, run / "agreement.yaml")
    save_tensors(agreement.initial().state_dict(), run / "initial.pt")
    model = agreement.model()
    shape = {"modalities": list(model.modalities), "num_classes": len(model.classes), **model.network}
    recipe = FedAvgRecipe(
        name="federation",
        model={"class_path": "mmfusion.networks.build.build", "args": shape},
        initial_ckpt=str(run / "initial.pt"),
        min_clients=len(cohorts),
        num_rounds=agreement.rounds + 1,  # the last one only judges
        train_script=str(Path(__file__).with_name("client.py")),
        aggregator=Federation(str(agreed), str(run)),
        server_expected_format=ExchangeFormat.PYTORCH,
        key_metric="",
    )
    arguments = {
        site: f"--agreement {agreed} --cohort {cohort} --run {run / 'sites' / site}" for site, cohort in cohorts.items()
    }
    set_per_site_config(recipe, {site: {"train_args": one} for site, one in arguments.items()})
    for site in cohorts:
        record = run / "sites" / site / "sent.jsonl"
        record.unlink(missing_ok=True)  # of an earlier federation in this folder
        guard = OnlyNumbers(str(agreed), str(record))
        recipe.add_client_output_filter(guard, tasks=["train"], clients=[site])
    return recipe


def simulate(recipe: FedAvgRecipe, sites: list[str], run: Path) -> Path:
    """Run the job, each site in a process of its own; returns the run folder.

    Raises:
        MmfusionError: the simulation ended without a model; its last error is in the message.
    """
    RunFolder(run).move_away()
    workspace = run.resolve() / "nvflare"
    with contextlib.suppress(RuntimeError):  # NVFLARE's says no more than that it failed
        recipe.run(SimEnv(clients=sites, workspace_root=str(workspace)))
    if not (run / "model.json").is_file():
        raise MmfusionError(f"the federation ended without a model. {_why(workspace)}")
    load_model(run)
    return run


def _why(workspace: Path) -> str:
    """The first error of ours in the logs of the sites and the server."""
    for log in sorted(workspace.glob("*/*/log.txt")):
        for line in log.read_text().splitlines():
            if line.startswith("mmfusion.errors."):
                return f"{log.parent.name}: {line.partition(': ')[2]}"
    return f"See the files log.txt in {workspace}"


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--agreement", type=Path, required=True, help="what the sites agreed on")
    parser.add_argument("--run", type=Path, required=True, help="the folder to write")
    parser.add_argument("--site", action="append", required=True, metavar="NAME=COHORT", help="one for each site")
    given = parser.parse_args(arguments)
    cohorts = {name: Path(folder) for name, _, folder in (one.partition("=") for one in given.site)}
    try:
        recipe = federation(read_agreement(given.agreement), cohorts, given.run)
        print("model:", simulate(recipe, list(cohorts), given.run) / "model.pt")
    except MmfusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
