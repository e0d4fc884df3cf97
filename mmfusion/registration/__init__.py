"""Which motion brings one volume onto another, and whether to believe it: volumes in, :class:`Registration` out."""

from mmfusion.registration.align import INITS, KINDS
from mmfusion.registration.register import Alternative, Registration, measure, register, register_many
from mmfusion.registration.similarity import mutual_information
from mmfusion.registration.template import TEMPLATES, Template, brain_mask, register_to_template, template

__all__ = [
    "register",
    "register_many",
    "measure",
    "Registration",
    "Alternative",
    "KINDS",
    "INITS",
    "mutual_information",
    "register_to_template",
    "brain_mask",
    "template",
    "Template",
    "TEMPLATES",
]
