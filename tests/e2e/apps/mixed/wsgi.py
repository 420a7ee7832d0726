import signal

from django.core.wsgi import get_wsgi_application

from mixed import left

application = get_wsgi_application()
signal.signal(signal.SIGUSR1, left.tell)
