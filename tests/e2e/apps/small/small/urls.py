from django.urls import path

from small import views

urlpatterns = [path("page", views.page), path("parked", views.parked)]
