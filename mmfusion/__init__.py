"""mmfusion: from PET, CT and MR as the scanner wrote them to a diagnosis probability with its evidence.

A study becomes cases, a case becomes one tensor, a tensor becomes a probability with its evidence.
Every step is a room of its own and also works alone; CONTRIBUTING.md has the map.
Importing this package is cheap: rooms are imported by their own names (``from mmfusion.io import load_volume``).

Research use only: nothing here is a medical device.
"""

__version__ = "0.1.0"
