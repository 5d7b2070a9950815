"""Adapting a frozen dual encoder to a few labelled images."""
