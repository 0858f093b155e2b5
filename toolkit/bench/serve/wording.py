"""Figures -> words."""

from ptexport.toolkit.bench.report import Figure


def in_words(clients: int) -> str:
    """Name a number of clients."""
    return "1 client" if clients == 1 else f"{clients} clients"


def number(value: float) -> str:
    """Write a figure with about three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(figure: Figure) -> str:
    """Write a figure with its lowest and highest round."""
    return f"{number(figure.value)} ({number(figure.low)} to {number(figure.high)})"
