"""The FiftyOne plugin: registers the operators and panels of fiftyone-regioncap."""

import os
import sys

# A plugin folder is not installed by FiftyOne, so the package beside this file may be
# importable only from here; an installed one wins.
sys.path.append(os.path.dirname(os.path.abspath(__file__)))


def register(plugin):
    """Registers every operator with FiftyOne.

    Where a package is missing, one operator that says so is registered in their place:
    FiftyOne shows nothing at all of a plugin that can't be imported.

    Args:
        plugin: the plugin context that FiftyOne passes in.
    """
    try:
        from .operators import OPERATORS as operators
    except ImportError as error:
        from ._missing import explaining

        operators = (explaining(error),)
    for operator in operators:
        plugin.register(operator)
