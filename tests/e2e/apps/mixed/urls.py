from django.urls import include, path

from mixed import recipes

urlpatterns = [
    *(path(f"mixed/{name}", view) for name, view in recipes.VIEWS.items()),
    path("", include("lab.urls")),
]
