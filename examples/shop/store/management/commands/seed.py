"""Make the demonstration data: tables, products, accounts. Again and again if need be."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.core.management import BaseCommand, call_command

from store.models import Product

PASSWORD = "demo"
USERS = 40
PRODUCTS = [
    ("teapot", "Teapot", "Short and stout.", "24.90", 900),
    ("cup", "Cup", "Holds what the teapot pours.", "6.50", 250),
    ("kettle", "Kettle", "Whistles when it is done waiting.", "39.00", 1400),
    ("green-tea", "Green tea", "A hundred grams of leaves.", "8.20", 120),
    ("black-tea", "Black tea", "A hundred grams of stronger leaves.", "7.40", 120),
    ("strainer", "Strainer", "Keeps the leaves where they belong.", "4.90", 60),
    ("tray", "Tray", "Carries eight cups, never more.", "18.00", 700),
    ("hourglass", "Hourglass", "Three minutes of sand.", "12.00", 180),
    ("honey", "Honey", "From the beekeeper next door.", "9.80", 500),
    ("biscuits", "Biscuits", "A tin of two dozen.", "5.60", 400),
    ("tablecloth", "Tablecloth", "Linen, washable.", "32.00", 600),
    ("teaspoons", "Teaspoons", "Half a dozen.", "15.00", 200),
]


class Command(BaseCommand):
    help = "Migrate, then add the demonstration data that is not there yet."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--no-migrate", action="store_true", help="the tables are there")

    def handle(self, *args: Any, **options: Any) -> None:
        if not options["no_migrate"]:
            call_command("migrate", interactive=False, verbosity=0)
        for slug, name, description, price, grams in PRODUCTS:
            Product.objects.get_or_create(
                slug=slug,
                defaults={
                    "name": name,
                    "description": description,
                    "price": price,
                    "grams": grams,
                },
            )
        users = get_user_model()
        if not users.objects.filter(username="demo").exists():
            users.objects.create_superuser("demo", "demo@example.org", PASSWORD)
        password = make_password(PASSWORD)  # one for all: forty would only take longer
        names = [f"user{number:02}" for number in range(1, USERS + 1)]
        users.objects.bulk_create(
            [users(username=name, password=password) for name in names], ignore_conflicts=True
        )
        if options["verbosity"]:
            self.stdout.write(
                f"seeded: {Product.objects.count()} products, {users.objects.count()} accounts"
            )
