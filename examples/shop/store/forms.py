from __future__ import annotations

import uuid

from django import forms
from django.utils.translation import gettext_lazy as _

from store.cart import MOST_OF_ONE
from store.checkout import Address


class AddForm(forms.Form):
    quantity = forms.IntegerField(
        label=_("Quantity"), min_value=1, max_value=MOST_OF_ONE, initial=1
    )


class QuoteForm(forms.Form):
    zip = forms.CharField(label=_("Postal code"), max_length=12)
    grams = forms.IntegerField(label=_("Weight in grams"), min_value=1, max_value=100_000)


def fresh_reference() -> str:
    return uuid.uuid4().hex


class CheckoutForm(forms.Form):
    name = forms.CharField(label=_("Name"), max_length=100)
    street = forms.CharField(label=_("Street"), max_length=100)
    zip = forms.CharField(label=_("Postal code"), max_length=12)
    city = forms.CharField(label=_("City"), max_length=100)
    card = forms.ChoiceField(
        label=_("Card"),
        choices=[
            ("good", _("a good card")),
            ("declined", _("a card that is declined")),
            ("broken", _("a bank that answers 500")),
            ("lost", _("a bank that hangs up half-way")),
        ],
    )
    reference = forms.RegexField(
        r"^[\w.:-]{1,64}$", widget=forms.HiddenInput, initial=fresh_reference
    )

    def address(self) -> Address:
        data = self.cleaned_data
        return Address(data["name"], data["street"], data["zip"], data["city"])
