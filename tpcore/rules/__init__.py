"""Sharding rules, one table per family of ops: a rule's text, and which operands may stay partial."""
