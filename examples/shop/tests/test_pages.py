"""The shop as a person with a browser meets it."""

from __future__ import annotations

import re

from django.test import Client

from store.models import Order

from .base import ShopTest

ADDRESS = {"name": "Ada", "street": "Main 1", "zip": "80331", "city": "Munich", "card": "good"}


class PagesTest(ShopTest):
    def fill_cart(self) -> None:
        self.client.post("/products/teapot/add/", {"quantity": 1})
        self.client.post("/products/cup/add/", {"quantity": 4})

    def test_the_product_pages_ask_no_service(self) -> None:
        page = self.client.get("/")
        self.assertContains(page, "Teapot")
        self.assertContains(page, "24.90 €")
        self.assertContains(self.client.get("/products/teapot/"), "Short and stout.")
        self.assertEqual(self.client.get("/products/moon/").status_code, 404)
        self.assertEqual(self.services.counts()["served"], {})

    def test_from_the_cart_to_the_order_page(self) -> None:
        self.fill_cart()
        self.assertContains(self.client.get("/cart/"), "50.90 €")
        form = self.client.get("/checkout/")
        reference = re.search(r'name="reference" value="(\w+)"', form.content.decode())[1]
        for url in ("/checkout/", "/checkout/atomic/"):
            with self.subTest(url=url):
                self.fill_cart()
                page = self.client.post(url, ADDRESS | {"reference": reference}, follow=True)
                self.assertContains(page, reference)
                self.assertContains(page, "Thank you, Ada! It is paid.")
                self.assertContains(page, "Delivered in 2 days.")
                self.assertContains(self.client.get("/cart/"), "Your cart is empty.")
        self.assertEqual(Order.objects.filter(reference=reference, status="paid").count(), 2)

    def test_a_declined_card_gets_a_clear_page_and_keeps_the_cart(self) -> None:
        self.fill_cart()
        given = ADDRESS | {"reference": "r1", "card": "declined"}
        page = self.client.post("/checkout/", given)
        self.assertContains(page, "Nothing was charged", status_code=402)
        self.assertContains(page, "(5)", status_code=402)
        self.assertEqual(Order.objects.get().status, "failed")

    def test_a_payment_that_got_lost_is_not_called_failed(self) -> None:
        self.fill_cart()
        given = ADDRESS | {"reference": "r1", "card": "lost"}
        page = self.client.post("/checkout/", given, follow=True)
        self.assertContains(page, "under review")
        self.assertContains(page, "We are looking at your order")

    def test_a_form_with_mistakes_comes_back(self) -> None:
        self.fill_cart()
        page = self.client.post("/checkout/", ADDRESS | {"reference": "r1", "city": ""})
        self.assertContains(page, "This field is required.", status_code=400)
        self.assertEqual(Order.objects.count(), 0)

    def test_an_empty_cart_cannot_be_checked_out(self) -> None:
        page = self.client.post("/checkout/", ADDRESS | {"reference": "r1"}, follow=True)
        self.assertContains(page, "Your cart is empty.")
        self.assertEqual(self.services.charges(), {})

    def test_the_whole_shop_speaks_german(self) -> None:
        self.client.post("/language/setlang/", {"language": "de"})
        self.assertContains(self.client.get("/"), "24,90 €")
        self.fill_cart()
        page = self.client.post("/checkout/", ADDRESS | {"reference": "r1"}, follow=True)
        self.assertContains(page, "Danke, Ada! Es ist bezahlt.")
        self.assertContains(page, "Lieferung in 2 Tagen.")
        self.assertContains(page, '<html lang="de">')

    def test_a_post_without_the_csrf_token_is_refused(self) -> None:
        client = Client(enforce_csrf_checks=True)
        page = client.get("/products/teapot/").content.decode()
        with self.assertLogs("django.security.csrf", "WARNING"):
            refused = client.post("/products/teapot/add/", {"quantity": 1})
        self.assertEqual(refused.status_code, 403)
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)[1]
        given = {"quantity": 1, "csrfmiddlewaretoken": token}
        self.assertEqual(client.post("/products/teapot/add/", given).status_code, 302)
        with self.assertLogs("django.security.csrf", "WARNING"):
            self.assertEqual(client.post("/checkout/", ADDRESS).status_code, 403)

    def test_an_order_is_shown_to_its_buyer_only(self) -> None:
        self.log_in("user01")
        self.fill_cart()
        page = self.client.post("/checkout/", ADDRESS | {"reference": "r1"})
        self.assertContains(self.client.get("/orders/"), "r1")
        self.assertEqual(self.client.get(page["location"]).status_code, 200)
        self.log_in("user02")
        self.assertEqual(self.client.get(page["location"]).status_code, 404)
        self.log_in("demo")
        self.assertEqual(self.client.get(page["location"]).status_code, 200)

    def test_log_in_and_out_with_the_seeded_password(self) -> None:
        given = {"username": "user40", "password": "demo"}
        page = self.client.post("/login/", given, follow=True)
        self.assertContains(page, "Log out user40")
        self.assertContains(self.client.post("/logout/", follow=True), "Log in")
        page = self.client.post("/login/", given | {"password": "wrong"})
        self.assertContains(page, "Please enter a correct username")

    def test_the_admin_is_there_with_its_style(self) -> None:
        self.log_in("demo")
        self.buy()
        self.assertContains(self.client.get("/admin/store/order/"), "r1")
        order = Order.objects.get()
        self.assertContains(self.client.get(f"/admin/store/order/{order.pk}/change/"), "Teapot")
        for name in ("admin/css/base.css", "store/shop.css"):
            style = self.client.get(f"/static/{name}")
            self.assertGreater(len(b"".join(style.streaming_content)), 100)

    def test_the_shipping_page_asks_and_says_so_when_nobody_answers(self) -> None:
        self.assertNotContains(self.client.get("/shipping/"), "does not answer")
        asked = {"zip": "80331", "grams": "500"}
        self.assertContains(self.client.get("/shipping/", asked), "Postal Owl takes 4.40 €.")
        with self.settings(SERVICES="http://127.0.0.1:1"):
            self.assertContains(self.client.get("/shipping/", asked), "does not answer")
