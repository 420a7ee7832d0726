from django.urls import path

from small import views

names = ["page", "parked", "recipes", "in_place", "upload", "relayed"]
urlpatterns = [path(name, getattr(views, name)) for name in names]
