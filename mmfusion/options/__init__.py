"""Every option of mmfusion, once: what an option is, the table of all of them, and how values are put together.

The command line, the options block of a bundle, ``options.json`` and the "did you mean" of a misspelt name are
all made from :data:`OPTIONS`, so that they cannot drift apart. Functions take the same names as keyword arguments.
"""

from mmfusion.options.option import Option, nearest, unknown
from mmfusion.options.settle import Settings, resolve, settle
from mmfusion.options.table import GROUPS, LATER, OPTIONS

__all__ = ["GROUPS", "LATER", "OPTIONS", "Option", "Settings", "nearest", "resolve", "settle", "unknown"]
