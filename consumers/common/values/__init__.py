"""Reads the values in texts: numbers, quantities, money, dates, times and addresses."""
