"""Weights of linear layers in fewer bits: encoded while they load, decoded where they are used."""
