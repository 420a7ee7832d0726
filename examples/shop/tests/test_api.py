"""The JSON shop: what an answer tells, what is written, what is refused."""

from __future__ import annotations

import time
from unittest import mock

from django.db import connection

from store import checkout
from store.models import Order

from .base import ShopTest


class CheckoutTest(ShopTest):
    def test_a_checkout_answers_with_what_belongs_to_it(self) -> None:
        self.log_in("user07")
        status, answer = self.buy(token={"any": 1}, name="Ada", zip="80331")
        order = Order.objects.get(reference="r1")
        self.assertEqual(status, 200)
        self.assertEqual(answer["order"], order.pk)
        self.assertEqual(answer["token"], {"any": 1})
        self.assertEqual((answer["status"], answer["total"]), ("paid", "49.80"))
        self.assertEqual((answer["user"], answer["language"]), ("user07", "en"))
        self.assertEqual(answer["messages"], ["Thank you, Ada! It is paid."])
        self.assertEqual(answer["delivery_days"], 2)
        self.assertEqual((order.status, order.user.username), ("paid", "user07"))
        self.assertEqual(order.charge, answer["charge"])
        self.assertEqual(self.ledger("r1"), ["started", "finished"])
        self.assertEqual(self.services.charges(), {"r1": 1})

    def test_the_services_are_asked_side_by_side(self) -> None:
        began = time.monotonic()
        status, _ = self.buy(latency=400)
        self.assertEqual(status, 200)
        self.assertGreaterEqual(time.monotonic() - began, 0.39)
        self.assertEqual(self.services.counts()["most_held"], 3)

    def test_the_language_is_the_clients(self) -> None:
        self.client.defaults["HTTP_ACCEPT_LANGUAGE"] = "de-AT,de;q=0.9"
        _, answer = self.buy(name="Ada")
        self.assertEqual(answer["language"], "de")
        self.assertEqual(answer["messages"], ["Danke, Ada! Es ist bezahlt."])
        _, answer = self.buy()
        self.assertEqual(answer["messages"], ["Danke, liebe Kundschaft! Es ist bezahlt."])

    def test_a_second_run_would_be_seen(self) -> None:
        self.buy()
        self.buy()
        self.assertEqual(self.ledger("r1"), ["started", "finished"] * 2)
        self.assertEqual(Order.objects.filter(reference="r1").count(), 2)

    def test_inside_a_transaction_the_answer_is_the_same(self) -> None:
        seen = []
        real = checkout.payment_outcome

        def spy(result: object) -> object:
            seen.append(connection.in_atomic_block)
            return real(result)

        with mock.patch.object(checkout, "payment_outcome", spy):
            self.assertEqual(self.buy("/api/checkout/atomic")[0], 200)
            self.assertEqual(self.buy("/api/checkout", reference="r2")[0], 200)
        self.assertEqual(seen, [True, False])
        self.assertEqual(self.ledger("r1"), ["started", "finished"])
        self.assertEqual(self.services.charges(), {"r1": 1, "r2": 1})

    def test_a_bug_after_the_services_rolls_the_transaction_back(self) -> None:
        self.client.raise_request_exception = False
        with mock.patch.object(checkout, "payment_outcome", side_effect=ZeroDivisionError):
            for url in ("/api/checkout/atomic", "/api/checkout"):
                body = '{"reference": "r1", "lines": [{"product": "cup"}]}'
                with self.assertLogs("django.request", "ERROR"):
                    response = self.client.post(url, body, content_type="application/json")
                self.assertEqual(response.status_code, 500)
        # Of the one without a transaction, the order and its start are there to be looked into.
        self.assertEqual(self.ledger("r1"), ["started"])
        self.assertEqual(Order.objects.get(reference="r1").status, "open")

    def test_what_is_not_a_purchase_is_refused_and_leaves_no_trace(self) -> None:
        line = {"product": "teapot"}
        wrong: list[dict[str, object]] = [
            {"reference": ""},
            {"reference": "x" * 65},
            {"reference": "a\0b"},
            {"reference": 7},
            {"lines": []},
            {"lines": [{"product": "moon"}]},
            {"lines": [{"product": "teapot", "quantity": 0}]},
            {"lines": [{"product": "teapot", "quantity": True}]},
            {"lines": [line] * 51},
            {"card": "gold"},
            {"card": []},
            {"latency": "1"},
            {"latency": -1},
        ]
        for purchase in wrong:
            with self.subTest(purchase=purchase):
                status, answer = self.buy(**purchase)
                self.assertEqual(status, 400)
                self.assertTrue(answer["error"])
        for body in ("", "[]", "{"):
            response = self.client.post("/api/checkout", body, content_type="application/json")
            self.assertEqual(response.status_code, 400)
        self.assertEqual(self.client.get("/api/checkout").status_code, 405)
        self.assertEqual(Order.objects.count(), 0)
        self.assertEqual(self.services.charges(), {})


class FailureTest(ShopTest):
    """Each service fails in each way; the order ends as a shop would want it to."""

    def test_a_declined_card_fails_the_order(self) -> None:
        status, answer = self.buy(card="declined", reference="r9")
        self.assertEqual((status, answer["status"]), (402, "failed"))
        self.assertEqual(answer["messages"], ["Order r9 is not paid."])
        self.assertEqual(self.ledger("r9"), ["started", "finished"])
        self.assertEqual(self.services.charges(), {})

    def test_a_payment_service_that_answers_500_fails_the_order(self) -> None:
        status, answer = self.buy(card="broken")
        self.assertEqual((status, answer["status"]), (402, "failed"))

    def test_a_payment_whose_answer_is_lost_is_looked_into(self) -> None:
        for fault in ("reset", "cut", "garbage"):
            with self.subTest(fault=fault):
                self.services.set(payment={"fault": fault})
                status, answer = self.buy(reference=fault)
                self.assertEqual((status, answer["status"]), (202, "review"))
                self.assertEqual(self.services.charges()[fault], 1)
                self.assertNotIn("not paid", answer["messages"][0])

    def test_a_payment_that_takes_too_long_is_looked_into(self) -> None:
        self.services.set(payment={"fault": "stall"})
        with self.settings(SERVICES_TIMEOUT=0.3):
            status, answer = self.buy()
        self.assertEqual((status, answer["status"]), (202, "review"))

    def test_services_that_are_not_there_fail_the_order(self) -> None:
        with self.settings(SERVICES="http://127.0.0.1:1"):
            status, answer = self.buy()
        self.assertEqual((status, answer["status"]), (402, "failed"))
        self.assertEqual(self.ledger("r1"), ["started", "finished"])

    def test_without_shipping_the_order_stands(self) -> None:
        for shipping in ({"status": 503}, {"fault": "reset"}, {"fault": "garbage"}):
            with self.subTest(shipping=shipping):
                self.services.set(shipping=shipping)
                status, answer = self.buy()
                self.assertEqual((status, answer["status"]), (200, "paid"))
                self.assertIsNone(answer["delivery_days"])

    def test_without_a_verdict_somebody_looks_at_the_order(self) -> None:
        self.services.set(fraud={"status": 503})
        self.assertEqual(self.buy()[1]["status"], "review")
        self.services.reset()
        self.assertEqual(self.buy(zip="00000")[1]["status"], "review")


class SmallThingsTest(ShopTest):
    def test_a_sync_view_asks_shipping(self) -> None:
        response = self.client.get("/api/quote", {"zip": "80331", "grams": "1000"})
        self.assertEqual(response.json()["quote"]["price"], "4.90")
        self.assertEqual(self.client.get("/api/quote", {"grams": "x"}).status_code, 400)
        self.services.set(shipping={"status": 500})
        with self.assertLogs("django.request", "ERROR"):
            response = self.client.get("/api/quote", {"zip": "80331", "grams": "1000"})
        self.assertEqual(response.status_code, 502)

    def test_healthz_needs_no_database(self) -> None:
        with self.assertNumQueries(0):
            response = self.client.get("/healthz")
        self.assertEqual((response.status_code, response.content), (200, b"ok\n"))

    def test_whoami_tells_user_and_language(self) -> None:
        self.assertIsNone(self.client.get("/whoami").json()["user"])
        self.log_in("user02")
        answer = self.client.get("/whoami", headers={"accept-language": "de"}).json()
        self.assertEqual((answer["user"], answer["language"]), ("user02", "de"))
