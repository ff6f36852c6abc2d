"""Parameters of tables by themselves."""
