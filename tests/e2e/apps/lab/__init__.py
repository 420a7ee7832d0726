"""The tests' own part of the shop: what its pages do not show, and views that misbehave."""
