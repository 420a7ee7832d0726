from django.db import models


class Trace(models.Model):
    """Which process wrote an entry of the shop's ledger, or that some line of a view was run."""

    reference = models.CharField(max_length=64, db_index=True)
    event = models.CharField(max_length=64)
    pid = models.IntegerField()
    at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.reference} {self.event} in {self.pid}"
