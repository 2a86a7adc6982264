"""Alembic's scripts, run from inside the installed package by `Database.upgrade`."""
