from django.contrib.auth.hashers import PBKDF2PasswordHasher


class DemoHasher(PBKDF2PasswordHasher):
    """PBKDF2 at a thousandth of its cost. Only for accounts whose password is public."""

    algorithm = "pbkdf2_sha256_demo"
    iterations = 1000
