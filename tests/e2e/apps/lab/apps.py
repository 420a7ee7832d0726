import os
from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_save


class LabConfig(AppConfig):
    name = "lab"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        # Not at the top: models can be imported only now.
        from lab.models import Trace
        from store.models import Ledger

        def trace(instance: Any, **kwargs: Any) -> None:
            Trace.objects.create(
                reference=instance.reference, event=instance.event, pid=os.getpid()
            )

        post_save.connect(trace, sender=Ledger, weak=False)
