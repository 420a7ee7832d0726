from django.contrib import admin

from store.models import Ledger, Order, OrderLine, Product


@admin.register(Product)
class ProductAdmin(admin.ModelAdmin):
    list_display = ("name", "price", "grams")
    search_fields = ("name",)
    prepopulated_fields = {"slug": ("name",)}  # noqa: RUF012 (how Django spells it)


class OrderLineInline(admin.TabularInline):
    model = OrderLine
    extra = 0


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):
    list_display = ("reference", "status", "user", "total", "created")
    list_filter = ("status",)
    search_fields = ("reference",)
    inlines = (OrderLineInline,)


@admin.register(Ledger)
class LedgerAdmin(admin.ModelAdmin):
    list_display = ("reference", "event", "at")
    search_fields = ("reference",)
