"""Calls of the registered operators, valid and crooked, and what is right to come of them."""
