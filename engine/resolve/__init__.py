"""Requests and configurations, checked and completed before any rank starts."""
