from django.contrib import admin
from django.contrib.auth import views as auth
from django.contrib.staticfiles.views import serve
from django.urls import include, path

urlpatterns = [
    path("", include("store.urls")),
    path("login/", auth.LoginView.as_view(), name="login"),
    path("logout/", auth.LogoutView.as_view(), name="logout"),
    path("language/", include("django.conf.urls.i18n")),
    path("admin/", admin.site.urls),
    # For `runserver`, and before `collectstatic`: else layby has the files (see layby.toml).
    path("static/<path:path>", serve, {"insecure": True}),
]
