"""What the end-to-end tests run: PostgreSQL, the shop, its third parties, the gateway, clients.

Everything is a process of its own, as in production, and ends with its `with` block.
"""
