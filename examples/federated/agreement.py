"""What the sites of a federation have agreed on: one small file of plain data, the same at the server and each site."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from mmfusion.bundle import TEMPLATE
from mmfusion.bundle.given import refuse_unknown
from mmfusion.errors import OptionError
from mmfusion.networks.decision import DecisionRule
from mmfusion.networks.trained import fitted_heads
from mmfusion.options import GROUPS, resolve
from mmfusion.predict import Model

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Agreement:
    """Who trains what, for how long.

    Attributes:
        modalities: the network's channels, in order; a site may lack some of them altogether.
        classes: class labels, in the order of the outputs; each site has cases of all.
        rounds: how often the weights are averaged.
        local_epochs: passes over a site's own cases between two averages.
        options: further entries of the bundle's ``train.yaml``: how cases are prepared, the network, training.
    """

    modalities: tuple[str, ...]
    classes: tuple[str, ...]
    rounds: int
    local_epochs: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if min(self.rounds, self.local_epochs) < 1:
            raise OptionError(f"rounds and local_epochs start at 1, found {self.rounds} and {self.local_epochs}")
        network = self.model().build()
        if heads := fitted_heads(network):
            raise OptionError(
                f"the head {type(heads[0][0]).__name__} is fitted on cases of all sites at once, which no site has; "
                "agree on linear"
            )
        rule = getattr(network, "rule", None)
        if isinstance(rule, DecisionRule) and rule.learns:
            raise OptionError(
                f"the rule {type(rule).__name__} is fitted on all validation cases at once, which no site has; "
                "agree on mean, max, majority or product"
            )
        if (given := self.options.get("threshold_rule", "prevalence")) != "prevalence":
            raise OptionError(
                f"threshold_rule is {given}, but the threshold of a federation is the prevalence, as no site has all "
                "validation cases; leave threshold_rule out"
            )

    @property
    def epochs(self) -> int:
        """Passes over its own cases that each site makes in all."""
        return self.rounds * self.local_epochs

    def model(self, training_prior: Sequence[float] = (), target_prior: Sequence[float] = ()) -> Model:
        """What inference needs to know beside the weights; without priors, all classes are taken as equally frequent.

        The threshold of two classes is the target prior, as in a training with ``threshold_rule`` prevalence.

        Raises:
            OptionError, NetworkError: an option that does not exist or does not fit.
        """
        equal = (1 / len(self.classes),) * len(self.classes)
        shares = tuple(target_prior) or equal
        network = {name: value for name, value in self.options.items() if name in GROUPS["network"]}
        return Model(
            modalities=self.modalities,
            classes=self.classes,
            network=resolve(network, "network"),
            case=self.case,
            training_prior=tuple(training_prior) or equal,
            target_prior=shares,
            threshold=shares[1] if len(shares) == 2 else None,
        )

    @property
    def case(self) -> dict[str, Any]:
        """How every site prepares its cases: the group ``case`` of the options, defaults included."""
        given = {name: value for name, value in self.options.items() if name in GROUPS["case"]}
        return resolve({**given, "modalities": list(self.modalities)}, "case")

    def overrides(self, bundle: Path = TEMPLATE) -> dict[str, Any]:
        """Entries of the bundle's ``train.yaml`` for a site: all that is agreed, and no stop before the end.

        How cases are prepared is given in full, so that a cohort prepared otherwise is refused where it lies.

        Raises:
            OptionError: an option that the bundle does not have.
        """
        config = yaml.safe_load((bundle / "configs" / "train.yaml").read_text())
        refuse_unknown(self.options, config)
        return {
            **{name: value for name, value in self.case.items() if value is not None},
            **self.options,
            "modalities": list(self.modalities),
            "classes": list(self.classes),
            "epochs": self.epochs,  # the learning rate goes through its one cycle over all rounds
            "patience": self.epochs,  # no site stops alone
            "val_interval": self.epochs + 1,  # the averaged weights are judged, not a site's own
        }

    def initial(self) -> torch.nn.Module:
        """The network that all start from, drawn with the agreed seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.options.get("seed", 0))
            return self.model().build()


def read_agreement(path: str | Path) -> Agreement:
    """Read a file such as ``agreement.yaml``.

    Raises:
        OptionError: an entry is missing, or an option does not fit.
    """
    given = yaml.safe_load(Path(path).read_text())
    own = ("modalities", "classes", "rounds", "local_epochs")
    if lost := [name for name in own[:3] if not given.get(name)]:
        raise OptionError(f"{path} has no {', '.join(lost)}; the sites must agree on modalities, classes and rounds")
    return Agreement(
        modalities=tuple(given["modalities"]),
        classes=tuple(str(name) for name in given["classes"]),
        rounds=int(given["rounds"]),
        local_epochs=int(given.get("local_epochs", 1)),
        options={name: value for name, value in given.items() if name not in own},
    )


def write_agreement(agreement: Agreement, path: str | Path) -> Path:
    """Write an agreement for :func:`read_agreement`."""
    facts = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(agreement).items()}
    options = facts.pop("options")
    Path(path).write_text(yaml.safe_dump({**facts, **options}, sort_keys=False))
    return Path(path)
