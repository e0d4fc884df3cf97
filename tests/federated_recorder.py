"""A filter at a site's door that writes down all that leaves, for test_examples_federated.py; NVFLARE imports it."""

import json
from pathlib import Path

import torch
from nvflare.apis.dxo import from_shareable
from nvflare.apis.filter import Filter


class Recorder(Filter):
    """Writes ``SITE_ROUND.pt``, the tensors of a message, and ``SITE_ROUND.json``, everything else in it."""

    def __init__(self, folder: str):
        super().__init__()
        self.folder, self._count = folder, 0

    def process(self, shareable, fl_ctx):
        message = from_shareable(shareable)
        name = f"{fl_ctx.get_identity_name()}_{self._count}"
        self._count += 1
        torch.save(dict(message.data), Path(self.folder) / f"{name}.pt")
        rest = {**shareable, "DXO": {**shareable["DXO"], "data": sorted(message.data)}}
        (Path(self.folder) / f"{name}.json").write_text(json.dumps(rest, default=repr))
        return shareable
