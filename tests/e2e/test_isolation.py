"""What belongs to one request never reaches another, on whatever thread it goes on."""

from __future__ import annotations

import asyncio
import re

import pytest

from conftest import Starter
from support.client import Answer, Browser
from support.services import Services
from support.shop import PASSWORD, USERS, Shop
from support.story import eventually, story

THANKS = {"en": "Thank you, {}! It is paid.", "de": "Danke, {}! Es ist bezahlt."}
LOG_OUT = {"en": "Log out {}", "de": "{} abmelden"}


def secret(token: str) -> str:
    """The secret in one of Django's masked CSRF tokens: a mask, then the secret shifted by it."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    half = len(token) // 2
    pairs = zip(token[:half], token[half:], strict=True)
    return "".join(letters[(letters.find(b) - letters.find(a)) % len(letters)] for a, b in pairs)


class Buyer(Browser):
    """A logged-in user who speaks one of two languages and has a cart of its own."""

    def __init__(self, number: int, address: tuple[str, int]) -> None:
        super().__init__(address, language=("en", "de")[number % 2])
        self.user = f"user{number + 1:02}"
        self.name = f"Buyer {number}"
        self.quantity = number + 1
        self.reference = ""

    async def fill_cart(self) -> None:
        await self.log_in(self.user, PASSWORD)
        answer = await self.post("/products/cup/add/", quantity=str(self.quantity))
        assert answer.status == 302, answer.text
        await self.get("/cart/")  # which shows the message, so that it is gone
        form = await self.get("/checkout/")
        found = re.search(r'name="reference" value="(\w+)"', form.text)
        assert found is not None, form.text
        self.reference = found[1]

    async def buy(self, token: str | None = None) -> Answer:
        return await self.post(
            "/checkout/",
            token=token,
            reference=self.reference,
            name=self.name,
            street="Main 1",
            zip="80331",
            city="Munich",
            card="good",
        )

    async def assert_own(self, answer: Answer) -> None:
        """The order page that the checkout led to is ours, from its language to its token."""
        assert answer.status == 302, (self.user, answer.status, answer.text[:500])
        place = answer.header("location")
        assert place is not None
        page = (await self.get(place)).text
        messages = re.findall(r'<p class="message [^"]*">([^<]*)</p>', page)
        assert messages == [THANKS[self.language].format(self.name)], self.user
        assert f'<html lang="{self.language}">' in page, self.user
        assert LOG_OUT[self.language].format(self.user) in page, self.user
        assert f"<code>{self.reference}</code>" in page, self.user
        assert f"<td>{self.quantity}</td>" in page, self.user
        assert f"<address>{self.name}<br>" in page, self.user
        tokens = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
        assert tokens, self.user
        assert {secret(token) for token in tokens} == {self.cookies["csrftoken"]}, self.user


@pytest.mark.parametrize("mode", ["coroutine", "greenlet"])
@story(120)
async def test_40_parked_checkouts_keep_their_user_language_messages_and_csrf_state(
    shop: Shop, stub: Services, start: Starter, mode: str
) -> None:
    gateway = start(flags=(f"--mode={mode}",))
    buyers = [Buyer(number, gateway.address) for number in range(USERS)]
    await asyncio.gather(*(buyer.fill_cart() for buyer in buyers))

    stub.set(latency=3000)
    checkouts = [asyncio.create_task(buyer.buy()) for buyer in buyers]
    await eventually("not all are parked", lambda: gateway.parked() == USERS, 10)
    # Meanwhile others come with the wrong token, somebody else's, or none.
    stranger = Buyer(0, gateway.address)
    await stranger.fill_cart()
    for token in ("x" * 64, buyers[1].cookies["csrftoken"], ""):
        refused = await stranger.buy(token)
        assert refused.status == 403
        assert "CSRF" in refused.text

    answers = await asyncio.gather(*checkouts)
    await asyncio.gather(
        *(buyer.assert_own(answer) for buyer, answer in zip(buyers, answers, strict=True))
    )
    moved = sum(
        answer.header("lab-began-on") != answer.header("lab-ended-on") for answer in answers
    )
    print(f"\n{moved} of {USERS} went on in another thread")
    if mode == "coroutine":
        assert moved > USERS / 2
    else:
        assert moved == 0
    owners = shop.query(
        "SELECT reference, username, status FROM store_order JOIN auth_user"
        " ON auth_user.id = user_id"
    )
    assert sorted(owners) == sorted((each.reference, each.user, "paid") for each in buyers)
    assert stub.charges() == {buyer.reference: 1 for buyer in buyers}
    gateway.settles()
    assert gateway.metric("layby_waits_in_place_total") == 0
