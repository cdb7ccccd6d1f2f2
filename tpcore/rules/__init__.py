"""Sharding rules, one table per family of ops: a rule's text, and what may stay partial."""
