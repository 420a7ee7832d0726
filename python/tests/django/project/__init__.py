"""A Django project of the kind layby's users have, small: what tests/django drives."""
