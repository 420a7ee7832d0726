"""An application that cannot be imported."""

raise RuntimeError("the shop burnt down")
