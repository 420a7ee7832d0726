"""As written for threads: plain blocking code."""

import threading

import requests
from django.urls import path

from pages import answer, asked, hello, query

# A session is not safe to share between threads; one for each keeps its connection open.
local = threading.local()


def checkout(request):
    if not hasattr(local, "session"):
        local.session = requests.Session()
    query()
    [url] = asked(request)
    response = local.session.get(url)
    query()
    return answer([response.json()])


urlpatterns = [path("hello", hello), path("checkout", checkout)]
