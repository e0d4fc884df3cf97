"""What runs at each site: the bundle's own training, a few epochs at a time, between two averages.

NVFLARE starts it. It receives the averaged weights, judges them on the site's validation cases, trains on the site's
training cases, and sends weights and a handful of numbers (``judging.NUMBERS``). The optimizer, the schedule of the
learning rate and every case stay here. The last round trains nothing: it judges the final weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nvflare.client as flare
from agreement import read_agreement
from judging import counted, judged
from monai.bundle import ConfigWorkflow

from mmfusion.bundle import TEMPLATE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agreement", type=Path, required=True, help="what the sites agreed on")
    parser.add_argument("--cohort", type=Path, required=True, help="the site's folder that mmfusion prepare wrote")
    parser.add_argument("--run", type=Path, required=True, help="the site's own folder to write")
    parser.add_argument("--bundle", type=Path, default=TEMPLATE, help="a bundle other than mmfusion's own template")
    given = parser.parse_args()
    agreement = read_agreement(given.agreement)

    flare.init()
    workflow = ConfigWorkflow(
        str(given.bundle / "configs" / "train.yaml"),
        logging_file=False,
        workflow_type="train",
        cohort=str(given.cohort),
        run_dir=str(given.run),
        **agreement.overrides(given.bundle),
    )
    workflow.initialize()
    study, network, device, trainer, loader = (
        workflow.parser.get_parsed_content(name)
        for name in ("study", "network", "device", "train#trainer", "validate#dataloader")
    )
    numbers = counted(study)
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        network.load_state_dict(received.params)
        numbers |= judged(network, study, loader, device)
        if received.current_round < agreement.rounds:
            trainer.state.max_epochs = (received.current_round + 1) * agreement.local_epochs
            trainer.run()  # goes on where it stopped
        weights = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
        flare.send(flare.FLModel(params=weights, meta={"numbers": numbers}))
    workflow.finalize()


if __name__ == "__main__":
    main()
