from django.urls import include, path

from lab import views

urlpatterns = [
    path("lab/wait", views.wait),
    path("lab/fetch", views.fetch),
    path("lab/fetch-in-place", views.fetch_in_place),
    path("lab/slow", views.slow),
    path("lab/stuck", views.stuck),
    path("lab/drill/", include("lab.drill")),
    path("lab/stuck-query", views.stuck_query),
    path("lab/held", views.held),
    path("lab/files/", include("lab.files")),
    path("lab/loop/", include("lab.loop")),
    path("lab/uploads/", include("lab.uploads")),
    path("lab/streams/", include("lab.streams")),
    path("lab/sdks/", include("lab.sdks")),
    path("", include("shop.urls")),
]
