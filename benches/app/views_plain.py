"""A project that waits for nobody."""

from django.urls import path

from pages import hello

urlpatterns = [path("hello", hello)]
