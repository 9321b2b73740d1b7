"""The protocol between an engine and its ranks, whichever launcher started them."""
