"""An operator in place of all others, where a package that they need is missing."""

import fiftyone.operators as foo
from fiftyone.operators import types

NAME = "install_requirements"
"""Name of the operator; part of the manifest, as FiftyOne registers no others."""

LABEL = "Region captions: install what is missing"


def explaining(error):
    """Makes the class of an operator that says what to install.

    Args:
        error: the error of the import.
    """
    missing = getattr(error, "name", None) or str(error)
    text = (
        f"The package {missing} is missing, so that the operators of "
        "fiftyone-regioncap can't be loaded. In a terminal, run "
        "`fiftyone plugins requirements @fiftyone-regioncap/regioncap --install`, and "
        "start FiftyOne again."
    )

    class InstallRequirements(foo.Operator):
        """Says what to install."""

        @property
        def config(self):
            """Configuration of the operator in the App."""
            return foo.OperatorConfig(name=NAME, label=LABEL, icon="error")

        def resolve_placement(self, ctx):
            """Returns a button above the grid."""
            button = types.Button(label=LABEL, icon="error", prompt=True)
            return types.Placement(types.Places.SAMPLES_GRID_ACTIONS, button)

        def resolve_input(self, ctx):
            """Returns the text."""
            inputs = types.Object()
            inputs.view("missing", types.Error(label=LABEL, description=text))
            return types.Property(inputs, view=types.View(label=LABEL))

        def execute(self, ctx):
            """Says it once more."""
            ctx.ops.notify(text, variant="error")

    return InstallRequirements
