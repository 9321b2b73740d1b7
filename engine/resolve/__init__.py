"""What was asked for, checked and completed before any rank starts."""
