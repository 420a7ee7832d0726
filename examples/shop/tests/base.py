from __future__ import annotations

import json
from typing import Any, ClassVar

from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.test import TransactionTestCase, override_settings

from services.running import RunningStub
from store.models import Ledger


class ShopTest(TransactionTestCase):
    """A seeded shop with its services running.

    Not a TestCase: that would wrap each test in a transaction of its own, and whether a
    transaction is open is just what some of these tests are about.
    """

    services: ClassVar[RunningStub]

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.services = RunningStub()
        cls.addClassCleanup(cls.services.close)
        cls.enterClassContext(override_settings(SERVICES=cls.services.url))

    def setUp(self) -> None:
        self.services.reset()
        call_command("seed", "--no-migrate", verbosity=0)

    def log_in(self, name: str) -> None:
        self.client.force_login(get_user_model().objects.get(username=name))

    def buy(self, url: str = "/api/checkout", **purchase: Any) -> tuple[int, dict[str, Any]]:
        body = {"reference": "r1", "lines": [{"product": "teapot", "quantity": 2}], **purchase}
        response = self.client.post(url, json.dumps(body), content_type="application/json")
        return response.status_code, response.json()

    def ledger(self, reference: str) -> list[str]:
        entries = Ledger.objects.filter(reference=reference)
        return list(entries.values_list("event", flat=True))
