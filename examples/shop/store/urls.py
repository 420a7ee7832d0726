from django.urls import path

from store import api, views

urlpatterns = [
    path("", views.products, name="products"),
    path("products/<slug:slug>/", views.product, name="product"),
    path("products/<slug:slug>/add/", views.add_to_cart, name="add-to-cart"),
    path("cart/", views.cart, name="cart"),
    path("cart/empty/", views.empty_cart, name="empty-cart"),
    path("checkout/", views.checkout, name="checkout"),
    path("checkout/atomic/", views.checkout, {"atomic": True}, name="checkout-atomic"),
    path("orders/", views.orders, name="orders"),
    path("orders/<int:pk>/", views.order, name="order"),
    path("shipping/", views.shipping, name="shipping"),
    path("api/checkout", api.checkout, name="api-checkout"),
    path("api/checkout/atomic", api.checkout, {"atomic": True}, name="api-checkout-atomic"),
    path("api/quote", api.quote, name="api-quote"),
    path("whoami", api.whoami, name="whoami"),
    path("healthz", api.healthz, name="healthz"),
]
