"""The FiftyOne plugin: registers the operators and panels of fiftyone-regioncap."""

import os
import sys

# A plugin folder is not installed by FiftyOne, so the package beside this file may be
# importable only from here; an installed one wins.
sys.path.append(os.path.dirname(os.path.abspath(__file__)))

from .operators import OPERATORS


def register(plugin):
    """Registers every operator with FiftyOne.

    Args:
        plugin: the plugin context that FiftyOne passes in.
    """
    for operator in OPERATORS:
        plugin.register(operator)
