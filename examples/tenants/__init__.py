"""One PostgreSQL schema per tenant, on layby: see tenancy.py."""
